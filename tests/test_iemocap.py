"IEMOCAP at full size and with faults, on trees in its documented layout; the turns are invented."
import os, time

import numpy as np, pytest, soundfile as sf

from mser.core import InputError
from mser.corpora.iemocap import COUNTS, iemocap
from mser.labels import label_set
from mser.manifest import read_manifest, write_manifest

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
DIALOGUES = (28, 30, 32, 30, 31)  # in sessions 1 to 5


def block(turn, code, ratings=(2.5, 2.5, 2.5)):
    "A turn in EmoEvaluation."
    values = ", ".join(f"{r:.4f}" for r in ratings)
    return f"[6.2901 - 8.2357]\t{turn}\t{code}\t[{values}]\nC-E2:\tNeutral;\t()\nC-F1:\tNeutral; Anger;\t()\nA-E4:\tval 2; act 3; dom  3;\t(unsure)\nA-F1:\tval 2; act 3; dom  3;\t()\n\n"


def write_dialogue(root, dialogue, codes, wav, texts=None, ratings=None):
    "A dialogue of IEMOCAP: evaluation, transcript and linked recordings."
    session = root/f"Session{dialogue[4]}"
    turns = [f"{dialogue}_{'FM'[i % 2]}{i//2:03}" for i in range(len(codes))]
    said = texts or ["Excuse me."]*len(codes)
    for kind, text in (("EmoEvaluation", HEADER + "".join(block(*t) for t in zip(turns, codes, ratings or [(2.5, 2.5, 2.5)]*len(codes)))),
                       ("transcriptions", "".join(f"{t} [006.2901-008.2357]: {s}\n" for t, s in zip(turns, said)))):
        (session/"dialog"/kind).mkdir(parents=True, exist_ok=True)
        (session/"dialog"/kind/f"{dialogue}.txt").write_text(text, encoding="utf-8")
    folder = session/"sentences"/"wav"/dialogue
    folder.mkdir(parents=True)
    for turn in turns: os.link(wav, folder/f"{turn}.wav")
    return turns


@pytest.fixture(scope="session")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav")/"tone.wav"
    sf.write(path, 0.1*np.sin(0.1*np.arange(16_000)), 16_000)
    return path


@pytest.fixture
def corpus(tmp_path, wav):
    "Two dialogues in each session: improvised and scripted."
    for k in range(1, 6):
        for kind in ("impro01", "script01_1"): write_dialogue(tmp_path, f"Ses0{k}F_{kind}", ["neu", "ang", "hap", "exc", "sad", "xxx"], wav)
    return tmp_path


def refusal(root, **options):
    with pytest.raises(InputError) as error: iemocap(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


EVALUATION = "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"
TRANSCRIPT = "Session2/dialog/transcriptions/Ses02F_impro01.txt"
RECORDING = "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_F001.wav"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, wav):
    "A tree with the dialogues, turns and labels per session of a whole copy."
    root = tmp_path_factory.mktemp("iemocap")
    for s, n_dialogues in enumerate(DIALOGUES):
        codes = [code for code, counts in COUNTS.items() for _ in range(counts[s])]
        names = [f"Ses0{s + 1}{m}_{kind}" for m in "FM" for kind in [*(f"impro{i:02}" for i in range(1, 11)), *(f"script0{i}_{j}" for i in range(1, 4) for j in (1, 2))]]
        assert len(names) >= n_dialogues
        for i, name in enumerate(names[:n_dialogues]): write_dialogue(root, name, codes[i::n_dialogues], wav)
    return root


def test_a_whole_copy_has_the_published_counts_and_takes_seconds(whole):
    start = time.perf_counter()
    manifest = iemocap(whole)
    seconds = time.perf_counter() - start
    assert (len(manifest), manifest.table.dialogue.nunique(), manifest.table.speaker.nunique(), len(manifest.skipped)) == (10_039, 151, 10, 0)
    assert seconds < 60
    four = manifest.keep(label_set("4")).table
    assert four.label.value_counts().to_dict() == {"neutral": 1708, "happiness": 1636, "anger": 1103, "sadness": 1084}
    assert four.groupby("session").size().tolist() == [1085, 1023, 1151, 1031, 1241]
    assert {name: len(manifest.keep(label_set(name))) for name in ("4", "4-strict", "5", "6")} == {"4": 5531, "4-strict": 4490, "5": 7380, "6": 7380}


