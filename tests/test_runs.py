"Runs that are killed, shared, failed or spread over machines: the same bits in the end, and nothing lost."
import json, os, signal, subprocess, sys, textwrap, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from mser.core import InputError, read_json
from mser.experiment import PROFILES, Experiment, Preset
from mser.parallel import executor, process_pool
from mser.prepare import prepare, prepare_splits
from mser.regimes import adapted, combined, fine_tuned, zero_shot
from mser.adaptation import AdaptConfig
from mser.runs import LinearProbe, RunSpec, RunStore, RunsFailed, compute, missing_runs, run, run_many
from mser.training import TrainConfig, TrainingError

SMALL = Preset(name="small", model={"hidden_dim": 16, "n_heads": 2, "n_layers": 1, "projection_dim": 8}, train=TrainConfig(epochs=5, batch_size=32, lr=2e-4))


@pytest.fixture(scope="module")
def prepared_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    for name in ("sim-iemocap", "sim-cremad"): _experiment(name, root)
    return root


def _experiment(name: str, root: Path) -> Experiment:
    prepared = prepare(name, None, root, scale=0.05)
    labels = prepared.labels("4")
    splits = prepare_splits(prepared.manifest.keep(labels), prepared.corpus.protocol, root)
    return Experiment(prepared, root, PROFILES["quick"], SMALL, labels, splits)


@pytest.fixture
def root(prepared_root, tmp_path) -> Path:
    "A workspace with the data of two corpora and no runs."
    for name in ("manifests", "features", "splits"): (tmp_path/name).symlink_to(prepared_root/name)
    return tmp_path


@pytest.fixture
def specs(root) -> list[RunSpec]:
    "Six runs on one corpus: three seeds, two folds."
    experiment = _experiment("sim-iemocap", root)
    return list(s for s in experiment.row("full model", experiment.network()).specs if s.fold < 2)


def _results(root: Path) -> dict[str, tuple]:
    "What every run left behind, without the time it took."
    store = RunStore(root/"runs")
    return {h: (store.metrics(h), store.predictions(h).to_csv(), store.history(h).to_csv()) for h in store.hashes()}


def test_one_worker_two_workers_and_a_cluster_give_the_same_bits(prepared_root, specs, tmp_path_factory):
    found = []
    for options in ({"workers": 1}, {"workers": 2}, None):
        root = tmp_path_factory.mktemp("run")
        for name in ("manifests", "features", "splits"): (root/name).symlink_to(prepared_root/name)
        if options is None: _on_cluster(specs, root, kill=True)
        else:
            with executor(**options) as pool: assert run_many(specs, root, pool, progress=False) == len(specs)
        found.append(_results(root))
    assert len(found[0]) == len(specs) and found[0] == found[1] == found[2]


