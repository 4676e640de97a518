"MELD: the published transcripts, clips in both layouts at full size, and faults."
import os, time

import av, numpy as np, pandas as pd, pytest, soundfile as sf
from hypothesis import given, settings, strategies as st

from mser.core import InputError
from mser.corpora.meld import EXTRA, MISCUT, MISSING, SPLITS, meld, repair
from mser.labels import label_set
from mser.manifest import read_manifest, write_manifest

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
BY_NAME = {split.name: split for split in SPLITS}


def write_mp4(path, seconds, layout="stereo", rate=48_000):
    "A tone as AAC in mp4."
    channels = {"stereo": 2, "5.1": 6}[layout]
    samples = np.tile((0.1*np.sin(0.05*np.arange(round(seconds*rate)))).astype("float32"), (channels, 1))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode()]: file.mux(packet)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    "Clips of 1.5 s (six channels) and 43 ms."
    folder = tmp_path_factory.mktemp("clips")
    write_mp4(folder/"plain.mp4", 1.5, "5.1")
    write_mp4(folder/"short.mp4", 0.043)
    sf.write(folder/"long.wav", np.zeros(305*1000), 1000)
    return folder


def row(d, u, emotion="neutral", text="Hey.", speaker="Ross", times=("0:00:01,000", "00:00:02,500")):
    quoted = '"' + text.replace('"', '""') + '"'
    return f'{d},{quoted},{speaker},{emotion},neutral,{d},{u},4,7,"{times[0]}","{times[1]}"'


def write_split(root, name, rows, clips=None, nested=False):
    "A table and, if asked for, a clip for each row."
    split, folder = BY_NAME[name], root/name if nested else root
    folder.mkdir(exist_ok=True)
    (folder/split.table).write_text(HEADER + "\n".join(rows), encoding="utf-8")
    if clips is None: return
    (folder/split.clips).mkdir()
    for r in pd.read_csv(folder/split.table, dtype=str).itertuples():
        os.link(clips/"plain.mp4", folder/split.clips/f"dia{r.Dialogue_ID}_utt{r.Utterance_ID}.mp4")


@pytest.fixture(params=[False, True], ids=["flat", "nested"])
def corpus(request, tmp_path, clips):
    for name, n in (("train", 4), ("dev", 2), ("test", 3)):
        write_split(tmp_path, name, [row(0, u, e) for u, e in enumerate(("joy", "anger", "neutral", "sadness")[:n])], clips, request.param)
    return tmp_path


def refusal(root, **options):
    with pytest.raises(InputError) as error: meld(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def clip(root, name, stem): return next(root.rglob(f"{BY_NAME[name].clips}/{stem}.mp4"))
def table(root, name): return next(root.rglob(BY_NAME[name].table))


def test_the_published_transcripts(shared):
    manifest = meld(shared/"meld")
    t = manifest.table
    assert len(manifest) == 13_708 and manifest.skipped == ()
    assert t.split.value_counts().to_dict() == {"train": 9989, "val": 1109, "test": 2610}
    assert pd.crosstab(t.split, t.label).loc["train"].to_dict() == {"neutral": 4710, "happiness": 1743, "surprise": 1205, "anger": 1109, "sadness": 683, "disgust": 271, "fear": 268}
    assert t.groupby("split").dialogue.nunique().to_dict() == {"train": 1038, "val": 114, "test": 280}
    assert t.groupby("split").speaker.nunique().to_dict() == {"train": 260, "val": 47, "test": 100}
    assert len(manifest.keep(label_set("meld-7"))) == 13_708
    assert manifest.keep(label_set("4")).table.split.value_counts().to_dict() == {"train": 8245, "val": 897, "test": 2211}
    assert not t.text.str.contains("[\x80-\x9f]").any() and (t.start <= t.end).all()


def test_repair_undoes_the_old_encoding_of_the_published_transcripts(shared, tmp_path):
    expected = meld(shared/"meld")
    for split in SPLITS:
        text = (shared/"meld"/split.table).read_text(encoding="utf-8")
        old = "".join(c.encode("cp1252").decode("latin-1") for c in text)
        assert old != text and len(old.splitlines()) > len(text.splitlines())  # U+0085
        (tmp_path/split.table).write_text(old, encoding="utf-8", newline="")
    assert meld(tmp_path).fingerprint == expected.fingerprint


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="cp1252"), max_size=30))
def test_repair_inverts_the_damage_to_any_text(text):
    assert repair(text.encode("cp1252").decode("latin-1")) == text and repair(text) == text