def test_labels_of_no_set_are_kept(corpus):
    manifest = iemocap(corpus)
    assert manifest.table.label.value_counts()["no-agreement"] == 10
    assert "no-agreement" not in set(manifest.keep(label_set("6")).table.label)


def test_the_last_letter_speaks(corpus):
    table = iemocap(corpus).table
    last = table["id"].str.extract(r"_([FM])\d{3}$")[0]
    assert (table.gender.str[0].str.upper() == last).all() and (table.speaker.str[-1] == last).all()
    assert set(last) == {"F", "M"}  # though all dialogues have the marker letter F


def test_ratings_are_rescaled_and_clipped_with_a_note(tmp_path, wav):
    write_dialogue(tmp_path, "Ses01F_impro01", ["neu"]*3, wav, ratings=[(1, 3, 5), (5.5, 2.5, 0.5), (4.3333, 1.6667, 3)])
    table = iemocap(tmp_path).table.set_index("id")
    ratings = table[["valence", "arousal", "dominance"]]
    assert ratings.loc["iemocap-Ses01F_impro01_F000"].tolist() == [-1, 0, 1]
    assert ratings.loc["iemocap-Ses01F_impro01_M000"].tolist() == [1, -0.25, -1]
    assert ratings.loc["iemocap-Ses01F_impro01_F001"].tolist() == pytest.approx([0.66665, -0.66665, 0])
    assert table.note.notna().sum() == 1 and table.note["iemocap-Ses01F_impro01_M000"] == "valence 5.5 taken as 5; dominance 0.5 taken as 1"


