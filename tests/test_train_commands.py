"The commands that train, as a user calls them: on lists of simulated vectors, with tiny networks."
import json, os, pickle, shutil, signal, subprocess, sys, time
from pathlib import Path

import jsonschema, numpy as np, pytest, torch

import mser.cli
from mser.corpora.simulated import SIMULATED
from mser.encoders.base import Encoded
from mser.jobs import models, row, settings
from mser.manifest import Skipped
from mser.outcome import Results
from mser.prepare import prepare_simulated
from mser.runs import RunStore, compute
from mser.sources import from_folder, import_once, open_source
from mser.store import FeatureStore, write_store

LAUNCH = "import sys; from mser.cli import main; sys.argv[0] = 'mser'; main()"
TINY = ["--hidden-dim", 16, "--num-layers", 1, "--batch-size", 8, "--lr", 3e-3, "--epochs", 3, "--num-runs", 2]
ONE = ["--workers", 1]


def write_lists(folder: Path, name: str, n: dict, classes=range(4), sizes=(12, 8), seed: int = 0, frames: int = 0) -> dict[str, Path]:
    "Lists like the published ones, whose vectors hold a little of the label."
    g, paths = torch.Generator().manual_seed(seed), {}
    places = [torch.randn(9, d, generator=torch.Generator().manual_seed(7)) for d in sizes]
    for part, many in n.items():
        of = list(classes[part] if isinstance(classes, dict) else classes)
        labels = torch.tensor([of[i % len(of)] for i in range(many)])
        shape = (many, frames) if frames else (many,)
        text, audio = (p[labels].reshape(many, *[1]*bool(frames), -1) + torch.randn(*shape, p.shape[1], generator=g) for p in places)
        paths[part] = folder/f"{name}_{part}.pkl"
        paths[part].write_bytes(pickle.dumps([{"text_embed": t, "audio_embed": a, "label": y} for t, a, y in zip(text, audio, labels)]))
    return paths


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    "Two corpora as lists, and a workspace that the tests share as a user's calls would."
    place, n = tmp_path_factory.mktemp("lists"), {"train": 48, "val": 16, "test": 24}
    for seed, name in enumerate(["IEMOCAP", "CREMAD"]): write_lists(place, name, n, seed=seed)
    return place


def one(name="IEMOCAP", prefix="", parts=("train", "val", "test")): return [x for p in parts for x in (f"--{prefix}{p}", f"{name}_{p}.pkl")]
PAIR = [*one("IEMOCAP", "source-", ("train", "val")), *one("CREMAD", "target-")]


def lines(text): return [line for line in text.splitlines() if "%|" not in line and line.strip()]


@pytest.fixture
def here(monkeypatch, capfd, lists):
    "The command in this process, which is faster: exit code, stdout, stderr."
    def call(*arguments, cwd=lists):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "140")
        monkeypatch.setattr(sys, "argv", ["mser", *map(str, arguments)])
        try: mser.cli.main()
        except SystemExit as e: code = e.code or 0
        said = capfd.readouterr()
        return code, said.out, said.err
    return call