def test_a_whole_copy_has_the_documented_numbers_and_takes_seconds(shared, tmp_path, clips):
    for split in SPLITS:
        os.symlink(shared/"meld"/split.table, tmp_path/split.table)
        (tmp_path/split.clips).mkdir()
    t = meld(shared/"meld").table
    for i, part in zip(t["id"], t.split):
        _, name, split = i.split("-")
        if (split, name) == ("dev", "dia110_utt7"): continue
        source = clips/("short.mp4" if MISCUT.get((split, name), 1) < 1 else "plain.mp4")
        os.link(source, tmp_path/BY_NAME[split].clips/f"{name}.mp4")
    for split, name in EXTRA: os.link(clips/"plain.mp4", tmp_path/BY_NAME[split].clips/f"{name}.mp4")
    for name in ("dia38_utt4", "dia220_utt0"):  # long clips: as wav, which is quick to write
        (tmp_path/"output_repeated_splits_test"/f"{name}.mp4").unlink()
        os.link(clips/"long.wav", tmp_path/"output_repeated_splits_test"/f"{name}.wav")
    broken = tmp_path/"train_splits"/"dia125_utt3.mp4"
    broken.unlink()
    broken.write_bytes(b"\0"*1000)
    start = time.perf_counter()
    manifest = meld(tmp_path)
    seconds = time.perf_counter() - start
    assert seconds < 60
    assert manifest.table.split.value_counts().to_dict() == {"train": 9988, "val": 1108, "test": 2610}
    assert {tuple(s.item.split()) for s in manifest.skipped} == set(MISSING) | EXTRA
    assert set(manifest.table["id"][manifest.table.note.notna()]) == {f"meld-{name}-{split}" for split, name in MISCUT}
    assert len(meld(tmp_path, audio=False)) == 13_708


def test_both_layouts(corpus):
    manifest = meld(corpus)
    assert manifest.table.split.value_counts().to_dict() == {"train": 4, "val": 2, "test": 3}
    assert manifest.table["id"].is_unique and manifest.table.dialogue.nunique() == 3  # all three are called dia0 in their split
    assert manifest.table.speaker.unique().tolist() == ["Ross"]
    assert all(path.is_file() for path in manifest.audio_paths())
    assert manifest.table.duration.between(1.4, 1.6).all() and (manifest.table.sample_rate == 48_000).all()
    texts = meld(corpus, audio=False)
    assert texts.ids == manifest.ids and texts.table.audio.isna().all()
    assert {"happiness", "anger"} <= set(manifest.keep(label_set("4")).table.label)


def test_mixed_layout(tmp_path, clips):
    write_split(tmp_path, "train", [row(0, 0)], clips, nested=True)
    write_split(tmp_path, "dev", [row(0, 0)], clips)
    assert [s.item for s in meld(tmp_path).skipped] == ["test"] and len(meld(tmp_path)) == 2


def test_texts(tmp_path):
    texts = ["None", "word "*5000, 'He said "hey,\nyou"', "\N{SMILING FACE WITH SUNGLASSES}", "Chloé", "so\x85 I\x92m"]
    write_split(tmp_path, "test", [row(0, u, text=t, speaker="Richard\x92s Date") for u, t in enumerate(texts)])
    manifest = meld(tmp_path)
    assert manifest.table.text.tolist() == [*texts[:5], "so… I’m"] and set(manifest.table.speaker) == {"Richard’s Date"}
    for suffix in (".parquet", ".jsonl", ".csv"):
        write_manifest(manifest, tmp_path/f"m{suffix}")
        assert read_manifest(tmp_path/f"m{suffix}").fingerprint == manifest.fingerprint


