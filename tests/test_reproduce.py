"""The whole way from a folder of recordings to a report, as a user meets it: the command, its faults, a kill in the middle."""
import os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from mser.core import read_json

MSER = Path(sys.executable).parent/"mser"
SMOKE = ["--profile", "smoke", "--workers", "2", "--only", "in_domain"]
NO_RUNS = ["--profile", "smoke", "--workers", "2", "--only", "combined"] # says of one corpus that it does not apply


def mser(*arguments, cwd=None, timeout=300):
    "Run the command as a user would."
    return subprocess.run([MSER, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=timeout)


def reproduce(corpus, out, *more, what=SMOKE): return mser("reproduce", "--corpus", corpus, "--out", out, *what, *more)


def table(out, corpus="emodb"):
    "The numbers of a table, without the one column that is a duration."
    return pd.read_csv(Path(out)/"tables"/f"in_domain-{corpus}.csv").drop(columns="seconds")


def files(out, name): return {p: p.stat().st_mtime_ns for p in (Path(out)/name).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(small_emodb, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = reproduce(f"emodb={small_emodb}", out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_writes_report_tables_figures_and_notebook(undisturbed):
    out, done = undisturbed
    assert done.stdout.strip().endswith("report.html")
    for path in ("report.html", "tables/in_domain-emodb.csv", "tables/in_domain-emodb.md", "tables/in_domain-emodb.tex",
                 "figures/in_domain-emodb-2-confusion.png", "figures/in_domain-emodb-2-confusion.svg", "notebooks/in_domain.ipynb", "notebooks/in_domain.html"):
        assert (out/path).stat().st_size > 500, path
    rows = table(out)
    networks = [f"{name}, {preset}" for preset in ("paper", "tuned") for name in ("text only", "audio only", "cross-attention", "full model")]
    assert rows["row"].tolist() == ["majority class", "linear probe, text", "linear probe, audio", "linear probe", "late fusion", *networks]
    assert rows["ua"].between(0, 1).all() and (rows["runs"] == 2).all()


def test_report_needs_no_network_and_its_links_exist(undisturbed):
    out, _ = undisturbed
    html = (out/"report.html").read_text()
    links = re.findall(r'(?:href|src)="([^"#]+)"', html)
    assert links and all(link.startswith("data:") or (out/link).exists() for link in links)
    assert "imulated" not in html  # real recordings are not called simulated


def test_second_call_computes_nothing_and_shows_the_same(undisturbed, small_emodb):
    out, _ = undisturbed
    runs, features, before = files(out, "runs"), files(out, "features"), table(out)
    done = reproduce(f"emodb={small_emodb}", out)
    assert done.returncode == 0 and "0 runs computed now" in done.stderr
    assert files(out, "runs") == runs and files(out, "features") == features
    pd.testing.assert_frame_equal(table(out), before)


def test_killed_in_the_middle_it_finishes_with_the_same_table(undisturbed, small_emodb, tmp_path):
    out, _ = undisturbed
    command = [MSER, "reproduce", "--corpus", f"emodb={small_emodb}", "--out", tmp_path, *SMOKE]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 200
    while len(list(tmp_path.glob("runs/*/metrics.json"))) < 3 and process.poll() is None and time.time() < deadline: time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done_before = len(list(tmp_path.glob("runs/*/metrics.json")))
    assert 3 <= done_before < 26 and not (tmp_path/"report.html").exists()
    wait_until_alone(tmp_path)
    done = reproduce(f"emodb={small_emodb}", tmp_path)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(table(tmp_path), table(out))


def wait_until_alone(out, seconds=20):
    "Orphans of a killed call must end by themselves."
    deadline = time.time() + seconds
    while time.time() < deadline:
        alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
        if str(out) not in alive and not _children_of(out): return
        time.sleep(0.5)
    raise AssertionError("processes of a killed call are still running")


def _children_of(out):
    "Processes that hold the output folder in their environment or arguments are gone when no file in it changes any more."
    before = files(out, "runs"); time.sleep(2)
    return files(out, "runs") != before


def test_simulated_default_is_labelled_simulated(tmp_path):
    done = mser("reproduce", "--corpus", "sim-iemocap", "--out", tmp_path, *SMOKE)
    assert done.returncode == 0, done.stderr
    assert "Simulated data" in (tmp_path/"report.html").read_text()
    assert "Simulated data" in (tmp_path/"tables"/"in_domain-sim-iemocap.md").read_text()
    assert "Simulated data" in (tmp_path/"tables"/"in_domain-sim-iemocap.tex").read_text()


def refused(done, *words):
    "One clear line, exit code 2."
    lines = [line for line in done.stderr.splitlines() if line.startswith("mser: ")]
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words: assert word in lines[0], lines[0]
    assert "report.html" not in done.stdout


def test_path_that_does_not_exist(tmp_path):
    refused(reproduce(f"emodb={tmp_path}/nowhere", tmp_path/"out"), "nowhere")
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("arguments", [["--corpus", "emobd=."], ["--protocol", "losso"], ["--label-set", "9"], ["--audio-encoder", "egmaps", "--corpus", "emodb=."]])
def test_a_refused_name_leaves_nothing_and_removes_nothing(arguments, tmp_path):
    (tmp_path/"kept"/"runs").mkdir(parents=True)
    (tmp_path/"kept"/"runs"/"earlier").touch()
    refused(mser("reproduce", *arguments, "--out", tmp_path/"out", *SMOKE))
    refused(mser("reproduce", *arguments, "--out", tmp_path/"kept", "--fresh", *SMOKE))
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["kept", "kept/runs", "kept/runs/earlier"]


LOADED = """
import sys
from mser.prepare import prepare
prepared = prepare("emodb", sys.argv[1], sys.argv[2])
print(len(prepared.manifest), [m for m in ("transformers", "opensmile", "funasr") if m in sys.modules])
"""


def test_what_is_finished_needs_no_encoder(undisturbed, small_emodb):
    done = subprocess.run([sys.executable, "-c", LOADED, small_emodb, undisturbed[0]], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "84 []", done.stdout + done.stderr


def test_bad_input_leaves_an_earlier_report_alone(undisturbed, tmp_path):
    out, _ = undisturbed
    refused(reproduce(f"emodb={tmp_path}/nowhere", out), "nowhere")
    assert (out/"report.html").exists() and len(table(out)) == 13


def test_protocol_and_label_set_are_one_flag_each(undisturbed, small_emodb, tmp_path):
    out = shutil.copytree(undisturbed[0], tmp_path/"out")
    done = reproduce(f"emodb={small_emodb}", out, "--protocol", "random", "--label-set", "4")
    assert done.returncode == 0, done.stderr
    markdown = (out/"tables"/"in_domain-emodb-4-classes.md").read_text()
    assert "4 classes" in markdown and "speakers shared" in markdown
    assert not (out/"tables"/"in_domain-emodb.md").exists()  # what this request would not make
    assert "Leaks: speaker" in (out/"notebooks"/"in_domain.ipynb").read_text()


def test_empty_folder(tmp_path):
    (tmp_path/"empty").mkdir()
    refused(reproduce(f"emodb={tmp_path}/empty", tmp_path/"out"), "empty")


def truncated(folder): (wav := folder/"wav"/"03a01Wa.wav").write_bytes(wav.read_bytes()[:5000])
def no_samples(folder): (wav := folder/"wav"/"03a01Wa.wav").write_bytes(_wav_header())
def unknown_code(folder): shutil.move(folder/"wav"/"03a01Wa.wav", folder/"wav"/"03a01Xa.wav")


def _wav_header():
    import io, soundfile
    buffer = io.BytesIO(); soundfile.write(buffer, [], 16000, format="WAV"); return buffer.getvalue()


@pytest.mark.parametrize("spoil, name", [(truncated, "03a01Wa"), (no_samples, "03a01Wa"), (unknown_code, "03a01Xa")])
def test_bad_recording_is_refused_and_leaves_no_result(copy_of_small_emodb, tmp_path, spoil, name):
    spoil(copy_of_small_emodb)
    refused(reproduce(f"emodb={copy_of_small_emodb}", tmp_path/"out"), name)
    assert not (tmp_path/"out").exists()


NOISY = "import atexit, os, sys; atexit.register(os.write, 2, b'ERROR of the process\\n'); os.write(2, b'raw\\n'); print('of a cell', file=sys.stderr)"
KILLED = "import os; os.write(2, b'cannot allocate\\n'); os.kill(os.getpid(), 9)"
EXECUTE = "import sys; from pathlib import Path; from mser.reproduce import execute; print(execute(Path(sys.argv[1]), {}, Path(sys.argv[2])).failure)"


@pytest.mark.parametrize("source, shown, failure", [(NOISY, "of a cell\n", ""), (KILLED, "", "Kernel died: killed by SIGKILL, cannot allocate")])
def test_what_a_kernel_prints_itself_stays_off_the_terminal(tmp_path, source, shown, failure):
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=kernel), tmp_path/"some.ipynb")
    done = subprocess.run([sys.executable, "-c", EXECUTE, tmp_path/"some.ipynb", tmp_path/"out"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout) == (0, shown, failure + "\n")
    assert (tmp_path/"out"/"notebooks"/"some.html").exists()


def test_skip_bad_lists_what_it_skipped(copy_of_small_emodb, tmp_path):
    truncated(copy_of_small_emodb)
    (copy_of_small_emodb/"wav"/"03a01Ta.wav").write_bytes(_wav_header())
    done = reproduce(f"emodb={copy_of_small_emodb}", tmp_path/"out", "--skip-bad", what=NO_RUNS)
    assert done.returncode == 0, done.stderr
    html = (tmp_path/"out"/"report.html").read_text()
    assert "2 utterances could not be used" in html and "03a01Wa" in html and "03a01Ta" in html


@pytest.fixture
def manifest(copy_of_small_emodb):
    "A table beside its recordings, and where to write it."
    wavs = sorted((copy_of_small_emodb/"wav").glob("*.wav"))
    emotion = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral"}
    return pd.DataFrame({"id": [w.stem for w in wavs], "corpus": "mine", "audio": [f"wav/{w.name}" for w in wavs], "text": "a sentence",
                         "label": [emotion[w.stem[5]] for w in wavs], "speaker": [w.stem[:2] for w in wavs]}), copy_of_small_emodb/"mine.csv"


def test_manifest_of_ones_own(manifest, tmp_path):
    table_of_mine, path = manifest
    table_of_mine.to_csv(path, index=False)
    done = reproduce(f"mine={path}", tmp_path/"out", what=NO_RUNS)
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path/"out"/"report.json")
    assert any("84 utterances" in str(said) for said in report["provenance"].values()) and report["not_applicable"][0]["notebook"] == "combined"


def test_manifest_with_duplicate_id(manifest, tmp_path):
    table_of_mine, path = manifest
    pd.concat([table_of_mine, table_of_mine.iloc[:1]]).to_csv(path, index=False)
    refused(reproduce(f"mine={path}", tmp_path/"out"), "mine.csv", table_of_mine["id"][0])


def test_manifest_with_missing_column(manifest, tmp_path):
    table_of_mine, path = manifest
    table_of_mine.rename(columns={"speaker": "speeker"}).to_csv(path, index=False)
    refused(reproduce(f"mine={path}", tmp_path/"out"), "mine.csv", "speaker")


@pytest.mark.parametrize("arguments, word", [
    (["reproduce", "--corpus", "emobd=."], "'emodb'"), (["reproduce", "--only", "in_domian"], "'in_domain'"),
    (["reproduce", "--protocol", "losso", "--corpus", "sim-iemocap"], "'loso'")])
def test_misspelt_name_is_refused_with_the_nearest(arguments, word, tmp_path): refused(mser(*arguments, "--out", tmp_path, *SMOKE), word)


@pytest.mark.parametrize("arguments, word", [(["reproduce", "--corpsu", "emodb=."], "--corpus"), (["reprodcue"], "reproduce"),
                                             (["reproduce", "--profile", "quik"], "quick")])
def test_misspelt_option_is_refused_with_the_nearest(arguments, word):
    done = mser(*arguments)
    assert done.returncode == 2 and word in done.stderr


@pytest.mark.parametrize("command", [[], ["reproduce"], ["corpora"], ["predict"]])
def test_help_reads_and_is_quick(command):
    start = time.perf_counter()
    done = mser(*command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout and len(done.stdout.splitlines()) > 5
    assert time.perf_counter() - start < 5  # torch alone takes longer on a slow disk


def test_predict_with_a_kept_model(undisturbed, small_emodb):
    done = mser("predict", small_emodb/"wav"/"03a01Wa.wav", "--text", "Der Lappen liegt auf dem Eisschrank.", "--out", undisturbed[0])
    assert done.returncode == 0, done.stderr
    assert "anger" in done.stdout and "valence" in done.stdout
