"""Notebooks as a graph: order, failures, what does not apply, what is left alone the second time, a kill in the middle. The notebooks are small ones made here."""
import io, os, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest
from rich.console import Console

from mser.core import InputError
from mser.reproduce import Request, plan, report_data, reproduce, run_notebooks
from mser.stamp import surroundings

PARAMETERS = "corpora out profile preset mode label_set protocol text_encoder audio_encoder skip_bad workers command".split()
ABOUT = {"experiments": [], "preset": "tuned", "code": "", "environment": {"packages": {}, "python": "", "system": "", "machine": ""}}
TABLE = """from pathlib import Path
from mser.core import write_json
def table(name, text):
    (Path(out)/"tables").mkdir(exist_ok=True)
    (Path(out)/"tables"/f"{name}-x.md").write_text(text)
    write_json(Path(out)/"tables"/f"{name}-x.json", {"name": f"{name}-x", "caption": text, "command": command, "group": name, "html": f"<table><tr><td>{text}</table>"})
"""


def write(folder, name, source, without=(), **needs):
    "A notebook that knows the parameters of all experiments."
    folder.mkdir(exist_ok=True)
    known = nbformat.v4.new_code_cell("\n".join(f"{p} = None" for p in PARAMETERS if p not in without), metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}, "mser": needs}
    nbformat.write(nbformat.v4.new_notebook(cells=[known, nbformat.v4.new_code_cell(TABLE + source)], metadata=metadata), folder/f"{name}.ipynb")


@pytest.fixture
def folder(tmp_path):
    "Six notebooks: three good ones, of which one comes last, one that is alone, one that breaks and one that does not apply."
    folder = tmp_path/"notebooks"
    write(folder, "first", "table('first', 'the first')", seconds=90)
    write(folder, "second", "table('second', 'after ' + (Path(out)/'tables'/'first-x.md').read_text())", after=["first"])
    write(folder, "timing", "table('timing', str(workers))", alone=True)
    write(folder, "breaks", "table('breaks', 'half')\n1/0")
    write(folder, "pairs", "class DoesNotApply(Exception): pass\nraise DoesNotApply('It needs two corpora.')")
    write(folder, "verdict", "table('verdict', ', '.join(sorted(p.stem for p in (Path(out)/'tables').glob('*.md'))))", after=["*"])
    return folder


def call(folder, only=(), **settings):
    "The executed notebooks by name, what the report says of them, and what was told. The corpora are prepared already, so to say: these notebooks read none."
    log = io.StringIO()
    request = Request({"sim-iemocap": None}, "quick", out=str(folder.parent/"out"), only=tuple(only), notebooks=str(folder), **settings)
    executed = run_notebooks(plan(request), ABOUT, Console(file=log, force_terminal=False))
    return {e.name: e for e in executed}, report_data(request, ABOUT, executed, 1.0), log.getvalue()


def read(folder, name): return (folder.parent/"out"/"tables"/f"{name}-x.md").read_text()


def test_all_notebooks_come_to_an_end_in_their_order(folder):
    executed, report, log = call(folder)
    assert read(folder, "second") == "after the first" and read(folder, "timing") == "2"
    assert read(folder, "verdict") == "breaks-x, first-x, second-x, timing-x"
    assert executed["breaks"].failure == "ZeroDivisionError: division by zero"
    assert report["failures"] == [{"notebook": "breaks", "reason": "ZeroDivisionError: division by zero"}]
    assert report["not_applicable"] == [{"notebook": "pairs", "reason": "It needs two corpora."}]
    assert "pairs: does not apply: It needs two corpora." in log and "breaks: FAILED" in log and report["preset"] == "tuned"
    assert all((folder.parent/"out"/"notebooks"/f"{name}.html").is_file() for name in executed)
    assert not list((folder.parent/"out"/"notebooks").glob(".*"))

    again, report, log = call(folder, workers=4)
    assert {name for name, e in again.items() if not e.unchanged} == {"breaks"}, log  # a broken one is tried again
    assert report["not_applicable"] == [{"notebook": "pairs", "reason": "It needs two corpora."}]

    write(folder, "first", "table('first', 'another first')")
    (folder.parent/"out"/"tables"/"timing-x.md").unlink()
    again, *_ = call(folder)
    assert {name for name, e in again.items() if not e.unchanged} == {"first", "second", "timing", "breaks", "verdict"}
    assert read(folder, "second") == "after another first"