def test_mis_cut_clips_are_noted_or_listed(corpus, clips):
    for stem, source in (("dia0_utt1", "short.mp4"), ("dia0_utt2", "long.wav")):
        path = clip(corpus, "test", stem)
        path.unlink()
        os.link(clips/source, path.with_suffix((clips/source).suffix))
    notes = meld(corpus).table.set_index("id").note.dropna()
    assert "nothing to hear" in notes["meld-dia0_utt1-test"] and "lasts 305 s" in notes["meld-dia0_utt2-test"] and len(notes) == 2
    rest = meld(corpus, skip_bad=True)
    assert len(rest) == 7 and [s.item for s in rest.skipped] == ["test dia0_utt1", "test dia0_utt2"]


def test_clips_without_a_row(corpus, clips):
    folder = clip(corpus, "test", "dia0_utt0").parent
    for stem in ("dia93_utt5", "dia7_utt7", "final_videos_testdia0_utt1"): os.link(clips/"plain.mp4", folder/f"{stem}.mp4")
    (folder/"._dia0_utt0.mp4").write_bytes(b"\x00\x05\x16\x07")
    reasons = {s.item: s.reason for s in meld(corpus).skipped}
    assert set(reasons) == {"test dia93_utt5", "test dia7_utt7", "test final_videos_testdia0_utt1"}
    assert "as in every copy" in reasons["test dia93_utt5"] and "second file for dia0_utt1" in reasons["test final_videos_testdia0_utt1"]


@pytest.mark.parametrize("data, problem", [(None, "no such file"), (b"", "the file is empty"), (b"\0"*1000, "not audio")])
def test_a_bad_clip(corpus, data, problem):
    path = clip(corpus, "dev", "dia0_utt1")
    path.unlink()
    if data is not None: path.write_bytes(data)
    message = refusal(corpus)
    assert message.startswith(f"{path}: ") and problem in message and "--skip-bad" in message
    rest = meld(corpus, skip_bad=True)
    assert len(rest) == 8 and [s.item for s in rest.skipped] == ["dev dia0_utt1"] and problem in rest.skipped[0].reason


@pytest.mark.parametrize("old, new, problem", [
    ("anger", "angry", "unknown emotion of dia0_utt1 'angry'"), ("anger", "Anger", "unknown emotion of dia0_utt1 'Anger'"),
    ("00:00:02,500", "soon", "dia0_utt0: time 'soon'"), (",0,1,4,7", ",0,1,four,7", "Season of dia0_utt1 is 'four'")])
def test_a_bad_row(corpus, old, new, problem):
    path = table(corpus, "train")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    message = refusal(corpus)
    assert message.startswith(f"{path}: ") and problem in message
    rest = meld(corpus, audio=False, skip_bad=True)
    assert len(rest) == 8 and problem in rest.skipped[0].reason


@pytest.mark.parametrize("content, problem", [
    (b"", "the file is empty"), ((HEADER + row(0, 0)).encode().replace(b"Hey", b"H\xe9y"), "not UTF-8 (byte 0xe9"),
    (HEADER.replace("Emotion", "Feeling").encode(), "column 'Emotion' is missing")])
def test_a_bad_table(corpus, content, problem):
    table(corpus, "dev").write_bytes(content)
    assert refusal(corpus).startswith(f"{table(corpus, 'dev')}: {problem}")


def test_wrong_folders(tmp_path):
    assert "Give the folder that holds MELD's train_sent_emo.csv" in refusal(tmp_path/"nowhere")
    assert f"{tmp_path}: there is no train_sent_emo.csv (nor of dev or test), here or in train/" in refusal(tmp_path)
    write_split(tmp_path, "dev", [row(0, 0)])
    assert "there is no folder train_splits" in refusal(tmp_path, audio=True)
    assert len(meld(tmp_path)) == 1
