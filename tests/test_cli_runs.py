"The commands of runs, as a user calls them."
import json, os, re, shutil, subprocess, sys, time

import pandas as pd, pytest
from filelock import FileLock
from hypothesis import given, settings, strategies as st

import mser.cli
from mser.cli_runs import Kind, State, StoredRun, delete, differing, find_run, flatten, kind_of, plan, runs_in, sparkline, starts_from
from mser.core import InputError, digest, write_json
from mser.labels import LabelSet
from mser.runs import DataSpec, LinearProbe, Majority, Result, RunSpec, RunStore, code_fingerprint

LAUNCH = "import sys; from mser.cli import main; sys.argv[0] = 'mser'; main()"
LABELS = LabelSet(name="2", classes=("anger", "sadness"))


def run(*arguments, cwd):
    "The command in a process of its own."
    return subprocess.run([sys.executable, "-c", LAUNCH, "runs", *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | {"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def here(monkeypatch, capfd):
    "The command in this process, which is faster: exit code, stdout, stderr."
    def call(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["mser", "runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit: mser.cli.main()
        said = capfd.readouterr()
        return exit.value.code, said.out, said.err
    return call


def spec(fold=0, seed=0, method=Majority(), code=None, corpus="mine"):
    data = DataSpec(corpus=corpus, manifest="m", text="t", audio="a", splits="s", label_set=LABELS)
    return RunSpec(data=data, fold=fold, seed=seed, method=method, code=code or code_fingerprint())


def predictions(right, speakers=("a", "b", "c", "d")):
    "Four utterances of each speaker; those in `right` are predicted correctly."
    rows = [{"id": f"{s}{i}", "part": "test", "speaker": s, "label": LABELS.classes[i % 2]} for s in speakers for i in range(4)]
    other = dict(zip(LABELS.classes, LABELS.classes[::-1]))
    return pd.DataFrame([r | {"predicted": r["label"] if r["id"] in right else other[r["label"]]} for r in rows])


def finished(store, spec, right=("a0", "b0"), ua=0.5, history=(2.0, 1.0)):
    "Write a run as the store does."
    metrics = {part: {"ua": ua, "wa": ua, "wf1": ua, "macro_f1": ua} for part in ("val", "test")} | {"n_val": 4, "n_test": 16}
    store.save(spec, Result(metrics, predictions(right), pd.DataFrame({"epoch": range(len(history)), "loss": history})), 1.5)
    return store.folder(spec.hash)


@pytest.fixture
def store(tmp_path): return RunStore(tmp_path/"work"/"runs")


def unfinished(store, spec, hours=3.0, **files):
    "What a killed process leaves."
    folder = store.folder(spec.hash)
    for name, value in {"spec": spec.model_dump(mode="json"), **files}.items(): write_json(folder/f"{name}.json", value)
    for path in (*folder.iterdir(), folder): os.utime(path, (time.time() - 3600*hours,)*2)
    return folder


def listed(here, tmp_path, *options):
    code, out, err = here("list", "--out", "work", "--json", *options, cwd=tmp_path)
    assert code == 0 and err == ""
    return {row["hash"]: row for row in json.loads(out)}


def refused(answer, *parts):
    "One line, exit code 2, no traceback."
    code, out, err = answer
    assert code == 2 and not out and err.startswith("mser: ") and len(err.splitlines()) == 1, (code, out, err)
    for part in parts: assert part in err, err


def test_list_says_what_each_run_is_and_how_far_it_got(here, store, tmp_path):
    done = finished(store, spec(), ua=0.75)
    killed = unfinished(store, spec(seed=1))
    failed = unfinished(store, spec(seed=2, method=LinearProbe()), failed={"error": "no memory\nleft"})
    broken = finished(store, spec(seed=3))
    (broken/"metrics.json").write_text('{"val": ')
    (store.root/"notes").mkdir(); (store.root/"README").write_text("mine")
    rows = listed(here, tmp_path)
    assert {h: r["state"] for h, r in rows.items()} == {done.name: "done", killed.name: "unfinished", failed.name: "failed", broken.name: "damaged"}
    assert [rows[done.name][k] for k in ("label", "corpus", "fold", "seed", "val_ua", "test_ua", "seconds")] == ["majority class", "mine", 0, 0, 0.75, 0.75, 1.5]
    assert rows[failed.name]["failure"] == "no memory left" and rows[failed.name]["test_ua"] is None
    assert set(listed(here, tmp_path, "--what", "PROBE")) == {failed.name} and set(listed(here, tmp_path, "--state", "damaged", "--seed", 3)) == {broken.name}
    code, out, _ = here("list", "--out", "work", cwd=tmp_path)
    assert code == 0 and "4 runs" in out and all(h in out for h in rows) and "failed: no memory left" in out


def test_list_in_a_pipe_is_json_and_quick(store, tmp_path):
    for seed in range(300): write_json(store.folder(spec(seed=seed).hash)/"spec.json", spec(seed=seed).model_dump(mode="json"))
    start = time.perf_counter()
    done = run("list", "--out", "work", "--json", cwd=tmp_path)
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 300 and time.perf_counter() - start < 10


def test_runs_of_other_versions_can_be_listed_and_shown(here, store, tmp_path):
    strange = spec().model_dump(mode="json") | {"method": {"kind": "late_fusion", "units": 64}, "budget": {"share": 0.1}}
    folder = store.folder(digest(strange))
    write_json(folder/"spec.json", strange)
    write_json(folder/"metrics.json", {"test": {"ua": 0.5}, "gates": [0.1, 0.9]})
    assert listed(here, tmp_path)[folder.name]["label"] == "late fusion"
    code, out, err = here("show", folder.name[:5], "--out", "work", cwd=tmp_path)
    assert code == 0 and "budget.share" in out and "no predictions" in out and not err


def test_show_gives_scores_classes_curves_and_files(here, store, tmp_path):
    folder = finished(store, spec(), right=("a0", "a2", "b0", "c1"), history=(2.0, 1.5, 1.0))
    code, out, _ = here("show", folder.name[:7].upper(), "--out", "work", cwd=tmp_path)
    assert code == 0
    anger = next(line for line in out.splitlines() if "anger" in line and "│" in line)
    assert [float(x) for x in re.findall(r"\d+\.\d+", anger)][0] == pytest.approx(3/8, abs=1e-3)  # a0, a2 and b0 of eight
    for part in ("data.label_set.classes", "█▅▁", "first 2", "last 1", "predictions.parquet", "macro F1"): assert part in out, part
    assert here("show", folder, cwd=tmp_path)[0] == 0  # by its folder, from anywhere


@pytest.mark.parametrize("damage", ["predictions.parquet", "history.parquet", "environment.json"])
def test_show_goes_on_without_a_file(here, store, tmp_path, damage):
    folder = finished(store, spec())
    for spoil in (lambda path: path.write_bytes(b"PAR1 no"), lambda path: path.unlink()):
        spoil(folder/damage)
        code, out, err = here("show", folder.name, "--out", "work", cwd=tmp_path)
        assert code == 0 and "scores" in out and not err


def test_a_prefix_must_name_one_run(here, store, tmp_path):
    folders = [finished(store, spec(seed=s)) for s in range(20)]
    first = [f.name[0] for f in folders]
    shared = next(c for c in first if first.count(c) > 1)
    refused(here("show", shared, "--out", "work", cwd=tmp_path), f"{first.count(shared)} runs begin with {shared!r}", "seed", "majority class")
    refused(here("show", "zz", "--out", "work", cwd=tmp_path), "no run 'zz'", "Nearest: ")
    refused(here("diff", folders[0].name, "zz", "--out", "work", cwd=tmp_path), "no run 'zz'")
    refused(here("show", "ab", "--out", "nowhere", cwd=tmp_path), "nowhere: no runs in it", "mser reproduce")
    (tmp_path/"empty"/"runs").mkdir(parents=True)
    refused(here("show", "ab", "--out", "empty", cwd=tmp_path), "no run 'ab'", "mser runs list")


def test_the_same_run_in_two_workspaces_is_named_by_its_folder(here, store, tmp_path):
    folder = finished(store, spec())
    shutil.copytree(tmp_path/"work", tmp_path/"other")
    refused(here("show", folder.name, "--out", "work", "--out", "other", cwd=tmp_path), "2 runs begin", "in work", "in other")
    code, out, _ = here("diff", folder, f"other/runs/{folder.name}", cwd=tmp_path)
    assert code == 0 and "the same specification" in out


def test_diff_shows_settings_scores_and_who_is_right(here, store, tmp_path):
    a = finished(store, spec(), right=("a0", "b0", "b1"), ua=0.25)
    b = finished(store, spec(method=LinearProbe(C=2.0)), right=("a0", "c0", "c1", "d2", "d3"), ua=0.5)
    code, out, _ = here("diff", a.name, b.name, "--out", "work", cwd=tmp_path)
    assert code == 0 and "+0.250" in out and "only A is right on 2, only B on 4" in out and "4 speakers" in out
    settings = dict((name, (x, y)) for name, x, y in differing(StoredRun(a).spec, StoredRun(b).spec))
    assert settings == {"method.kind": ("majority", "linear_probe"), "method.C": ("-", "2.0"), "method.modalities": ("-", '["text", "audio"]')}
    assert "data.corpus" not in out


def test_diff_with_an_unfinished_run(here, store, tmp_path):
    a, b = finished(store, spec()), unfinished(store, spec(seed=1))
    code, out, err = here("diff", a.name, b.name, "--out", "work", cwd=tmp_path)
    assert code == 0 and "unfinished" in out and "McNemar" not in out and not err


# gc

def names(store): return {r.hash for r in runs_in(store.root)}


def test_gc_shows_first_and_deletes_on_request(here, store, tmp_path):
    done, old = finished(store, spec()), finished(store, spec(code="0"*16))
    killed, fresh = unfinished(store, spec(seed=1)), unfinished(store, spec(seed=2), hours=0)
    failed, broken = unfinished(store, spec(seed=3), hours=0, failed={"error": "x"}), finished(store, spec(seed=4))
    (broken/"spec.json").write_text("{")
    (done/".part-x.json").write_text("half")
    os.utime(done/".part-x.json", (time.time() - 7200,)*2)
    before = sorted(path for path in tmp_path.rglob("*"))
    code, out, _ = here("gc", "--out", "work", cwd=tmp_path)
    assert code == 0 and "4 runs may go" in out and "Nothing was deleted" in out and sorted(path for path in tmp_path.rglob("*")) == before
    for folder, why in ((old, "outdated"), (killed, "unfinished"), (failed, "failed"), (broken, "damaged")):
        assert any(folder.name in line and why in line for line in out.splitlines()), why
    assert here("gc", "--out", "work", "--only", "failed", "--yes", cwd=tmp_path)[1].endswith("1 run deleted\n")
    assert names(store) == {f.name for f in (done, old, killed, fresh, broken)}
    assert here("gc", "--out", "work", "--yes", cwd=tmp_path)[1].endswith("3 runs deleted\n")
    assert names(store) == {done.name, fresh.name} and not (done/".part-x.json").exists() and store.done(spec())
    assert here("gc", "--out", "work", cwd=tmp_path)[1] == "nothing to clear away\n"


HOLD = "import sys, time\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"


@pytest.mark.parametrize("where", ["{run}/.lock", "{run}.lock", "{run}/../../.lock"])
def test_gc_never_touches_what_another_process_computes(here, store, tmp_path, where):
    "A run that is locked by a living process stays; when that process is killed it may go."
    killed = unfinished(store, spec(seed=1))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, where.format(run=killed)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert listed(here, tmp_path)[killed.name]["state"] == "computing"
        assert here("gc", "--out", "work", "--older-than", 0, "--yes", cwd=tmp_path)[0] == 0 and names(store) == {killed.name}
    finally:
        holder.kill()
        holder.wait()
    assert here("gc", "--out", "work", "--older-than", 0, "--yes", cwd=tmp_path)[0] == 0 and names(store) == set()


def test_delete_keeps_what_was_finished_in_the_meantime(store):
    run = StoredRun(unfinished(store, spec(seed=1)))
    assert run.outcome is State.unfinished
    finished(store, spec(seed=1))
    assert not delete(run) and store.done(spec(seed=1))
    assert delete(StoredRun(run.folder)) and not list(store.root.iterdir())


def test_a_link_is_never_followed(here, store, tmp_path):
    elsewhere = RunStore(tmp_path/"elsewhere"/"runs")
    target = finished(elsewhere, spec(code="0"*16))
    store.root.mkdir(parents=True)
    (store.root/target.name).symlink_to(target)
    assert here("gc", "--out", "work", "--yes", cwd=tmp_path)[0] == 0 and (target/"metrics.json").exists()


def test_a_stopped_gc_is_finished_by_the_next(here, store, tmp_path):
    finished(store, spec())
    trash = store.root/".trash-0123456789abcdef-1"
    trash.mkdir()
    (trash/"spec.json").write_text("{}")
    assert set(listed(here, tmp_path)) == {spec().hash}
    here("gc", "--out", "work", "--older-than", 0, "--yes", cwd=tmp_path)
    assert not trash.exists()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 7), max_size=2), st.booleans()), min_size=1, max_size=8))