def test_a_notebook_alone_leaves_the_tables_of_the_others_while_they_are_true(folder):
    call(folder, only=["first", "timing"])
    executed, *_ = call(folder, only=["second"])
    assert {name: e.unchanged for name, e in executed.items()} == {"first": True, "timing": True, "second": False}
    write(folder, "timing", "table('timing', 'other code')")
    executed, *_ = call(folder, only=["second"], command="mser reproduce --only second")
    assert {name: e.unchanged for name, e in executed.items()} == {"first": True, "second": True}
    assert not (folder.parent/"out"/"tables"/"timing-x.md").exists()


def test_what_an_earlier_execution_made_and_this_one_does_not_is_removed(folder):
    write(folder, "first", "table('first', 'x'); (Path(out)/'tables'/'first-old.md').write_text('x')")
    call(folder, only=["first"])
    os.utime(folder.parent/"out"/"tables"/"first-old.md", (1, 1))
    write(folder, "first", "table('first', 'y')")
    call(folder, only=["first"])
    assert sorted(p.name for p in (folder.parent/"out"/"tables").iterdir()) == ["first-x.json", "first-x.md"]


def test_a_parameter_that_a_notebook_does_not_know_is_refused_before_anything_runs(folder):
    write(folder, "verdict", "1", without=["label_set"])
    with pytest.raises(InputError, match="'label_set'.*"): call(folder)
    assert not (folder.parent/"out").exists()


@pytest.mark.parametrize("needs, words", [({"after": ["frist"]}, "Did you mean 'first'"), ({"after": ["verdict"]}, "wait for each other"), ({"seconds": -1}, "seconds")])
def test_an_order_that_cannot_be_is_refused_before_anything_runs(folder, needs, words):
    write(folder, "pairs", "1", **needs)
    if "verdict" in needs.get("after", ()): write(folder, "verdict", "1", after=["pairs"])
    with pytest.raises(InputError, match=words): call(folder)
    assert not (folder.parent/"out").exists()


def test_input_that_one_notebook_refuses_is_its_failure_and_the_others_go_on(folder):
    write(folder, "breaks", "from mser.core import InputError\nraise InputError('no such thing', 'Name another')")
    executed, report, _ = call(folder, only=["breaks", "first"])
    assert report["failures"] == [{"notebook": "breaks", "reason": "no such thing. Name another"}]
    assert (folder.parent/"out"/"notebooks"/"breaks.html").is_file() and not executed["first"].failure


def test_input_that_the_preparation_refuses_ends_the_call_before_any_notebook(folder):
    request = Request({"emodb": f"{folder}/nowhere"}, "smoke", out=str(folder.parent/"out"), notebooks=str(folder))
    with pytest.raises(InputError, match="nowhere"): reproduce(request, Console(quiet=True))
    assert not (folder.parent/"out").exists()


def test_nothing_is_made_from_tables_that_are_not_true_any_more(folder):
    call(folder, only=["first", "timing"])
    call(folder, only=["verdict"])
    assert read(folder, "verdict") == "first-x, timing-x"
    executed, *_ = call(folder, only=["verdict"], preset="paper")
    assert list(executed) == ["verdict"] and read(folder, "verdict") == "verdict-x"  # its own, from before


