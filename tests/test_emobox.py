"EmoBox's lists: EmoDB's published ones, made ones of IEMOCAP's size, and faults."
import json, shutil

import numpy as np, pytest, soundfile as sf

from mser.core import InputError
from mser.corpora.emobox import emobox, find_lists, read_folds, with_folds
from mser.corpora.emodb import emodb
from mser.corpora.iemocap import COUNTS
from mser.labels import label_set
from mser.manifest import make_manifest, read_manifest, write_manifest
from mser.protocols import make_splits

KEYS = [f"emodb-{s}{t}{e}a" for s in ("03", "08") for t in ("a01", "b02") for e in "WN"]
EMO = {"W": "anger", "N": "neutral"}


def fold_parts(manifest):
    "The part of each utterance, fold by fold."
    names = sorted((c for c in manifest.table if c.startswith("fold_")), key=lambda c: int(c[5:]))
    return [manifest.table[name].to_numpy(dtype=object) for name in names]


def record(key, dataset="emodb", **changes):
    name = key.split("-", 1)[1]
    return {"key": key, "dataset": dataset, "wav": f"downloads/{dataset}/wav/{name}.wav", "type": "raw", "sample_rate": 16000, "num_frame": 8000.0,
            "task": "category", "length": 0.5, "emo": EMO.get(name[5:6], "neutral"), "channel": 1} | changes


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def write_folds(folder, records, tests, valid=None):
    "A whole list and, for each set of tested keys, the lists of a fold."
    dataset = records[0]["dataset"]
    write(folder/f"{dataset}.jsonl", records)
    for k, test in enumerate(tests, 1):
        parts = {"test": test, "valid": valid or set()}
        parts["train"] = {r["key"] for r in records} - parts["test"] - parts["valid"]
        for part, keys in parts.items():
            if keys: write(folder/f"fold_{k}"/f"{dataset}_{part}_fold_{k}.jsonl", [r for r in records if r["key"] in keys])


@pytest.fixture
def lists(tmp_path):
    "data/emodb with two folds, and the recordings under downloads/."
    folder = tmp_path/"data"/"emodb"
    write_folds(folder, [record(k) for k in KEYS], [set(KEYS[::2]), set(KEYS[1::2])])
    (folder/"label_map.json").write_text('{"anger": "Angry", "Neutral": "Neutral"}')
    (tmp_path/"downloads"/"emodb"/"wav").mkdir(parents=True)
    for k in KEYS: sf.write(tmp_path/record(k)["wav"], 0.1*np.sin(0.1*np.arange(8000)), 16_000)
    return folder


