"CREMA-D: the published tables, a tree of full size, and faults."
import os, time

import numpy as np, pytest, soundfile as sf

from mser.core import InputError
from mser.corpora.cremad import EMOTIONS, cremad, find_table, read_winners
from mser.labels import NO_AGREEMENT, label_set
from mser.manifest import read_manifest, write_manifest

ACTORS = [str(n) for n in range(1001, 1092)]
OTHER_SENTENCES = ("TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
LACKING = {("1002", "TIE", "NEU"), ("1076", "ITS", "NEU"), *((actor, s, e) for actor, s in (("1008", "WSI"), ("1009", "MTI"), ("1019", "ITH")) for e in EMOTIONS)}


def clip_names():
    "All 7,442 names, by the documented rule: 82 for each actor, less what some of them lack."
    for actor in ACTORS:
        yield f"{actor}_IEO_NEU_XX"
        yield from (f"{actor}_IEO_{e}_{level}" for e in EMOTIONS if e != "NEU" for level in ("LO", "MD", "HI"))
        yield from (f"{actor}_{s}_{e}_XX" for s in OTHER_SENTENCES for e in EMOTIONS if (actor, s, e) not in LACKING)


def write_tables(root, names, votes="N"):
    actors = sorted({name[:4] for name in names})
    (root/"VideoDemographics.csv").write_text("\n".join(['"ActorID","Age","Sex","Race","Ethnicity"', *(f'{a},{20 + i % 55},"{("Male", "Female")[i % 2]}","Asian","Hispanic"' for i, a in enumerate(actors))]))
    (root/"SentenceFilenames.csv").write_text("\n".join(['"Stimulus_Number","Filename"', *(f'{i},"{name}"' for i, name in enumerate(names, 1))]))
    (root/"processedResults").mkdir()
    columns = '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"'
    (root/"processedResults"/"summaryTable.csv").write_text("\n".join([columns, *(f'"{i}","{name}","{votes}","50","H","50","{name[9]}","50"' for i, name in enumerate(names, 1))]))


@pytest.fixture(scope="session")
def tone(tmp_path_factory):
    path = tmp_path_factory.mktemp("tone")/"tone.wav"
    sf.write(path, 0.1*np.sin(0.1*np.arange(40_000)), 16_000)
    return path


NAMES = [f"{a}_{s}_{e}_XX" for a in ("1001", "1076") for s in ("TIE", "MTI") for e in EMOTIONS]


@pytest.fixture
def corpus(tmp_path, tone):
    "Two actors, two sentences, six emotions."
    (tmp_path/"AudioWAV").mkdir()
    for name in NAMES: os.link(tone, tmp_path/"AudioWAV"/f"{name}.wav")
    write_tables(tmp_path, NAMES)
    return tmp_path


def put(path, data):
    path.unlink(missing_ok=True)  # the tone is linked, not copied
    path.write_bytes(data)


def refusal(root, **options):
    with pytest.raises(InputError) as error: cremad(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_published_tables(shared):
    folder = shared/"cremad"
    manifest = cremad(folder, audio=False)
    table = manifest.table
    assert sorted(i.removeprefix("cremad-").replace("-", "_") for i in manifest.ids) == sorted(clip_names())
    assert len(manifest.keep(label_set("cremad-6"))) == 7442 and manifest.skipped == ()
    assert manifest.keep(label_set("4")).table.label.value_counts().to_dict() == {"anger": 1271, "happiness": 1271, "sadness": 1271, "neutral": 1087}
    assert table["level"].value_counts().to_dict() == {"unspecified": 6077, "low": 455, "medium": 455, "high": 455}
    assert table.sentence.value_counts().to_dict() == {"IEO": 1456, **dict.fromkeys(("DFA", "IOM", "IWL", "IWW", "TAI", "TSI"), 546), "ITS": 545, "TIE": 545,
                                                       **dict.fromkeys(("ITH", "MTI", "WSI"), 540)}
    actors = table.drop_duplicates("speaker")
    assert (len(actors), actors.gender.value_counts().to_dict(), actors.age.min(), actors.age.max()) == (91, {"male": 48, "female": 43}, 20, 74)


@pytest.mark.parametrize("presentation, n_ties", [("voice", 644), ("face", 470), ("multimodal", 420)])
def test_the_published_votes(shared, presentation, n_ties):
    acted, heard = cremad(shared/"cremad", audio=False), cremad(shared/"cremad", perceived=presentation, audio=False)
    assert heard.ids == acted.ids and heard.table.intended.tolist() == acted.table.label.tolist()
    assert (heard.table.label == NO_AGREEMENT).sum() == n_ties
    assert len(heard.keep(label_set("cremad-6"))) == 7442 - n_ties
    assert heard.fingerprint != acted.fingerprint
    if presentation == "voice": assert (heard.table.label == acted.table.label).sum() == 3099


def test_a_whole_copy_takes_seconds(tmp_path, tone):
    (tmp_path/"AudioWAV").mkdir()
    names = list(clip_names())
    for name in names: os.link(tone, tmp_path/"AudioWAV"/f"{name}.wav")
    write_tables(tmp_path, names)
    start = time.perf_counter()
    manifest = cremad(tmp_path)
    assert time.perf_counter() - start < 60
    assert (len(manifest), len(manifest.keep(label_set("4"))), len(manifest.skipped)) == (7442, 4900, 0)
    assert manifest.table.note.isna().all() and (manifest.table.duration == 2.5).all()


def test_either_folder_and_a_round_trip(corpus):
    manifest = cremad(corpus, perceived="multimodal")
    assert cremad(corpus/"AudioWAV", perceived="multimodal").fingerprint == manifest.fingerprint
    assert manifest.audio_paths() == sorted((corpus/"AudioWAV").iterdir())
    for suffix in (".parquet", ".jsonl", ".csv"):
        write_manifest(manifest, corpus/f"m{suffix}")
        assert read_manifest(corpus/f"m{suffix}").fingerprint == manifest.fingerprint


def test_the_silent_clip_is_noted_or_listed(corpus):
    sf.write(corpus/"silence.wav", np.zeros(41_100), 16_000)
    put(corpus/"AudioWAV"/"1076_MTI_SAD_XX.wav", (corpus/"silence.wav").read_bytes())
    manifest = cremad(corpus)
    assert len(manifest) == 24
    assert manifest.table.note.dropna().tolist() == ["silent, 2.57 s (the README says: no audio)"]
    rest = cremad(corpus, skip_bad=True)
    assert len(rest) == 23 and [s.item for s in rest.skipped] == ["1076_MTI_SAD_XX.wav"] and "no audio" in rest.skipped[0].reason


def test_what_is_listed_and_not_there(corpus):
    (corpus/"AudioWAV"/"1001_TIE_ANG_XX.wav").unlink()
    (corpus/"AudioWAV"/"._1001_TIE_ANG_XX.wav").write_bytes(b"\x00\x05\x16\x07")
    manifest = cremad(corpus)
    assert len(manifest) == 23 and [s.item for s in manifest.skipped] == ["1001_TIE_ANG_XX"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 76624\n"


@pytest.mark.parametrize("name, data, problem", [
    ("1001_TIE_SAD_XX.wav", POINTER, "git-lfs pointer"), ("1001_TIE_SAD_XX.wav", b"", "the file is empty"), ("1001_TIE_SAD_XX.wav", b"RIFF\x24\0\0\0WAVE", "no samples"),
    ("1001_TIE_sad_XX.wav", b"", "unknown emotion code 'sad'"), ("1001_TIE_HPY_XX.wav", b"", "unknown emotion code 'HPY'"), ("1001_ABC_SAD_XX.wav", b"", "unknown sentence code 'ABC'"),
    ("1001_TIE_SAD_VH.wav", b"", "unknown level 'VH'"), ("1001-TIE-SAD.wav", b"", "not of the form"), ("1003_TIE_SAD_XX.wav", POINTER, "unknown actor '1003'")])
def test_a_bad_recording_is_named_or_listed(corpus, name, data, problem):
    expected = set(cremad(corpus).ids) - {"cremad-" + name.removesuffix(".wav").replace("_", "-")}
    put(corpus/"AudioWAV"/name, data)
    message = refusal(corpus)
    assert message.startswith(f"{corpus/'AudioWAV'/name}: ") and problem in message and "--skip-bad" in message
    rest = cremad(corpus, skip_bad=True)
    assert set(rest.ids) == expected
    assert [s.item for s in rest.skipped] == [name] and problem in rest.skipped[0].reason


def test_a_clip_without_a_vote(corpus, tone):
    os.link(tone, corpus/"AudioWAV"/"1001_DFA_ANG_XX.wav")
    assert len(cremad(corpus)) == 25
    assert "1001_DFA_ANG_XX.wav: there is no vote on this clip" in refusal(corpus, perceived="voice")
    assert [s.item for s in cremad(corpus, perceived="voice", skip_bad=True).skipped] == ["1001_DFA_ANG_XX.wav"]


def test_tables(corpus):
    demographics = corpus/"VideoDemographics.csv"
    good = demographics.read_text()
    for old, new, problem in [("1001,20", "1001,young", "actor 1001 has age 'young'"), ('"Male"', '"M"', "unknown sex 'M'"), ('"Sex"', '"Gender"', "column 'Sex' is missing")]:
        demographics.write_text(good.replace(old, new))
        assert refusal(corpus).startswith(f"{demographics}: ") and problem in refusal(corpus)
    demographics.write_bytes(good.encode() + b"1077,30,\"Female\",\"\xe9\",\n")
    assert f"{demographics}: not UTF-8" in refusal(corpus)
    demographics.unlink()
    assert "there is no VideoDemographics.csv" in refusal(corpus)
    manifest = cremad(corpus, skip_bad=True)
    assert len(manifest) == 24 and manifest.table.gender.isna().all() and [s.item for s in manifest.skipped] == ["VideoDemographics.csv"]
    find_table(corpus, "summaryTable.csv").unlink()
    demographics.write_text(good)
    assert "there is no tabulatedVotes.csv" in refusal(corpus, perceived="voice")
    assert "Did you mean 'voice'?" in refusal(corpus, perceived="voise")


def test_the_two_tables_of_votes_agree(corpus):
    summary = find_table(corpus, "summaryTable.csv")
    winners = {kind: read_winners(summary, kind) for kind in ("voice", "face", "multimodal")}
    letters = {"anger": "A", "disgust": "D", "fear": "F", "happiness": "H", "neutral": "N", "sadness": "S"}
    rows = ['"","A","D","F","H","N","S","fileName","numResponses"']
    for query, kind in enumerate(winners, 1):
        for i, (name, label) in enumerate(winners[kind].items(), 1):
            rows.append(f'"{query*100_000 + i}",' + ",".join("5" if letters[label] == x else "1" for x in "ADFHNS") + f',"{name}",10')
    expected = {kind: cremad(corpus, perceived=kind).fingerprint for kind in winners}
    summary.unlink()
    (corpus/"tabulatedVotes.csv").write_text("\n".join(rows))
    assert {kind: cremad(corpus, perceived=kind).fingerprint for kind in winners} == expected


def test_wrong_folders(tmp_path):
    assert "Give the folder that holds CREMA-D's AudioWAV/" in refusal(tmp_path/"nowhere")
    write_tables(tmp_path, NAMES)
    assert "there are no wav or mp3 files in this folder. Give the folder that holds CREMA-D's AudioWAV/" in refusal(tmp_path)
    assert "this is a file, not a folder" in refusal(tmp_path/"VideoDemographics.csv")
    assert len(cremad(tmp_path, audio=False)) == 24