def test_a_smoke_run_measures_nothing_alone(folder):
    alone = lambda profile: {n.name for n in plan(Request({"sim-iemocap": None}, profile, out=str(folder.parent/"out"), notebooks=str(folder))).nodes() if n.alone}
    assert alone("quick") == {"timing"} and not alone("smoke")


def test_what_else_is_chosen_changes_nothing(folder):
    call(folder, only=["first", "second"])
    executed, *_ = call(folder, only=["second"])
    assert executed["second"].unchanged and executed["first"].unchanged
    executed, *_ = call(folder, only=["first"])
    assert executed["second"].unchanged and executed["first"].unchanged


def test_what_a_package_brings_along_for_itself_changes_nothing(tmp_path, monkeypatch):
    before = surroundings.__wrapped__()
    info = tmp_path/"_vendor"/"inner-1.0.dist-info"  # such a folder is on the path once something has imported setuptools
    info.mkdir(parents=True); (info/"METADATA").write_text("Metadata-Version: 2.1\nName: inner\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(info.parent)
    assert surroundings.__wrapped__() == before
    monkeypatch.syspath_prepend(info.parent.rename(tmp_path/"site-packages"))
    assert surroundings.__wrapped__() != before


def test_what_comes_after_something_removed_goes_with_it_and_folders_stay(folder):
    call(folder, only=["first", "second"])
    (folder.parent/"out"/"notebooks"/".ipynb_checkpoints").mkdir()
    write(folder, "first", "table('first', 'another first')")
    executed, *_ = call(folder, only=["timing"])
    assert list(executed) == ["timing"] and [p.name for p in (folder.parent/"out"/"tables").glob("*.md")] == ["timing-x.md"]
    assert (folder.parent/"out"/"notebooks"/".ipynb_checkpoints").is_dir()


SLOW = "import os, time\n(Path(out)/f'pid-{os.getpid()}').touch()\nif not (Path(out)/'let-go').exists(): time.sleep(600)\ntable('NAME', 'done')"
CALL = """
import sys
from rich.console import Console
from mser.reproduce import Request, plan, run_notebooks
if __name__ == "__main__": run_notebooks(plan(Request({"sim-iemocap": None}, "smoke", out=sys.argv[2], notebooks=sys.argv[1])), {}, Console(quiet=True))
"""


def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("stop", [lambda p: os.kill(p.pid, signal.SIGKILL), lambda p: os.kill(p.pid, signal.SIGINT)], ids=["killed", "ctrl-c"])
def test_stopped_in_the_middle_it_leaves_no_process_and_goes_on(tmp_path, stop):
    folder, out = tmp_path/"notebooks", tmp_path/"out"
    for name in ("slow", "slower"): write(folder, name, SLOW.replace("NAME", name), after=["quick"])
    write(folder, "quick", "table('quick', 'done')")
    (tmp_path/"call.py").write_text(CALL)
    process = subprocess.Popen([sys.executable, tmp_path/"call.py", folder, out], stderr=subprocess.DEVNULL, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # tests that a shell runs in the background ignore Ctrl-C, and so would this
    deadline = time.time() + 120
    while len(pids := [p.name.removeprefix("pid-") for p in out.glob("pid-*")]) < 2 and time.time() < deadline and process.poll() is None: time.sleep(0.1)
    assert len(pids) == 2 and all(map(alive, pids))
    stop(process)
    process.wait(timeout=30)
    deadline = time.time() + 30
    while any(map(alive, pids)) and time.time() < deadline: time.sleep(0.2)
    assert not any(map(alive, pids)) and not list(out.glob("tables/slow*"))

    (out/"let-go").touch()
    request = Request({"sim-iemocap": None}, "smoke", out=str(out), notebooks=str(folder))
    executed = run_notebooks(plan(request), {}, Console(quiet=True))
    assert {e.name: (e.unchanged, e.failure) for e in executed} == {"quick": (True, ""), "slow": (False, ""), "slower": (False, "")}
    assert not list((out/"notebooks").glob(".*"))