def refusal(folder, **options):
    with pytest.raises(InputError) as error: emobox(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_published_lists_of_emodb(shared):
    folder = shared/"emodb"/"emobox"
    manifest = emobox(folder)
    assert manifest.table.label.value_counts().to_dict() == {"anger": 127, "boredom": 81, "neutral": 79, "happiness": 71, "fear": 69, "sadness": 62, "disgust": 46}
    assert (len(manifest.keep(label_set("emodb-7"))), len(manifest.keep(label_set("4")))) == (535, 339)
    folds = list(fold_parts(manifest))
    assert [(np.sum(f == "train"), np.sum(f == "test")) for f in folds] == [(428, 107)]*5
    assert (np.sum([f == "test" for f in folds], axis=0) == 1).all()  # each utterance is tested once
    assert manifest.table.speaker.nunique() == 10 and all(p.is_file() for p in manifest.audio_paths())


def test_folds_fit_our_own_parser(shared):
    folder = shared/"emodb"/"emobox"
    native, listed = with_folds(emodb(shared/"emodb"), folder), emobox(folder)
    columns = ["id", "text", "label", "speaker", "gender", *(f"fold_{k}" for k in range(1, 6))]
    assert native.table[columns].equals(listed.table[columns]) and native.skipped == ()
    some = native.where(native.table.speaker == "03")
    assert [len(f) for f in fold_parts(some)] == [len(some)]*5


def test_the_folds_of_a_corpus_like_iemocap(tmp_path):
    tests, records = [], []
    for s in range(5):
        codes = [code for code in ("ang", "hap", "exc", "sad", "neu") for _ in range(COUNTS[code][s])]
        part = [record(f"iemocap-Ses0{s + 1}F_impro{i//1000:02}_{'FM'[i % 2]}{i % 1000:03}", "iemocap", emo=code) for i, code in enumerate(codes)]
        tests.append({r["key"] for r in part})
        records += part
    write_folds(tmp_path, records, tests)
    (tmp_path/"label_map.json").write_text('{"neu": "Neutral", "hap": "Happy", "ang": "Angry", "sad": "Sad", "exc": "Happy"}')
    manifest = emobox(tmp_path, audio=False)
    assert [(np.sum(f == "train"), np.sum(f == "test")) for f in fold_parts(manifest)] == [(4446, 1085), (4508, 1023), (4380, 1151), (4500, 1031), (4290, 1241)]
    assert manifest.table.label.value_counts()["excitement"] == 1041  # the list's word, not the merged one of the map
    assert manifest.keep(label_set("4")).table.label.value_counts()["happiness"] == 1636
    assert manifest.table.speaker.nunique() == 10 and (manifest.table.session == manifest.table["id"].str[12]).all()
    for k, parts in enumerate(fold_parts(manifest), 1): assert set(manifest.table.session[parts == "test"]) == {str(k)}


def test_one_fold_is_the_official_split(tmp_path):
    keys = [f"meld-dia{i}_utt0-{part}" for i, part in enumerate(["train"]*3 + ["dev"]*2 + ["test"]*2)]
    write_folds(tmp_path, [record(k, "meld", emo="joy", channel=3) for k in keys], [{k for k in keys if k.endswith("test")}], valid={k for k in keys if k.endswith("dev")})
    manifest = emobox(tmp_path, audio=False)
    assert manifest.table.split.value_counts().to_dict() == {"train": 3, "val": 2, "test": 2}
    assert manifest.table.split.tolist() == manifest.table.fold_1.tolist()
    assert set(manifest.table.label) == {"happiness"} and set(manifest.table.speaker) == {"unknown"}


MELD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def test_speakers_and_words_of_meld_come_from_its_tables(tmp_path):
    clips = {"train": "train/train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}  # as EmoBox expects them
    keys = {f"meld-dia{k}_utt0-{part}": f"downloads/meld/{folder}/dia{k}_utt0.mp4" for part, folder in clips.items() for k in range(2)}
    write_folds(tmp_path/"data"/"meld", [record(k, "meld", emo="joy", wav=wav, channel=3) for k, wav in keys.items()],
                [{k for k in keys if k.endswith("test")}], valid={k for k in keys if k.endswith("dev")})
    for wav in keys.values():
        (tmp_path/wav).parent.mkdir(parents=True, exist_ok=True)
        sf.write(tmp_path/wav, 0.1*np.sin(0.1*np.arange(8000)), 16_000, format="WAV")
    bare = emobox(tmp_path/"data"/"meld").table
    assert set(bare.speaker) == {"unknown"} and bare.dialogue.tolist() == ["dev-dia0", "test-dia0", "train-dia0", "dev-dia1", "test-dia1", "train-dia1"]
    for part, home in (("train", "train"), ("dev", ""), ("test", "")):
        rows = [f'{k},"Oh, {part} {k}!",{"Ross" if k else "Rachel"},{"joy" if k else "anger"},positive,{k},0,8,21,"00:16:1{k},059","00:16:2{k},731"' for k in range(2)]
        (tmp_path/"downloads"/"meld"/home/f"{part}_sent_emo.csv").write_text("\n".join([MELD, *rows]) + "\n")
    table = emobox(tmp_path/"data"/"meld").table
    assert table.speaker.tolist() == ["Rachel"]*3 + ["Ross"]*3 and table.gender.tolist() == ["female"]*3 + ["male"]*3
    assert table.text.tolist() == [f"Oh, {part} {k}!" for k in range(2) for part in ("dev", "test", "train")]
    assert set(table.label) == {"happiness"} and (table.duration == 0.5).all()  # the list's label, the recording's length
    assert table.split.tolist() == table.fold_1.tolist() == ["val", "test", "train"]*2
    (tmp_path/"downloads"/"meld"/"dev_sent_emo.csv").write_text("not,this,table\n1,2,3\n")
    assert "dev_sent_emo.csv: column 'Utterance' is missing" in refusal(tmp_path/"data"/"meld")


@pytest.mark.parametrize("wav", ["/elsewhere/downloads/emodb/wav/{}.wav", "../../downloads/emodb/wav/{}.wav", "../../../outside/{}.wav"])
def test_recordings_are_found_in_the_folder_and_nowhere_else(lists, tmp_path, wav):
    write(lists/"emodb.jsonl", [record(k, wav=wav.format(k.split("-")[1])) for k in KEYS])
    (tmp_path.parent/"outside").mkdir(exist_ok=True)
    for k in KEYS: sf.write(tmp_path.parent/"outside"/f"{k.split('-')[1]}.wav", np.zeros(800), 16_000)
    if "outside" in wav: assert "are not there" in refusal(lists, audio_root=tmp_path)
    else: assert all(str(path).startswith(str(tmp_path)) and path.is_file() for path in emobox(lists).audio_paths())


def test_recordings_are_found_near_the_lists_or_where_the_user_says(lists, tmp_path):
    manifest = emobox(lists)
    assert all(path.is_file() for path in manifest.audio_paths()) and (manifest.table.duration == 0.5).all() and manifest.table.note.isna().all()
    moved = shutil.move(tmp_path/"downloads"/"emodb"/"wav", tmp_path.parent/f"{tmp_path.name}-elsewhere")
    assert "recordings such as downloads/emodb/wav/03a01Wa.wav are not there. Give their folder with --audio-root" in refusal(lists)
    elsewhere = emobox(lists, audio_root=moved)
    assert all(path.is_file() for path in elsewhere.audio_paths()) and elsewhere.ids == manifest.ids
    assert emobox(lists, audio=False).ids == manifest.ids


def test_another_recording_is_noted(lists, tmp_path):
    sf.write(tmp_path/record(KEYS[0])["wav"], np.zeros(32_000), 16_000)
    assert emobox(lists).table.note.dropna().tolist() == ["2.000 s, EmoBox's list has 0.500 s"]


def test_only_folds(lists):
    (lists/"emodb.jsonl").unlink()
    assert len(emobox(lists)) == 8 and sorted(c for c in emobox(lists).table if c.startswith("fold")) == ["fold_1", "fold_2"]


def test_flat_lists_other_copies_and_round_trip(lists, tmp_path):
    manifest = emobox(lists)
    for path in lists.glob("fold_*/*.jsonl"): shutil.move(path, lists/path.name)
    write(lists/"emodb_train_fold1.jsonl", [{"key": "emodb-x", "audio": "x.wav", "label": "anger"}])
    assert emobox(lists/"emodb.jsonl").table.equals(manifest.table)
    for suffix in (".parquet", ".jsonl", ".csv"):
        write_manifest(manifest, tmp_path/f"m{suffix}")
        back = read_manifest(tmp_path/f"m{suffix}", root=manifest.root)
        assert back.fingerprint == manifest.fingerprint
        assert [f.tolist() for f in fold_parts(back)] == [f.tolist() for f in fold_parts(manifest)]


def test_speakers_by_pattern(tmp_path):
    write_folds(tmp_path, [record(f"esd-{s}_{n:06}", "esd") for s in ("0001", "0002") for n in range(3)], [{"esd-0001_000000"}])
    assert set(emobox(tmp_path, audio=False).table.speaker) == {"unknown"}
    assert emobox(tmp_path, audio=False, speaker=r"-(\d{4})_").table.speaker.value_counts().to_dict() == {"0001": 3, "0002": 3}
    assert "there is no speaker in 'esd-0001_000000'" in refusal(tmp_path, audio=False, speaker=r"-(\d{5})_")


@pytest.mark.parametrize("changes, problem", [
    ({"emo": "grumpy"}, "unknown emotion 'grumpy'"), ({"emo": None}, "emodb-03a01Wa has no label"), ({"type": "feature"}, "line 1: type is 'feature'"),
    ({"start_time": 2.0}, "line 1: start_time is 2.0"), ({"wav": ""}, "emodb-03a01Wa has no audio"), ({"audio": "x.wav"}, "line 1: there is both 'wav' and 'audio'")])
def test_a_bad_line_names_the_list(lists, changes, problem):
    write(lists/"emodb.jsonl", [record(KEYS[0], **changes), *(record(k) for k in KEYS[1:])])
    message = refusal(lists)
    assert message.startswith(f"{lists/'emodb.jsonl'}: ") and problem in message
    if "line" in problem: return  # such a list is refused as a whole
    rest = emobox(lists, skip_bad=True)
    assert len(rest) == 7 and [s.item for s in rest.skipped] == [KEYS[0]] and problem in rest.skipped[0].reason


@pytest.mark.parametrize("data, problem", [(None, "no such file"), (b"", "the file is empty"), (b"RIFF", "not audio")])
def test_a_bad_recording(lists, tmp_path, data, problem):
    path = tmp_path/record(KEYS[3])["wav"]
    path.unlink()
    if data is not None: path.write_bytes(data)
    assert f"{path.name}: " in refusal(lists) and problem in refusal(lists)
    rest = emobox(lists, skip_bad=True)
    assert len(rest) == 7 and [s.item for s in rest.skipped] == [KEYS[3]] and problem in rest.skipped[0].reason


def test_bad_folds(lists, tmp_path):
    path = lists/"fold_1"/"emodb_test_fold_1.jsonl"
    good = path.read_text()
    path.write_text((lists/"fold_1"/"emodb_train_fold_1.jsonl").read_text())
    assert "is also in" in refusal(lists)
    path.write_bytes(good.encode() + b'{"key"')
    assert f"{path}: line 5 is not JSON" in refusal(lists)
    path.unlink()
    half = emobox(lists)
    with pytest.raises(InputError, match="more than one value in column 'fold_1', there is 'train' alone"): make_splits(half, "folds")
    other = make_manifest(half.table.assign(id=[f"other-{i}" for i in range(8)]).drop(columns=["fold_1", "fold_2"]))
    with pytest.raises(InputError, match="none of the manifest's utterances"): with_folds(other, lists)
    with pytest.raises(InputError, match="needs a fold for every utterance"): make_splits(other, "folds")


def test_a_label_map_that_is_broken(lists):
    (lists/"label_map.json").write_text("{")
    assert f"{lists/'label_map.json'}: not valid JSON" in refusal(lists)


def test_wrong_folders(tmp_path):
    assert "there is no such folder. Give a folder of EmoBox's data/" in refusal(tmp_path/"nowhere")
    assert "there are the lists of no corpus in this folder" in refusal(tmp_path)
    write(tmp_path/"a.jsonl", [record(KEYS[0])])
    write(tmp_path/"b.jsonl", [record(KEYS[0])])
    assert "there are the lists of a, b in this folder" in refusal(tmp_path)


def test_folds_are_in_order_of_their_numbers(tmp_path):
    keys = [f"esd-{n}" for n in range(12)]
    write_folds(tmp_path, [record(k, "esd") for k in keys], [{k} for k in keys])
    assert list(read_folds(find_lists(tmp_path))) == [f"fold_{k}" for k in range(1, 13)]
    assert [int(np.flatnonzero(f == "test")[0]) for f in fold_parts(make_manifest(emobox(tmp_path, audio=False).table))] == [sorted(keys).index(k) for k in keys]
