"`mser corpus` on simulated and real data: what it prints, what it writes, how it exits."
import json, re

import numpy as np, pandas as pd, pytest, soundfile
from typer.testing import CliRunner

from mser.cli_corpus import corpus_app
from mser.core import InputError
from mser.protocols import Splits


def call(*arguments): return CliRunner().invoke(corpus_app, [str(a) for a in arguments])


def test_a_leak_fails_only_when_asked():
    for options, code in ((["--protocol", "random", "--fail-on-leak"], 1), (["--protocol", "random"], 0), (["--fail-on-leak"], 0)):
        done = call("audit", "--corpus", "sim-cremad", *options)
        assert done.exit_code == code, done.output
        assert ("leaks in sim-cremad" in done.stderr) == (code == 1)
        assert ("Speakers are shared" in done.stdout) == ("random" in options)


def test_recordings_and_encoder_of_a_real_tree(copy_of_small_emodb):
    wavs = sorted((copy_of_small_emodb/"wav").glob("*.wav"))
    wavs[-1].write_bytes(wavs[0].read_bytes())  # another speaker's
    done = call("audit", "--corpus", f"emodb={copy_of_small_emodb}", "--encoder", "egemaps", "--encoder", "minilm", "--fail-on-leak", "--workers", 1)
    assert done.exit_code == 1 and "Leaks: file, sound." in done.stdout and "egemaps has not seen emodb" in done.stdout
    without = call("audit", "--corpus", f"emodb={copy_of_small_emodb}", "--no-audio", "--fail-on-leak")
    assert without.exit_code == 0 and "the recordings" in without.stdout


@pytest.mark.parametrize("encoder, level", [("emotion2vec_plus_large@bf16", "leak"), ("iic/emotion2vec_base", "fine"), ("emotion2vec/emotion2vec_plus_seed", "leak"),
                                            ("facebook/hubert-base-ls960@layer9", "fine"), ("bert", "fine"), ("org/some-model", "caution"), ("FOLDER", "caution")])
def test_encoders_are_asked_by_name_and_never_loaded(small_emodb, tmp_path, monkeypatch, encoder, level):
    def refuse(*_, **__): raise AssertionError("an encoder was loaded")
    monkeypatch.setattr("mser.encoders.registry.load_encoder", refuse)
    monkeypatch.setattr("mser.encoders.networks.snapshot_download", refuse)
    if encoder == "FOLDER":
        (folder := tmp_path/"iic"/"emotion2vec_plus_large").mkdir(parents=True)
        (folder/"config.yaml").write_text("model: Emotion2vec")
        encoder = str(folder)
    done = call("audit", "--corpus", f"emodb={small_emodb}", "--encoder", encoder, "--no-audio", "--fail-on-leak")
    [row] = [line for line in done.stdout.splitlines() if re.search(r"│ encoder +│", line)]
    assert row.split("│")[1].strip() == level and done.exit_code == (level == "leak"), done.stdout


@pytest.fixture
def emobox_lists(tmp_path):
    "Lists like ESD's in EmoBox, with recordings in another place: the folder of the lists, and where the recordings are."
    lists, recordings = tmp_path/"EmoBox"/"esd", tmp_path/"sound"/"of"/"esd"
    records = [{"key": f"esd-{s}_{n:06}", "dataset": "esd", "wav": f"downloads/esd/{s}_{n:06}.wav", "emo": ["Angry", "Sad"][n % 2], "length": 0.1}
               for s in ("0001", "0002", "0003", "0004") for n in range(4)]
    parts = {"esd.jsonl": records, "fold_1/esd_train_fold_1.jsonl": records[:8], "fold_1/esd_test_fold_1.jsonl": records[8:]}
    for name, part in parts.items():
        (lists/name).parent.mkdir(parents=True, exist_ok=True)
        (lists/name).write_text("".join(json.dumps(r) + "\n" for r in part))
    recordings.mkdir(parents=True)
    for k, r in enumerate(records): soundfile.write(recordings/r["wav"].split("/")[-1], 0.1*np.sin(0.05*(k + 2)*np.arange(1600)), 16_000)
    return lists, tmp_path/"sound"


SPEAKER = r"-(\d{4})_"


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_corpus_of_emobox_becomes_a_table_that_every_command_takes(emobox_lists, tmp_path, suffix):
    (lists, sound), out = emobox_lists, tmp_path/f"esd.{suffix}"
    beside = call("manifest", f"emobox={lists}", "--speaker", SPEAKER, "--audio-root", sound/"of"/"esd", "--out", tmp_path/"tables"/out.name)
    assert isinstance(beside.exception, InputError) and f"for example into {tmp_path}" in str(beside.exception) and not (tmp_path/"tables").exists()
    done = call("manifest", f"emobox={lists}", "--speaker", SPEAKER, "--audio-root", sound/"of"/"esd", "--out", out)
    assert done.exit_code == 0 and "16 utterances, 4 speakers" in done.stdout, done.output
    audited = call("audit", "--corpus", f"esd={out}", "--protocol", "folds", "--workers", 1)
    assert audited.exit_code == 0 and "the recordings" not in audited.stdout and "Speaker-independent" in audited.stdout  # they were found and decoded
    direct = call("splits", "--corpus", f"emobox={lists}", "--speaker", SPEAKER, "--audio-root", sound/"of"/"esd", "--protocol", "loso")
    table = call("splits", "--corpus", f"esd={out}", "--protocol", "loso")
    assert direct.exit_code == table.exit_code == 0
    assert re.search("fingerprint (.*)", direct.stdout)[1] == re.search("fingerprint (.*)", table.stdout)[1]