def start(*arguments, cwd): # the command in a process group of its own
    return subprocess.Popen([sys.executable, "-c", LAUNCH, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
                            start_new_session=True, env=os.environ | {"COLUMNS": "140", "TERM": "dumb"})


def results_of(path): return Results.model_validate_json(Path(path).read_text())


def numbers(results): # what must not depend on where and how it was computed
    return results.model_dump(exclude={"environments"})


def files(root): return {p: p.stat().st_mtime_ns for p in Path(root).rglob("*.json") if "runs" in p.parts}


def test_train_from_lists_writes_what_the_schema_says_and_a_second_call_computes_nothing(here, lists):
    call = ["train", *one(), *TINY, *ONE, "--audio-dim", 8, "--vad-lambda", 0.2, "--micl-weight", 0.3, "--micl-temp", 0.1, "--dropout", 0.1, "--label-set", 4, "--out", "train", "--output", "train.json"]
    code, out, err = here(*call)
    assert code == 0 and "full model" in out and "2 of 2" in out and "train.json" in out, err
    assert "IEMOCAP: labels 0, 1, ... read as anger, happiness, sadness, neutral" in err and "--vad-lambda cannot change a score in pooled mode" in err
    assert "Selected on val of IEMOCAP, split as given, reported on test of IEMOCAP" in out and "2 runs computed now" in out
    before, runs = (lists/"train.json").read_bytes(), files(lists/"train")
    assert here("schema")[0] == 0
    jsonschema.validate(json.loads(before), Results.model_json_schema())
    code, out, _ = here(*call)
    assert code == 0 and "0 runs computed now" in out and (lists/"train.json").read_bytes() == before and files(lists/"train") == runs
    [row] = results_of(lists/"train.json").rows
    model, loss, training = (row.method[part] for part in ("model", "loss", "train"))
    assert (model["hidden_dim"], model["n_layers"], model["dropout"], model["vad_lambda"], model["text_dim"], model["audio_dim"]) == (16, 1, 0.1, 0.2, 12, 8)
    assert (loss["contrastive"], loss["temperature"], training["lr"], training["batch_size"], training["epochs"]) == (0.3, 0.1, 3e-3, 8, 3)
    values = np.array(row.aggregate.ua.values)
    assert len(values) == 2 and row.aggregate.ua.mean == values.mean() and row.aggregate.ua.sd == pytest.approx(values.std(ddof=1))
    assert row.aggregate.ua.high - row.aggregate.ua.mean == pytest.approx(12.706205*values.std(ddof=1)/np.sqrt(2)) # t of one degree of freedom
    predictions = RunStore(lists/"train"/"runs").predictions(row.runs[0].hash).query("part == 'test'")
    assert row.runs[0].test.wa == (predictions.label == predictions.predicted).mean() and np.trace(row.runs[0].confusion) == (predictions.label == predictions.predicted).sum()
    assert row.runs[0].gates.text == pytest.approx(predictions.gate_text.mean())


def test_each_option_changes_what_is_predicted(lists):
    write_lists(lists, "frames", {"train": 32, "val": 8, "test": 8}, frames=3)
    source = open_source(import_once({p: lists/f"frames_{p}.pkl" for p in ("train", "val", "test")}, lists/"options", order="iemocap-4"), lists/"options", mode="sequence")
    tiny = dict(hidden_dim=16, num_layers=1, batch_size=8, lr=3e-3, epochs=3, dropout=0.1)
    def predicted(seed=0, preset="paper", **options):
        [spec] = row("x", source, models(source, settings(preset, **tiny | options), "full")["full model"], [seed]).specs
        return compute(spec, source.root).predictions.filter(like="p_").to_numpy().tobytes()
    base = predicted()
    assert predicted() == base
    for changed in (dict(hidden_dim=32), dict(num_layers=2), dict(dropout=0.3), dict(vad_lambda=3.0), dict(micl_weight=0.5), dict(micl_temp=0.5), dict(micl_weight=0.0), dict(lr=1e-3),
                    dict(batch_size=4), dict(epochs=2), dict(weight_decay=1.0), dict(seed=1), dict(preset="tuned"), dict(step="plain"), dict(precision="bf16")): assert predicted(**changed) != base, changed


def test_ablation_and_baselines(here, lists):
    code, out, err = here("ablate", *one(), *TINY, *ONE, "--num-runs", 1, "--out", "train", "--output", "ablate.json")
    assert code == 0 and "VGA cannot act in pooled mode" in err, err
    rows = results_of(lists/"ablate.json").rows
    switches = [tuple(r.method["model"][s] for s in ("vga", "eaaf", "micl")) for r in rows]
    assert len(set(switches)) == 8 and [r.name for r in rows][-1] == "VGA + EAAF + MICL" and all(r.aggregate.runs == 1 for r in rows)
    assert all((r.runs[0].gates is None) == (not r.method["model"]["eaaf"]) for r in rows)
    code, out, err = here("baseline", *one(), *TINY, *ONE, "--out", "train", "--output", "baseline.json")
    assert code == 0, err
    of = {r.name: r for r in results_of(lists/"baseline.json").rows}
    assert {"majority class", "linear probe", "text only", "audio only", "cross-attention"} <= set(of) and of["majority class"].aggregate.ua.mean == 0.25
    assert of["majority class"].aggregate.ua.sd is None and of["linear probe"].aggregate.ua.mean > 0.5 and of["cross-attention"].aggregate.seeds == [0, 1]
    assert of["majority class"].aggregate.classes[3].precision is None # nothing was ever called so
    same = next(r for r, s in zip(rows, switches) if not any(s))
    assert same.runs[0].hash == of["cross-attention"].runs[0].hash # standard cross-attention is the ablation of everything, computed once
    code, out, _ = here("baseline", *one(), *TINY, *ONE, "--method", "linear probe", "--out", "train", "--output", "probe.json")
    assert code == 0 and [r.name for r in results_of(lists/"probe.json").rows] == ["linear probe"] and "0 runs computed now" in out


def test_few_shot_trains_the_source_once_and_pays_for_selection(here, lists):
    code, out, err = here("fewshot", *PAIR, *TINY, *ONE, "--percentages", "25,50,100", "--out", "few", "--output", "few.json")
    assert code == 0, err
    results, store = results_of(lists/"few.json"), RunStore(lists/"few"/"runs")
    assert [r.name for r in results.rows] == [f"{m}, {x}" for m in ("full model", "cross-attention") for x in ("zero-shot", "25%", "50%", "100%")]
    specs = [store.spec(h) for h in store.hashes()]
    assert len(specs) == 2*2*4 and sum(s.start is None for s in specs) == 4 # seeds x models; the source run is the zero-shot result
    sizes = [r.runs[0].utterances for r in results.rows[1:4]]
    assert [s["train"] + s["val"] for s in sizes] == [16, 32, 64] and [s["val"] for s in sizes] == [4, 8, 16]
    assert len({store.spec(r.hash).data.splits for r in results.rows[1].runs}) == 2 # each seed draws its own utterances
    assert all(r.begins_with == z.hash for row in results.rows[1:4] for r, z in zip(row.runs, results.rows[0].runs))
    before = files(lists/"few")
    code, out, _ = here("finetune", *PAIR, *TINY, *ONE, "--out", "few", "--output", "fine.json")
    assert code == 0 and "0 runs computed now" in out and files(lists/"few") == before # fine-tuning on everything is few-shot at 100 %
    code, out, _ = here("fewshot", *PAIR, *TINY, *ONE, "--percentages", "25", "--full-validation", "--model", "full", "--out", "few", "--output", "fullval.json")
    row = results_of(lists/"fullval.json").rows[1]
    assert code == 0 and row.name == "full model, 25% (full validation besides)" and (row.runs[0].utterances["train"], row.runs[0].utterances["val"]) == (12, 16)


def test_fine_tuning_begins_with_the_run_of_train_and_leaves_frozen_modules(here, lists):
    assert here("train", *one(), *TINY, *ONE, "--num-runs", 1, "--out", "fine")[0] == 0
    code, _, err = here("finetune", *PAIR, "--source-test", "IEMOCAP_test.pkl", *TINY, *ONE, "--num-runs", 1, "--model", "full", "--freeze", "text,audio", "--lr-factor", 0.5, "--out", "fine", "--output", "fine.json")
    assert code == 0, err
    [trained] = results_of(next((lists/"fine"/"results").glob("train-*.json"))).rows
    zero, tuned = results_of(lists/"fine.json").rows
    assert tuned.runs[0].begins_with == trained.runs[0].hash == zero.runs[0].begins_with and tuned.runs[0].trained_on == ["IEMOCAP", "CREMAD"] and zero.runs[0].epochs == 0
    assert tuned.method["train"]["freeze"] == ["text", "audio"] and tuned.method["train"]["lr"] == 1.5e-3
    assert len(RunStore(lists/"fine"/"runs").hashes()) == 3


def test_fine_tuning_takes_what_is_said_and_else_no_more_than_the_source(here, lists):
    for given, expected in (([], (2, 2)), (["--tuning-epochs", 4, "--tuning-patience", 3], (4, 3))):
        code, _, err = here("finetune", *PAIR, *TINY, "--epochs", 2, "--patience", 2, "--workers", 1, "--num-runs", 1, "--model", "full", *given, "--out", "longer", "--output", "longer.json")
        train = results_of(lists/"longer.json").rows[1].method["train"]
        assert code == 0 and (train["epochs"], train["patience"]) == expected, err


def test_adaptation_selects_on_the_source(here, lists):
    pair = [*one("IEMOCAP", "source-", ("train", "val")), *one("CREMAD", "target-", ("train", "test"))]
    code, out, err = here("adapt", *pair, *TINY, *ONE, "--num-runs", 1, "--method", "none,dann,mmd,coral", "--out", "adapt", "--output", "adapt.json")
    assert code == 0, err
    results = results_of(lists/"adapt.json")
    assert [r.name for r in results.rows[:4]] == [f"full model, {m}" for m in ("no adaptation", "DANN", "MMD", "CORAL")] and len(results.rows) == 8
    assert results.selects == "val of IEMOCAP" and results.reports.startswith("test of CREMAD")
    for adapted in results.rows:
        run = adapted.runs[0]
        assert (run.tested_on, run.trained_on, run.utterances["val"], run.utterances["unlabelled"]) == (["CREMAD"], ["IEMOCAP"], 16, 48)
    code, _, err = here("adapt", *pair, "--target-val", "CREMAD_val.pkl", *TINY)
    assert code == 2 and "--target-val" in err # there is no such option: nothing of the target may select


def test_combined_training_has_scores_of_each_corpus(here, lists):
    both = [x for p in ("train", "val", "test") for x in (f"--{p}", f"IEMOCAP_{p}.pkl,CREMAD_{p}.pkl")]
    code, out, err = here("combine", *both, *TINY, *ONE, "--model", "full", "--out", "combine", "--output", "combine.json")
    assert code == 0 and "on CREMAD: UA" in out, err
    [row] = results_of(lists/"combine.json").rows
    assert set(row.aggregate.corpora) == {"IEMOCAP", "CREMAD"} and row.runs[0].utterances == {"train": 96, "val": 32, "test": 48}
    assert row.aggregate.corpora["CREMAD"].values == [r.corpora["CREMAD"].ua for r in row.runs]
    code, _, err = here("combine", *one(), *TINY, "--out", "combine")
    assert code == 2 and "nothing to combine" in err


def test_evaluation_tests_kept_models_and_trains_nothing(here, lists):
    assert here("train", *one(), *TINY, *ONE, "--out", "fine", "--output", "kept.json")[0] == 0
    hashes = [r.hash for r in results_of(lists/"kept.json").rows[0].runs]
    code, out, err = here("evaluate", "--run", lists/"fine"/"runs"/hashes[0], "--run", lists/"fine"/"runs"/hashes[1], "--test", "CREMAD_test.pkl", "--output", "zero.json")
    assert code == 0, err
    [row] = results_of(lists/"zero.json").rows
    assert [r.begins_with for r in row.runs] == hashes and all(r.epochs == 0 and r.tested_on == ["CREMAD"] for r in row.runs) and len(row.aggregate.ua.values) == 2
    assert "0 runs computed now" in here("evaluate", "--run", hashes[0], "--run", hashes[1], "--test", "CREMAD_test.pkl", "--out", "fine")[1]
    model, data = RunStore(lists/"fine"/"runs").model(hashes[0]), pickle.loads((lists/"CREMAD_test.pkl").read_bytes())
    with torch.inference_mode(): said = model(*(torch.stack([d[k] for d in data])[:, None] for k in ("text_embed", "audio_embed"))).logits.argmax(1).tolist()
    table = RunStore(lists/"fine"/"runs").predictions(row.runs[0].hash).query("part == 'test'")
    assert table.predicted.tolist() == [results_of(lists/"zero.json").classes[i] for i in said] # the model itself, applied by hand


def test_a_run_that_fails_leaves_the_others_alone(here, lists, tmp_path):
    write_lists(tmp_path, "CREMAD", {"train": 48, "val": 16, "test": 24}, classes={"train": range(3), "val": range(4), "test": range(4)})
    code, out, err = here("baseline", *one("CREMAD"), *TINY, *ONE, "--label-order", "cremad-4", "--out", "out", "--output", "gap.json", cwd=tmp_path)
    of = {r.name: r for r in results_of(tmp_path/"gap.json").rows}
    assert code == 1 and of["linear probe"].aggregate is not None and of["cross-attention"].aggregate is None
    assert {r.status for r in of["text only"].runs} == {"failed"} and "no training utterance is labelled sadness" in of["text only"].runs[0].reason
    assert results_of(tmp_path/"gap.json").failed == 6 and sum("no training utterance" in line for line in lines(err)) == 6
    code, out, err = here("train", *one(), *TINY, *ONE, "--lr", 1e30, "--num-runs", 1, "--out", "wild", "--output", "wild.json")
    [row] = results_of(lists/"wild.json").rows
    assert code == 1 and row.aggregate is None and "the loss is" in row.runs[0].reason and "failed" in out


def test_a_killed_command_goes_on_and_writes_the_same_file(lists, tmp_path, here):
    call = ["train", *one(), *TINY, "--epochs", 60, "--patience", 60, "--num-runs", 3, "--workers", 1]
    process = start(*call, "--out", tmp_path/"killed", "--output", tmp_path/"killed.json", cwd=lists)
    deadline = time.monotonic() + 120
    while not list((tmp_path/"killed").glob("runs/*/metrics.json")) and time.monotonic() < deadline: time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((tmp_path/"killed").glob("runs/*/metrics.json")))
    assert 1 <= done < 3 and not (tmp_path/"killed.json").exists()
    code, out, err = here(*call, "--out", tmp_path/"killed", "--output", tmp_path/"killed.json")
    assert code == 0 and f"{3 - done} runs computed now" in out, err
    assert here(*call, "--out", tmp_path/"calm", "--output", tmp_path/"calm.json")[0] == 0
    assert (tmp_path/"killed.json").read_bytes() == (tmp_path/"calm.json").read_bytes()