def test_text_is_text(tmp_path, wav):
    texts = ["Excuse me.", "Well \N{SMILING FACE WITH SUNGLASSES}", "word "*5000, "[LAUGHTER] No: [12.5-13.5]: yes."]
    write_dialogue(tmp_path, "Ses01F_impro01", ["neu"]*4, wav, texts=texts)
    transcript = tmp_path/"Session1/dialog/transcriptions/Ses01F_impro01.txt"
    lines = ["Ses01F_impro01_MXX0 [008.0000-009.0000]: Mmhmm.", "Ses01F_impro01_MXX0 [008.0000-009.0000]: Mmhmm.", "Ses01F_impro01_FXX0 [009.0-010.0]:", "M: sorry"]
    transcript.write_text(transcript.read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n".join(lines), encoding="utf-8")
    manifest = iemocap(tmp_path)
    assert sorted(manifest.table.text) == sorted(t.strip() for t in texts)
    write_manifest(manifest, tmp_path/"m.jsonl")
    assert read_manifest(tmp_path/"m.jsonl").fingerprint == manifest.fingerprint


def test_what_is_not_the_corpus_does_not_count(corpus):
    expected = iemocap(corpus)
    (corpus/"Session2/sentences/wav/Ses02F_impro01/._Ses02F_impro01_F001.wav").write_bytes(b"\x00\x05\x16\x07")
    (corpus/"Session2/dialog/EmoEvaluation/._Ses02F_impro01.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    for kind in ("Categorical", "Attribute", "Self-evaluation"):
        (corpus/"Session2/dialog/EmoEvaluation"/kind).mkdir()
        (corpus/"Session2/dialog/EmoEvaluation"/kind/"Ses02F_impro01_e2_cat.txt").write_text("Ses02F_impro01_F000 :Neutral state; ()\n")
    manifest = iemocap(corpus)
    assert manifest.fingerprint == expected.fingerprint and manifest.skipped == ()


def test_a_recording_without_label_and_a_missing_session_are_listed(tmp_path, wav):
    for k in (1, 2, 3, 5): write_dialogue(tmp_path, f"Ses0{k}F_impro01", ["neu", "ang"], wav)
    os.link(wav, tmp_path/"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F009.wav")
    assert [s.item for s in iemocap(tmp_path).skipped] == ["Session4", "Ses01F_impro01_F009"]


def unknown_emotion(root): edit(root/EVALUATION, "_F001\thap", "_F001\thpy"); return EVALUATION, "unknown emotion code 'hpy'. Known: ang", 1
def upper_case_emotion(root): edit(root/EVALUATION, "_F001\thap", "_F001\tHAP"); return EVALUATION, "unknown emotion code 'HAP'", 1
def broken_summary(root): edit(root/EVALUATION, "_F001\thap\t[", "_F001\thap\t"); return EVALUATION, "is not a turn's summary", 1
def impossible_rating(root): edit(root/EVALUATION, "_F001\thap\t[2.5", "_F001\thap\t[25"); return EVALUATION, "valence of Ses02F_impro01_F001 is 25", 1
def no_such_speaker(root): edit(root/EVALUATION, "_F001\thap", "_X001\thap"); return EVALUATION, "is not a turn's name", 1
def no_transcript_of_a_turn(root): edit(root/TRANSCRIPT, "_F001 ", "_F901 "); return TRANSCRIPT, "there is no transcript of Ses02F_impro01_F001", 1
def no_transcript(root): (root/TRANSCRIPT).unlink(); return TRANSCRIPT, "cannot be read (No such file", 6
def empty_transcript(root): (root/TRANSCRIPT).write_bytes(b""); return TRANSCRIPT, "the file is empty", 6
def latin_transcript(root): (root/TRANSCRIPT).write_bytes("Ses02F_impro01_F000 [006.0-008.0]: Café.".encode("latin-1")); return TRANSCRIPT, "not UTF-8 (byte 0xe9", 6
def turn_twice(root): (root/TRANSCRIPT).write_text((root/TRANSCRIPT).read_text()*2); return TRANSCRIPT, "Ses02F_impro01_F000 has two transcripts", 6
def no_recording(root): (root/RECORDING).unlink(); return RECORDING, "no such file", 1
def empty_recording(root): (root/RECORDING).unlink(); (root/RECORDING).write_bytes(b""); return RECORDING, "the file is empty", 1


TURN_FAULTS = [unknown_emotion, upper_case_emotion, broken_summary, impossible_rating, no_such_speaker, no_transcript_of_a_turn, no_transcript,
               empty_transcript, latin_transcript, turn_twice, no_recording, empty_recording]


@pytest.mark.parametrize("fault", TURN_FAULTS)
def test_a_fault_names_its_file_and_costs_only_its_turns(corpus, fault):
    expected = set(iemocap(corpus).ids)
    name, problem, n_lost = fault(corpus)
    message = refusal(corpus)
    assert message.startswith(f"{corpus/name}: ") and problem in message and "--skip-bad" in message
    manifest = iemocap(corpus, skip_bad=True)
    lost = expected - set(manifest.ids)
    assert len(lost) == n_lost and all("Ses02F_impro01" in i for i in lost)
    reasons = [s for s in manifest.skipped if problem in s.reason]
    assert len(reasons) == n_lost


@pytest.mark.parametrize("content, problem", [(b"", "the file is empty"), (HEADER.encode(), "there is no evaluated turn"), (b"\xff\xfe[", "not UTF-8")])
def test_an_evaluation_that_cannot_be_read(corpus, content, problem):
    (corpus/EVALUATION).write_bytes(content)
    message = refusal(corpus)
    assert message.startswith(f"{corpus/EVALUATION}: ") and problem in message
    manifest = iemocap(corpus, skip_bad=True)
    assert len(manifest) == 54
    assert manifest.skipped[0].item == "Ses02F_impro01" and problem in manifest.skipped[0].reason
    assert len(manifest.skipped) == 7  # the dialogue, and its six recordings that have lost their labels


def test_wrong_folders(tmp_path, corpus, wav):
    write_dialogue(tmp_path/"outer"/"IEMOCAP_full_release", "Ses01F_impro01", ["neu"], wav)
    (tmp_path/"empty").mkdir()
    assert "Give the folder that holds IEMOCAP's Session1 to Session5" in refusal(tmp_path/"nowhere")
    assert "this is a file, not a folder" in refusal(corpus/EVALUATION)
    assert refusal(tmp_path/"empty").startswith(f"{tmp_path/'empty'}: there is no Session1/dialog/EmoEvaluation")
    assert "Give IEMOCAP_full_release in it" in refusal(tmp_path/"outer")


def test_nothing_left(tmp_path, wav):
    write_dialogue(tmp_path, "Ses01F_impro01", ["bad"], wav)
    assert "no utterance in this folder can be used" in refusal(tmp_path, skip_bad=True)