@pytest.mark.parametrize("command", ["audit", "splits", "manifest"])
def test_help_teaches_the_options_of_emobox(command):
    said = " ".join(call(command, "--help").stdout.replace("│", " ").split())
    assert "--speaker" in said and "--audio-root" in said and r"'-(\d{4})_' for esd-0001_000351" in said


def test_options_of_emobox_are_refused_where_they_mean_nothing(emobox_lists, small_emodb, tmp_path):
    lists, sound = emobox_lists
    for corpus, options, message in (
            (f"emodb={small_emodb}", ["--speaker", SPEAKER], "corpus 'emodb' has no --speaker"), ("sim-cremad", ["--audio-root", sound], "corpus 'sim-cremad' has no --audio-root"),
            (f"emobox={lists}", ["--speaker", "-(\\d"], "is no pattern"), (f"emobox={lists}", ["--speaker", "-\\d"], "has 0 groups"),
            (f"emobox={lists}", ["--audio-root", tmp_path/"EmoBox"], "recordings such as downloads/esd/0001_000000.wav are not there. Give their folder with --audio-root"),
            (f"emobox={lists}", ["--audio-root", sound/"of"/"esd", "--speaker", "(x)"], "there is no speaker in 'esd-0001_000000'")):
        refused = call("manifest", corpus, *options, "--out", tmp_path/"out"/"m.csv").exception
        assert isinstance(refused, InputError) and message in str(refused) and "\n" not in str(refused), refused
    assert not (tmp_path/"out").exists()
def test_unknown_speakers_and_utterances_without_a_fold_are_said(tmp_path):
    n = 60
    table = pd.DataFrame({"id": [f"u{i:02}" for i in range(n)], "corpus": "mine", "text": "", "label": ["anger", "joy", "fear"]*20, "speaker": "unknown",
                          "fold": [None, "1", "2", "3", "1", "2"]*10})
    table.to_json(tmp_path/"mine.jsonl", orient="records", lines=True)
    shown = call("splits", "--corpus", f"mine={tmp_path/'mine.jsonl'}", "--protocol", "folds").stdout
    assert "utterances (speakers are not recorded)" in shown and " of " not in shown.split("\n10 of 60")[0]
    assert "10 of 60 utterances are in no part of a fold: u00, u06, u12 and 7 others" in shown
    audited = call("audit", "--corpus", f"mine={tmp_path/'mine.jsonl'}", "--protocol", "folds").stdout
    assert "Speakers are not recorded." in audited and "left out" in audited
    refused = call("splits", "--corpus", f"mine={tmp_path/'mine.jsonl'}").exception  # loso
    assert "needs a speaker for every utterance, 60 of 60 in mine have none. Fill in column speaker" in str(refused)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_splits_are_written(tmp_path, suffix):
    out = tmp_path/f"few.{suffix}"
    done = call("splits", "--corpus", "sim-cremad", "--budget", "10%", "--seed", 3, "--out", out)
    assert done.exit_code == 0 and "speaker-kfold/10%" in done.stdout and "fingerprint" in done.stdout
    table = pd.read_csv(out) if suffix == "csv" else Splits.load(out).table
    assert list(table) == ["id", "fold", "part"] and set(table.fold) == set(range(5))


def test_overlaps_are_written(tmp_path):
    assert call("audit", "--out", tmp_path/"overlaps.csv").exit_code == 0
    assert set(pd.read_csv(tmp_path/"overlaps.csv").corpus) == {"sim-iemocap", "sim-cremad"}


@pytest.mark.parametrize("arguments, message", [
    (["splits", "--corpus", "sim-cremad", "--out", "x.txt"], "splits cannot be a .txt file"),
    (["audit", "--corpus", "sim-cremad", "--out", "x.parquet"], "cannot be a .parquet file"), (["splits", "--out", "x.csv"], "--out takes one corpus"),
    (["splits", "--corpus", "nope"], "unknown corpus"), (["audit", "--corpus", "emodb"], "emodb needs a folder"),
    (["audit", "--corpus", "sim-cremad", "--label-set", "9"], "unknown label set"), (["audit", "--corpus", "sim-cremad", "--budget", "2"], "a budget of 2 leaves"),
    (["splits", "--corpus", "sim-cremad", "--full-validation"], "Give --budget too"),
    (["audit", "--corpus", "sim-cremad", "--encoder", "./nowhere"], "there is no such folder"), (["audit", "--corpus", "sim-cremad", "--encoder", "bert@fast"], "unknown encoder option")])
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = call(*arguments).exception
    assert isinstance(refused, InputError) and message in str(refused) and "\n" not in str(refused)
    assert not list(tmp_path.iterdir())