def test_a_cluster_gives_the_same_numbers(lists, tmp_path, here, monkeypatch):
    from distributed import LocalCluster
    call = ["train", *one(), *TINY]
    assert here(*call, "--workers", 1, "--out", tmp_path/"one", "--output", tmp_path/"one.json")[0] == 0
    (tmp_path/"elsewhere").mkdir()
    monkeypatch.chdir(tmp_path/"elsewhere")  # where the workers stand: the workspace is named from where the user stands
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        code, _, err = here(*call, "--scheduler", cluster.scheduler_address, "--out", os.path.relpath(tmp_path/"cluster", lists), "--output", tmp_path/"cluster.json")
    assert code == 0, err
    assert numbers(results_of(tmp_path/"one.json")) == numbers(results_of(tmp_path/"cluster.json"))


def test_a_folder_of_stores_with_one_flag_for_loso(here, tmp_path):
    prepare_simulated(SIMULATED["sim-iemocap"].model_copy(update={"scale": 0.03}), tmp_path/"data")
    call = ["train", "--features", "data", "--protocol", "loso", *TINY, "--num-runs", 1, "--epochs", 1]
    code, out, _ = here(*call, "--dry-run", cwd=tmp_path)
    assert code == 0 and "10 runs to compute" in out and "at most" in out and not (tmp_path/"data"/"runs").exists()
    code, out, err = here(*call, *ONE, "--output", "loso.json", cwd=tmp_path)
    assert code == 0 and "Simulated data." in out and "leave one speaker out" in out, err
    results = results_of(tmp_path/"loso.json")
    assert len(results.rows[0].runs) == 10 and results.rows[0].aggregate.ua_over_speakers is not None and results.data[0].simulated is True
    assert sum(c.support for c in results.rows[0].aggregate.classes) == sum(results.data[0].utterances.values()) # each speaker is tested once
    code, out, _ = here(*call, "--dry-run", cwd=tmp_path)
    assert code == 0 and "0 runs to compute" in out and "at most" not in out


