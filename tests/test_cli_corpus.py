"`mser corpus` on simulated and real data: what it prints, what it writes, how it exits."
import pandas as pd, pytest
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
    (["splits", "--corpus", "sim-cremad", "--full-validation"], "Give --budget too")])
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = call(*arguments).exception
    assert isinstance(refused, InputError) and message in str(refused) and "\n" not in str(refused)
    assert not list(tmp_path.iterdir())