def test_what_a_kept_run_starts_from_is_kept(tmp_path_factory, made):
    "Whatever starts from whatever: the kept set is closed under `starts_from`, and only outdated runs that nobody kept needs go."
    root = tmp_path_factory.mktemp("plan")/"runs"
    specs = []
    for i, (old, parents, whole) in enumerate(made):
        sources = [specs[p] if whole else digest(specs[p]) for p in parents if p < i]
        specs.append({"code": "old" if old else "new", "seed": i, "sources": sources})
        for name, value in (("spec", specs[-1]), ("metrics", {"n": 1})): write_json(root/digest(specs[-1])/f"{name}.json", value)
    runs = runs_in(root)
    found, known = plan(runs, "new", 0), {r.hash for r in runs}
    kept = [r for r in runs if r not in found.goes]
    assert not {p for r in kept for p in starts_from(r, known)} & {r.hash for r in found.goes}
    assert {*found.goes, *found.needed} == {r for r in runs if r.spec["code"] == "old"} and not {*found.goes} & {*found.needed}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)))
def test_specs_of_any_shape_are_read(value):
    flat = flatten(value)
    assert all(isinstance(v, str) for v in flat.values()) and differing(value, value) == []


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=30))
def test_a_curve_has_a_character_per_value(values):
    drawn = sparkline(values)
    assert len(drawn) == len(values) and [c == " " for c in drawn] == [v != v for v in values]
    if any(v == v for v in values): assert "▁" in drawn


@pytest.mark.parametrize("command", ["list", "show", "diff", "gc"])
def test_help_teaches_by_example(here, command, tmp_path):
    code, out, _ = here(command, "--help", cwd=tmp_path)
    assert code == 0 and "Example" in out and f"mser runs {command}" in out


def test_help_needs_nothing_heavy():
    code = "import sys, mser.cli_runs; print([m for m in ('torch', 'pandas', 'numpy', 'sklearn', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