def test_an_imported_folder_is_found_again(here, lists, tmp_path):
    code, _, err = here("features", "import", *(f"{part}={lists}/IEMOCAP_{part}.pkl" for part in ("train", "val", "test")), "--corpus", "iemocap", "--label-order", "iemocap-4",
                        "--out", "pub", cwd=tmp_path)
    assert code == 0, err
    for _ in range(2): assert here("train", "--features", "pub", "--protocol", "official", *TINY, "--dry-run", cwd=tmp_path)[0] == 0


def test_a_folder_is_found_again_when_its_features_lack_some(tmp_path):
    "What has features is written as a manifest of its own beside the whole one, and is not taken for another corpus."
    folder = tmp_path/"data"
    prepare_simulated(SIMULATED["sim-iemocap"].model_copy(update={"scale": 0.02}), folder)
    text = next(s for s in map(FeatureStore, folder.glob("features/*")) if s.card.modality == "text")
    kept = [(name, Encoded((f := text.frames(name)), f.mean(0))) for name in text.ids[1:]]
    write_store(folder/"features"/"sim-iemocap-text-lacking", text.card, iter(kept), "lacking", skipped=[Skipped(text.ids[0], "silence")])
    shutil.rmtree(text.path)
    first, second = from_folder(folder, folder), from_folder(folder, folder)
    assert len(first.manifest) == len(text.ids) - 1 and first.manifest.fingerprint == second.manifest.fingerprint
    assert len(list(folder.glob("manifests/*.parquet"))) == 2


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    "A workspace with two simulated corpora of 5 and 91 folds."
    place = tmp_path_factory.mktemp("folded")
    for name in ("sim-iemocap", "sim-cremad"): prepare_simulated(SIMULATED[name].model_copy(update={"scale": 0.03}), place/"data")
    return place


