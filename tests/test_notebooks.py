"""What nbdev passes over in silence: stale modules, twins, broken or unclean notebooks, lost papermill tags, a README that has drifted."""
import json, re, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest

from mser.core import project_root
from mser.publish import readme_text

ROOT = project_root()
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
IDS = [p.relative_to(ROOT/"nbs").as_posix() for p in NOTEBOOKS]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks and settings alone, exported and cleaned somewhere else."
    copy = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT/"nbs", copy/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py"): shutil.copy(ROOT/name, copy)
    (copy/"mser").mkdir()
    (copy/"mser"/"__init__.py").write_text((ROOT/"mser"/"__init__.py").read_text())
    for command in ("nbdev_export", "nbdev_clean"):
        done = subprocess.run([Path(sys.executable).parent/command], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def modules(root): return {p.relative_to(root).as_posix(): p.read_text() for p in (root/"mser").rglob("*.py")}


def test_package_is_what_the_notebooks_export(copy):
    ours, exported = modules(ROOT), modules(copy)
    assert set(ours) == set(exported), "a module without a notebook, or a notebook that was not exported: run nbdev_export"
    different = [name for name in ours if ours[name] != exported[name]]
    assert not different, f"not what the notebooks export: {different}"


@each_notebook
def test_notebook_is_valid_and_clean(path, copy):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.read_text() == (copy/path.relative_to(ROOT)).read_text(), "run nbdev_clean"


@each_notebook
def test_notebook_is_committed_with_its_outputs(path):
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    outputs = [o for c in code for o in c.get("outputs", [])]
    assert outputs or not code, "run it top to bottom"
    assert not [o for o in outputs if o.output_type == "error"]
    text = json.dumps(outputs)
    assert not re.search(r"/home/|/root/|/Users/|/tmp/\w|site-packages", text), "a path of somebody's machine in an output"


@each_notebook
def test_notebook_opens_with_title_and_subtitle(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n\n> .+", first.source)


def test_no_two_notebooks_export_one_module():
    exports = [m for p in NOTEBOOKS for m in re.findall(r"#\| default_exp ([\w.]+)", "\n".join(c.source for c in nbformat.read(p, as_version=4).cells))]
    assert len(exports) == len(set(exports))


@pytest.mark.parametrize("path", sorted((ROOT/"nbs"/"experiments").glob("*.ipynb")), ids=lambda p: p.stem)
def test_experiment_keeps_its_parameters_tag(path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1, "papermill would run the defaults without a word"
    for line in tagged[0].source.splitlines(): assert "#" in line, f"a parameter that is not explained: {line}"


def test_readme_is_the_index_notebook():
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme_text(ROOT/"nbs"/"index.ipynb"), "run: make readme"


def test_pins_cover_what_the_settings_ask_for():
    settings = (ROOT/"settings.ini").read_text()
    wanted = re.findall(r"^(?:dev_)?requirements = (.+)$", settings, flags=re.M)
    names = {re.split(r"[<>=\[]", r)[0].lower().replace("_", "-") for line in wanted for r in line.split()}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT/"constraints.txt").read_text().splitlines() if "==" in line}
    assert not names - pinned
