"Bad EmoDB folders and files: one line that names the file and says what to do."
import numpy as np, pytest, soundfile as sf

from mser.core import InputError
from mser.corpora.emodb import emodb


@pytest.fixture
def corpus(tmp_path):
    wav = tmp_path/"emodb"/"wav"
    wav.mkdir(parents=True)
    for name in ("03a01Fa", "03a02Wb", "08a01Na"): tone(wav/f"{name}.wav")
    return wav


def tone(path, n=8_000): sf.write(path, 0.1 * np.sin(np.arange(n)), 16_000)


def refusal(root, **options):
    with pytest.raises(InputError) as error: emodb(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_either_folder_gives_the_same_corpus(corpus):
    assert emodb(corpus).fingerprint == emodb(corpus.parent).fingerprint
    assert emodb(corpus).audio_paths() == sorted(corpus.iterdir())


def test_other_files_and_hidden_ones_do_not_count(corpus):
    expected = emodb(corpus).fingerprint
    (corpus/"._03a01Fa.wav").write_bytes(b"\x00\x05\x16\x07")
    (corpus/"notes.txt").write_text("not a recording")
    assert emodb(corpus).fingerprint == expected


def test_no_such_folder(tmp_path):
    assert refusal(tmp_path/"nowhere") == f"{tmp_path/'nowhere'}: there is no such folder. Give the folder that holds EmoDB's wav/"


def test_a_file_instead_of_a_folder(corpus):
    assert refusal(corpus/"03a01Fa.wav").startswith(f"{corpus/'03a01Fa.wav'}: this is a file, not a folder.")


@pytest.mark.parametrize("inside", ["", "wav"])
def test_an_empty_folder(tmp_path, inside):
    (tmp_path/inside).mkdir(exist_ok=True)
    assert refusal(tmp_path) == f"{tmp_path/inside}: there are no wav files in this folder. Give the folder that holds EmoDB's wav/"


def unknown_emotion(wav): tone(wav/"03a04Xd.wav"); return "03a04Xd.wav", "unknown emotion code 'X'. Known: W, L, E, A, F, N, T"
def lower_case_emotion(wav): tone(wav/"03a04wd.wav"); return "03a04wd.wav", "unknown emotion code 'w'"
def unknown_speaker(wav): tone(wav/"07a04Wd.wav"); return "07a04Wd.wav", "unknown speaker '07'"
def unknown_sentence(wav): tone(wav/"03a03Wd.wav"); return "03a03Wd.wav", "unknown sentence code 'a03'"
def misnamed(wav): tone(wav/"angry speech.wav"); return "angry speech.wav", "SSTTTEV.wav"
def no_samples(wav): tone(wav/"03a04Wd.wav", 0); return "03a04Wd.wav", "no samples"
def empty(wav): (wav/"03a04Wd.wav").write_bytes(b""); return "03a04Wd.wav", "empty (0 bytes)"
def not_audio(wav): (wav/"03a04Wd.wav").write_text("<html>404</html>"); return "03a04Wd.wav", "not audio"


def truncated(wav):
    tone(wav/"03a04Wd.wav")
    data = (wav/"03a04Wd.wav").read_bytes()
    (wav/"03a04Wd.wav").write_bytes(data[:len(data)//2])
    return "03a04Wd.wav", "truncated"


FAULTS = [unknown_emotion, lower_case_emotion, unknown_speaker, unknown_sentence, misnamed, no_samples, empty, not_audio, truncated]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_recording_is_named_with_a_remedy(corpus, fault):
    name, problem = fault(corpus)
    message = refusal(corpus)
    assert message.startswith(f"{corpus/name}: ") and problem in message and "pass --skip-bad" in message


@pytest.mark.parametrize("fault", FAULTS)
def test_skip_bad_lists_it_and_keeps_the_rest(corpus, fault):
    expected = emodb(corpus).fingerprint
    name, problem = fault(corpus)
    manifest = emodb(corpus, skip_bad=True)
    assert manifest.fingerprint == expected
    assert [item for item, _ in manifest.skipped] == [name] and problem in manifest.skipped[0].reason


def test_nothing_left(tmp_path):
    unknown_emotion(tmp_path)
    assert "no utterance in this folder can be used, the first of 1 reasons: 03a04Xd.wav" in refusal(tmp_path, skip_bad=True)