def test_nothing_is_tested_that_was_learnt(here, folded):
    small, own = [*TINY, "--num-runs", 1, "--epochs", 1], ["--features", "data", "--corpus", "sim-iemocap", "--protocol", "loso-session"]
    assert here("train", *own, *small, *ONE, "--output", "own.json", cwd=folded)[0] == 0
    run = results_of(folded/"own.json").rows[0].runs[0].hash
    code, _, err = here("evaluate", "--run", run, *own, "--out", "data", cwd=folded)
    assert code == 2 and "are among those that the model was trained or selected on" in lines(err)[-1] and "fold that it left out" in lines(err)[-1]
    same = [x for side in ("source", "target") for x in (f"--{side}", "data", f"--{side}-corpus", "sim-iemocap", f"--{side}-protocol", "loso-session")]
    code, _, err = here("finetune", *same, *small, *ONE, "--out", "again", cwd=folded)
    assert code == 2 and "are among those that the model was trained or selected on" in lines(err)[-1] and not list(folded.glob("again/runs/*/metrics.json"))
    assert here("evaluate", "--run", run, "--features", "data", "--corpus", "sim-cremad", "--protocol", "speaker-kfold", "--out", "data", cwd=folded)[0] == 0


def test_networks_that_differ_are_different_rows(here, lists):
    kept = []
    for width in (16, 32):
        assert here("train", *one(), *TINY, *ONE, "--hidden-dim", width, "--out", "widths", "--output", "width.json")[0] == 0
        kept += [r.hash for r in results_of(lists/"width.json").rows[0].runs]
    code, _, err = here("evaluate", *(x for h in kept for x in ("--run", h)), "--test", "CREMAD_test.pkl", "--out", "widths", "--output", "both.json")
    rows = results_of(lists/"both.json").rows
    assert code == 0 and [r.method["model"]["hidden_dim"] for r in rows] == [16, 32] and len({r.name for r in rows}) == 2, err
    assert [len(r.runs) for r in rows] == [2, 2] and all(sum(c.support for c in r.aggregate.classes) == 2*24 for r in rows)