def _on_cluster(specs: list[RunSpec], root: Path, kill: bool) -> None:
    "A scheduler and two workers as processes of their own; one worker is killed once the first run is finished."
    python = [sys.executable, "-m"]
    environment = os.environ | {"DASK_DISTRIBUTED__DASHBOARD__LINK": "", "PYTHONWARNINGS": "ignore"}
    start = lambda *command: subprocess.Popen([*python, *map(str, command)], env=environment, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    where = root/"scheduler.json"
    processes = [start("distributed.cli.dask_scheduler", "--port", 0, "--no-dashboard", "--host", "127.0.0.1", "--scheduler-file", where)]
    try:
        while not where.exists(): time.sleep(0.05)
        address = read_json(where)["address"]
        processes += [start("distributed.cli.dask_worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard") for _ in range(2)]
        with executor(scheduler=address) as pool, ThreadPoolExecutor(1) as background:
            computing = background.submit(run_many, specs, root, pool, (), False)
            while kill and not any(root.glob("runs/*/metrics.json")): time.sleep(0.01)
            if kill: processes[1].send_signal(signal.SIGKILL)
            assert computing.result(timeout=120) == len(specs)
    finally:
        for p in processes: p.kill()
        for p in processes: p.wait()


KILLED = """
    import os, signal, sys
    from mser.runs import RunSpec, run
    from mser.training import Checkpoint
    save, times = Checkpoint.save, []
    def save_and_die(self, training):
        save(self, training); times.append(1)
        if len(times) == 3: os.kill(os.getpid(), signal.SIGKILL)
    Checkpoint.save = save_and_die
    run(RunSpec.model_validate_json(open(sys.argv[1]).read()), sys.argv[2], keep_model=True, checkpoint_every=0)
"""


@pytest.mark.parametrize("regime", ["from scratch", "dann"])
def test_killed_after_an_epoch_a_run_goes_on_from_there_with_the_same_bits(regime, root, specs, tmp_path, monkeypatch):
    spec = specs[0] if regime == "from scratch" else adapted(specs[0], _experiment("sim-cremad", root).data, AdaptConfig(method="dann"))
    (tmp_path/"spec.json").write_text(spec.model_dump_json())
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path/"spec.json", root], capture_output=True)
    folder = RunStore(root/"runs").folder(spec.hash)
    assert process.returncode == -signal.SIGKILL and (folder/"checkpoint.pt").exists() and not (folder/"metrics.json").exists()
    undisturbed, epochs = compute(spec, root, keep_model=True), []
    import mser.training
    original = mser.training.train_epoch
    monkeypatch.setattr(mser.training, "train_epoch", lambda *a: epochs.append(1) or original(*a))
    run(spec, root, keep_model=True)
    store = RunStore(root/"runs")
    assert len(epochs) == undisturbed.metrics["epochs"] - 3  # the first three were not computed again
    assert store.metrics(spec.hash) == json.loads(json.dumps(undisturbed.metrics))
    pd.testing.assert_frame_equal(store.predictions(spec.hash), undisturbed.predictions, check_exact=True)
    pd.testing.assert_frame_equal(store.history(spec.hash), undisturbed.history, check_exact=True)
    kept = store.model(spec.hash).state_dict()
    assert all((kept[name] == value).all() for name, value in undisturbed.model.state_dict().items())
    assert not (folder/"checkpoint.pt").exists()


FULL = """
    import resource, signal, sys
    from mser.core import InputError
    from mser.runs import RunSpec, run
    from mser.training import Checkpoint
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    save, times = Checkpoint.save, []
    def save_on_a_disk_that_fills(self, training):
        times.append(1)
        if len(times) == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(self, training)
    Checkpoint.save = save_on_a_disk_that_fills
    try: run(RunSpec.model_validate_json(open(sys.argv[1]).read()), sys.argv[2], checkpoint_every=0)
    except InputError as e: print(e)
"""


def test_a_disk_that_fills_costs_one_epoch(root, specs, tmp_path, monkeypatch):
    spec, store = specs[0], RunStore(root/"runs")
    (tmp_path/"spec.json").write_text(spec.model_dump_json())
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(FULL), tmp_path/"spec.json", root], capture_output=True, text=True)
    checkpoint = store.folder(spec.hash)/"checkpoint.pt"
    assert process.stdout.startswith(f"{checkpoint}: the file is larger than files may be here. Make room"), process.stderr
    assert checkpoint.exists() and "Make room" in store.failures()[spec.hash] and not list(checkpoint.parent.glob(".part-*"))
    undisturbed, epochs = compute(spec, root), []
    import mser.training
    original = mser.training.train_epoch
    monkeypatch.setattr(mser.training, "train_epoch", lambda *a: epochs.append(1) or original(*a))
    run(spec, root)
    assert len(epochs) == undisturbed.metrics["epochs"] - 2 and not store.failures() and not checkpoint.exists()  # two were written
    pd.testing.assert_frame_equal(store.predictions(spec.hash), undisturbed.predictions, check_exact=True)