def test_corpora_with_unequal_folds_are_not_combined(here, folded):
    both = ["--features", "data", "--corpus", "sim-iemocap,sim-cremad", *TINY, "--num-runs", 1, "--dry-run"]
    code, _, err = here("combine", *both, "--protocol", "loso", cwd=folded)
    assert code == 2 and "some would be tested more often" in lines(err)[-1]
    assert here("combine", *both, "--protocol", "speaker-kfold", cwd=folded)[0] == 0


def test_dry_run_counts_shared_runs_once(here, lists):
    code, out, err = here("fewshot", *PAIR, "--source-test", "IEMOCAP_test.pkl", *TINY, "--percentages", "50,100", "--model", "full", "--out", "dry", "--dry-run")
    assert code == 0 and "runs they begin with" in out and "8 runs to compute" in out, err # 2 seeds: source, zero-shot, 50 %, 100 %
    assert not (lists/"dry"/"runs").exists()


def test_what_cannot_be_used_is_refused_in_one_line(here, lists, tmp_path):
    write_lists(lists, "wide", {"train": 8, "val": 8, "test": 8}, sizes=(12, 9))
    write_lists(lists, "two", {"train": 8, "val": 8, "test": 8}, classes=range(2))
    (lists/"hostile.pkl").write_bytes(b"cos\nsystem\n(S'touch it-ran'\ntR.")
    out = ["--out", "refused"]
    wide = one("wide", "target-")
    for arguments, *parts in [
        (["train", *one()[:4]], "--test is missing"),
        (["train", *one("absent")], "absent_train.pkl: no such file"),
        (["train", "--train", "hostile.pkl", *one()[2:]], "hostile.pkl: refused: this pickle calls os.system"),
        (["train", *one("wide")], "label 0 is a number", "--label-order"),
        (["train", *one(), "--audio-dim", 1024], "--audio-dim 1024, but the features of IEMOCAP have 8 numbers"),
        (["train", *one(), "--label-set", "cremad-6"], "label set 'cremad-6' does not match IEMOCAP", "disgust"),
        (["train", *one(), "--label-set", "cremad6"], "Did you mean 'cremad-6'"),
        (["train", *one(), "--mode", "sequence"], "one vector per utterance"),
        (["train", *one(), "--hidden-dim", 20], "hidden_dim=20"),
        (["train", *one(), "--lr", 0], "lr=0.0"),
        (["train", *one(), "--micl-weight", 0, "--micl-temp", 0.1], "--micl-temp without MICL"),
        (["train", *one(), "--num-layers", 0, "--vad-lambda", 1], "--vad-lambda with no cross-modal layer"),
        (["train", *one(), "--protocol", "loso"], "--protocol without --features"),
        (["train", *one(), "--text-encoder", "bert"], "--text-encoder without a folder"),
        (["train", *one(), "--features", "."], "with --features"),
        (["train", "--features", "nowhere"], "nowhere: no such folder"),
        (["train", *one(), "--workers", 2, "--scheduler", "tcp://x:1"], "both --workers and --scheduler"),
        (["train", *one(), "--output", "."], "a folder cannot hold the results"),
        (["train", *one(), "--scheduler", "nonsense"], "no Dask scheduler at nonsense"),
        (["train", *one(), "--preset", "tuned", "--patience", 3], "--patience with preset tuned, which keeps the last epoch"),
        (["baseline", *one(), "--method", "linear prob"], "Did you mean 'linear probe'"),
        (["finetune", *PAIR, "--freeze", "txt"], "Did you mean 'text'"),
        (["finetune", *PAIR[:4], *wide, "--target-label-order", "cremad-4"], "audio features of IEMOCAP", "9"),
        (["finetune", *PAIR, "--model", "baseline", "--micl-temp", 0.1], "--micl-temp with --model baseline"),
        (["fewshot", *PAIR, "--percentages", "10,200"], "200 percent"),
        (["fewshot", *PAIR, "--percentages", "ten"], "--percentages 'ten'"),
        (["fewshot", *PAIR, "--percentages", "2"], "a budget of"),
        (["adapt", *PAIR[:6], *PAIR[8:], "--method", "dan"], "Did you mean 'dann'"),
        (["finetune", *PAIR[:4], *one("two", "target-"), "--target-label-order", "anger,happiness"], "Choose one label set for both"),
        (["combine", "--train", "IEMOCAP_train.pkl,CREMAD_train.pkl", "--val", "IEMOCAP_val.pkl", "--test", "IEMOCAP_test.pkl,CREMAD_test.pkl"], "--val names 1, there are 2 corpora"),
        (["evaluate", "--run", "0"*16, "--test", "CREMAD_test.pkl"], "unknown run"),
    ]:
        code, stdout, err = here(*arguments, *out)
        said = [line for line in lines(err) if "read as" not in line and "cannot change a score" not in line]
        assert code == 2 and len(said) == 1 and said[0].startswith("mser: "), (arguments, err)
        for part in parts: assert part in said[0], said[0]
        assert not list((lists/"refused").glob("runs/*/*")) and not (lists/"it-ran").exists(), arguments


def test_an_unknown_option_is_refused_with_the_nearest(here):
    code, _, err = here("train", "--micl-tmp", 0.1)
    assert code == 2 and "--micl-temp" in err


def test_help_is_light_and_teaches():
    code = "import sys, mser.cli_train; print([m for m in ('torch', 'pandas', 'numpy', 'safetensors', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["train", "ablate", "baseline", "finetune", "fewshot", "adapt", "combine", "evaluate"])
def test_help_shows_an_example(command, here):
    code, out, _ = here(command, "--help")
    assert code == 0 and f"mser {command} --" in out and "Computing" in out