def test_two_commands_at_once_share_the_work(root, specs):
    code = "import sys; from mser.runs import RunSpec, run\nfor line in open(sys.argv[1]): run(RunSpec.model_validate_json(line), sys.argv[2])"
    (root/"specs.txt").write_text("\n".join(s.model_dump_json() for s in specs[:3]))
    processes = [subprocess.Popen([sys.executable, "-c", code, root/"specs.txt", root], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(p.wait(), p.communicate()[1]) for p in processes] == [(0, "")]*2
    assert sorted(_results(root)) == sorted(s.hash for s in specs[:3])
    assert not list(root.glob("runs/*/.part-*"))


def test_a_start_is_computed_once_and_its_failure_names_what_hangs_on_it(root, specs):
    target = _experiment("sim-cremad", root).data
    source = specs[0]
    several = [zero_shot(source, target), *(fine_tuned(source, target, 0, factor=f) for f in (0.1, 0.5))]
    with process_pool(2) as pool: assert run_many(several, root, pool, progress=False) == 4
    broken = source.model_copy(update={"method": source.method.model_copy(update={"train": TrainConfig(epochs=2, lr=1e30)})})
    chain = fine_tuned(fine_tuned(broken, target, 0), source.data, 0)
    with process_pool(1) as pool, pytest.raises(RunsFailed) as failed: run_many([chain, source], root, pool, progress=False)
    lines = str(failed.value).splitlines()
    assert lines[0] == "3 of 4 runs failed:" and sum("the run it starts from failed" in line for line in lines) == 2
    assert RunStore(root/"runs").failures() == {broken.hash: "the loss is nan in epoch 1; lower the learning rate"}


def test_not_a_number_and_a_missing_class_stop_that_run_alone(root, specs):
    good = specs[0]
    diverging = good.model_copy(update={"method": good.method.model_copy(update={"train": TrainConfig(epochs=2, lr=1e30)})})
    six = good.data.label_set.model_copy(update={"classes": (*good.data.label_set.classes, "disgust")})
    absent = good.model_copy(update={"data": good.data.model_copy(update={"label_set": six}),
                                     "method": good.method.model_copy(update={"model": good.method.model.model_copy(update={"n_classes": 5})})})
    with process_pool(1) as pool, pytest.raises(RunsFailed) as failed: run_many([diverging, absent, good], root, pool, progress=False)
    assert "lower the learning rate" in str(failed.value) and "no training utterance is labelled disgust" in str(failed.value)
    store = RunStore(root/"runs")
    assert store.hashes() == [good.hash] and set(store.failures()) == {diverging.hash, absent.hash}


def test_what_does_not_fit_together_is_refused_before_anything_is_loaded(tmp_path, specs):
    target = specs[0].data.model_copy(update={"mode": "sequence", "corpus": "other"})
    with pytest.raises(InputError, match="other is seen sequence, sim-iemocap pooled"): run(specs[0].model_copy(update={"target": target}), tmp_path)


def test_a_run_whose_weights_are_needed_later_is_computed_again_with_the_same_scores(root, specs):
    store = RunStore(root/"runs")
    run(specs[0], root)
    before = _results(root)
    assert missing_runs([specs[0]], store) == {} and list(missing_runs([specs[0]], store, [specs[0].hash])) == [specs[0].hash]
    run(specs[0], root, keep_model=True)
    assert _results(root) == before and store.done(specs[0], keep_model=True)


def test_combined_corpora_are_scored_each_and_selected_on_the_mean(root, specs):
    cremad = _experiment("sim-cremad", root)
    spec = combined(specs[0], [cremad.data])
    result = compute(spec, root)
    of_corpus = result.metrics["corpora"]
    best = result.history.set_index("epoch").loc[result.metrics["best_epoch"]]
    assert best.val_ua == pytest.approx(sum(s["ua"] for s in of_corpus["val"].values())/2, abs=1e-12)
    table = result.predictions.query("part == 'test'")
    for name, group in table.groupby("corpus"):
        recalls = (group.label == group.predicted).groupby(group.label).mean()
        assert recalls.mean() == pytest.approx(of_corpus["test"][name]["ua"], abs=1e-12)
    assert set(table.corpus) == {"sim-iemocap", "sim-cremad"}


def test_target_labels_are_never_read(root, specs, monkeypatch):
    "Shuffled labels of the target change no prediction of an adapted run."
    import mser.runs
    spec = adapted(specs[0], _experiment("sim-cremad", root).data, AdaptConfig(method="coral"))
    original = mser.runs.parts_of
    def lied(spec, root):
        parts, turn = original(spec, root), lambda d: __import__("dataclasses").replace(d, labels=d.labels.flip(0), vad=d.vad.flip(0))
        return parts | {name: turn(parts[name]) for name in ("unlabelled", "test")}
    honest = compute(spec, root)
    monkeypatch.setattr(mser.runs, "parts_of", lied)
    columns = [c for c in honest.predictions if c.startswith("p_")]
    assert compute(spec, root).predictions[columns].equals(honest.predictions[columns])
