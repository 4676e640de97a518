"""How fast training is beside the obvious way: the same data, architecture, hyperparameters and number of epochs, in turn, on two cores.

    python tests/benchmarks/engine.py --part seeds sequence --rounds 3

Parts:
  seeds     five seeds on pooled features, validation after every epoch. The obvious way is a plain PyTorch trainer (--reference), with both cores for each of its runs;
            ours are two processes with a core each, in fp32 and in bf16.
  fewshot   four shares of a corpus's labels with three seeds each, from the run specs of `mser fewshot` to their results on disk: one pretraining for each seed,
            which its four fine-tunings start from, on two processes. The obvious way pretrains again for each of the twelve, at what a step of the plain trainer costs
            (measured in the same turn) times the steps that the same epochs take, stopping as early as ours.
  sequence  one model on tokens and segments: ours against the same network with every batch padded to the longest utterance, attention written out, default AdamW and
            PyTorch's dropout, both on one core.
  step      processor milliseconds of one step, plain and fast, on one core: the figure that other work on the machine disturbs least.

The ways take turns, round by round, so that whatever else the machine does falls on all of them; medians and ratios are over rounds.
"""
import argparse, json, os, statistics, subprocess, sys, time
from pathlib import Path

N_TRAIN, N_VAL, BATCH = 3259, 1031, 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--reference", type=Path, default=Path("../shared/bench/reference_trainer.py"), help="the plain trainer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of ours in a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    return parser.parse_args()


def reference_module(path: Path):
    "The plain trainer, as a module."
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location("reference_trainer", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pooled_data(path: Path, n: int, seed: int):
    "The utterances that the plain trainer makes, as it makes them."
    import torch
    from mser.dataset import padded_data
    from mser.labels import LabelSet
    from mser.losses import vad_targets
    rows = reference_module(path).synthetic(n, seed)
    labels = torch.stack([r["label"] for r in rows])
    stacked = [torch.stack([r[k] for r in rows])[:, None] for k in ("text_embed", "audio_embed")]
    return padded_data(*stacked, labels, vad=vad_targets(labels, torch.tensor(ANCHORS)))


ANCHORS = [[-.666, .730, .314], [.960, .648, .588], [-.062, -.632, -.286], [-.896, -.424, -.672]]


def train_once(path: str, epochs: int, seed: int, precision: str) -> dict:
    "One run of ours: milliseconds a step, validation included, and the UA after the last epoch."
    from mser.model import ModelConfig
    from mser.training import TrainConfig, build, fit
    train, val = pooled_data(path, N_TRAIN, 1), pooled_data(path, N_VAL, 2)
    model, config = build(ModelConfig(text_dim=768, audio_dim=1024), train, seed), TrainConfig(epochs=epochs, patience=epochs, precision=precision, step="fast")
    start, busy = time.perf_counter(), time.process_time()
    history = fit(model, train, val, config, seed=seed).history
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    steps = epochs*-(-N_TRAIN//BATCH)
    return dict(wall=wall, ms=1e3*wall/steps, cpu_ms=1e3*cpu/steps, ua=float(history.val_ua.iloc[-1]))


def reference_once(args) -> dict:
    "One run of the plain trainer with both cores."
    env = os.environ | dict(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
    busy = os.times()
    out = subprocess.run([sys.executable, args.reference, "--synthetic", "--epochs", str(args.epochs), "--threads", "2"], env=env, check=True, capture_output=True, text=True)
    told, after = json.loads(out.stdout.splitlines()[-1]), os.times()
    cpu = after.children_user + after.children_system - busy.children_user - busy.children_system
    return dict(ms=told["ms_per_step"], cpu_ms=1e3*cpu/told["steps"], ua=told["val_ua"])


def seeds(args) -> list[dict]:
    "Rows of the part `seeds`."
    from mser.parallel import process_pool
    rows = []
    for turn in range(args.rounds):
        r = reference_once(args)
        rows.append(dict(way="reference", turn=turn, ms=r["ms"], cpu_ms=r["cpu_ms"], ua=r["ua"]))
        for precision in ("fp32", "bf16"):
            with process_pool(2) as pool:
                list(pool.map(warm, range(2)))
                start = time.perf_counter()
                done = list(pool.map(train_once, *zip(*[(str(args.reference), args.epochs, seed, precision) for seed in range(args.seeds)])))
            steps = args.seeds*args.epochs*-(-N_TRAIN//BATCH)
            rows.append(dict(way=f"mser {precision}", turn=turn, ms=statistics.mean(d["ms"] for d in done)/2,
                             whole_ms=1e3*(time.perf_counter() - start)/steps, cpu_ms=statistics.mean(d["cpu_ms"] for d in done), ua=statistics.mean(d["ua"] for d in done)))
        show(rows[-3:])
    return rows


SHARES, SHARED_SEEDS, SCALE = (0.1, 0.2, 0.5, 1.0), 3, 0.25  # SCALE: of both corpora


def few_shot_specs(root: Path, precision: str) -> list:
    "Fine-tuned runs and, inside them, the pretrained runs they start from. A quarter of the corpora, a tenth of the epochs, and a fifth of the patience of the paper's."
    from mser.experiment import PRESETS, Experiment, Profile
    from mser.prepare import prepare, prepare_splits
    from mser.regimes import budgeted, fine_tuned
    preset = PRESETS["paper"]
    preset = preset.model_copy(update={"train": preset.train.model_copy(update={"epochs": 10, "patience": 3, "precision": precision})})
    profile, opened = Profile(name="bench", seeds=SHARED_SEEDS, scale=SCALE), []
    for name, protocol in (("sim-iemocap", "sessions-3-1-1"), ("sim-cremad", "speaker-split")):
        prepared = prepare(name, None, root, scale=profile.scale)
        labels = prepared.labels()
        opened.append(Experiment(prepared, root, profile, preset, labels, prepare_splits(prepared.manifest.keep(labels), protocol, root)))
    source, target = opened
    starts, specs = source.row("full model", source.network(), [0]).specs, []
    for start in starts:
        for share in SHARES:
            data, splits = budgeted(target.splits, target.prepared.manifest.keep(target.label_set), target.data, share, start.seed)
            splits.save(root/"splits"/f"{splits.fingerprint}.parquet")
            specs.append(fine_tuned(start, data, 0, epochs=5, patience=2))
    return specs


def steps_of(store, spec) -> int:
    "How many steps a finished run took."
    from mser.training import n_batches
    told = store.metrics(spec.hash)
    return told["epochs"]*n_batches(told["n_train"], BATCH)


def few_shot_once(root: Path, precision: str) -> dict:
    "The experiment from its specs: seconds, steps taken and saved, and mean test UA."
    from mser.parallel import process_pool
    from mser.runs import RunStore, run_many
    specs, store = few_shot_specs(root, precision), RunStore(root/"runs")
    with process_pool(2) as pool:
        list(pool.map(warm, range(2)))
        start = time.perf_counter()
        run_many(specs, root, pool, progress=False)
    seconds = time.perf_counter() - start
    pretraining, tuning = (sum(steps_of(store, s) for s in runs) for runs in ({s.start.hash: s.start for s in specs}.values(), specs))
    alone = sum(steps_of(store, s.start) + steps_of(store, s) for s in specs)
    return dict(seconds=seconds, steps=pretraining + tuning, alone=alone, ua=statistics.mean(store.metrics(s.hash)["test"]["ua"] for s in specs))


def fewshot(args) -> list[dict]:
    "Rows of the part `fewshot`."
    from tempfile import TemporaryDirectory
    rows = []
    for turn in range(args.rounds):
        ms = reference_once(argparse.Namespace(**{**vars(args), "epochs": 1}))["ms"]
        for precision in ("fp32", "bf16"):
            with TemporaryDirectory() as folder: r = few_shot_once(Path(folder), precision)
            obvious = ms*r["alone"]/1e3
            rows.append(dict(way=f"mser {precision}", turn=turn, obvious_seconds=obvious, **r, **{"times faster": obvious/r["seconds"]}))
        show(rows[-2:])
    return rows


def warm(_) -> None:
    "Import what training needs and compile it, where that has not happened yet."
    import mser.training
    time.sleep(1)


def sequence_data(n=1600, tokens=24, segments=32):
    "Utterances of differing lengths: half of the longest on average, as speech corpora have them."
    import torch
    from mser.dataset import padded_data
    from mser.losses import vad_targets
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (n,), generator=g)
    share = torch.rand(n, generator=g)*0.9 + 0.05
    masks = [torch.arange(length) < (share*length).ceil()[:, None] for length in (tokens, segments)]
    values = [torch.randn(n, length, d, generator=g)*m[..., None] for length, d, m in zip((tokens, segments), (768, 1024), masks)]
    return padded_data(*values, labels, *masks, vad=vad_targets(labels, torch.tensor(ANCHORS)))


def sequence_once(way: str, data, steps: int = 20) -> dict:
    "Milliseconds of a step on sequences."
    import torch
    from torch import nn
    from mser.attention import VADGuidedAttention
    from mser.losses import LossConfig, TotalLoss
    from mser.model import ModelConfig, MultimodalSER
    from mser.step import make_step
    from mser.training import batches
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, objective = MultimodalSER(ModelConfig(text_dim=768, audio_dim=1024)).train(), TotalLoss(LossConfig(), torch.ones(4))
    generator = torch.Generator().manual_seed(0)
    if way == "padded":
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
        for m in model.modules():
            if isinstance(m, VADGuidedAttention): m.attend = lambda q, c, mask=None, need_weights=False, m=m: VADGuidedAttention.attend(m, q, c, mask, True)
        whole = data.whole()  # every utterance as long as the longest
        def one(index):
            loss, _ = objective(model(*(t[index] for t in whole.inputs)), whole.labels[index], whole.vad[index])
            optimiser.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimiser.step(); loss.item()
        order = batches(len(data), BATCH, generator)
        run = lambda: [one(index) for _, index in zip(range(steps), order)]
    else:
        step = make_step(model, torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True), 1.0, way.split()[-1])
        order = batches(len(data), BATCH, generator, data.lengths)
        def run():
            with step:
                for _, index in zip(range(steps), order):
                    batch = data.batch(index)
                    step(objective(model(*batch.inputs), batch.labels, batch.vad)[0])
    start, busy = time.perf_counter(), time.process_time()
    run()
    return dict(ms=1e3*(time.perf_counter() - start)/steps, cpu_ms=1e3*(time.process_time() - busy)/steps)


def sequence(args) -> list[dict]:
    "Rows of the part `sequence`."
    data, rows = sequence_data(), []
    sequence_once("mser fp32", data, 2)
    for turn in range(args.rounds):
        for way in ("padded", "mser fp32", "mser bf16"): rows.append(dict(way=way, turn=turn, **sequence_once(way, data)))
    return rows


def step(args) -> list[dict]:
    "Rows of the part `step`."
    import torch
    from mser.losses import LossConfig, TotalLoss
    from mser.model import ModelConfig, MultimodalSER
    from mser.step import FastStep, PlainStep
    torch.set_num_threads(1)
    data, objective, rows = pooled_data(args.reference, 640, 1), TotalLoss(LossConfig(), torch.ones(4)), []
    ways = {}
    for name, kind, precision in (("plain fp32", PlainStep, "fp32"), ("fast fp32", FastStep, "fp32"), ("fast bf16", FastStep, "bf16")):
        model = MultimodalSER(ModelConfig(text_dim=768, audio_dim=1024)).train()
        ways[name] = model, kind(model, torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True), 1.0, precision)
    for turn in range(-1, args.rounds):
        for name, (model, one) in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            with one:
                for index in torch.arange(640).split(BATCH):
                    batch = data.batch(index)
                    one(objective(model(*batch.inputs), batch.labels, batch.vad)[0])
            if turn >= 0: rows.append(dict(way=name, turn=turn, ms=1e3*(time.perf_counter() - start)/40, cpu_ms=1e3*(time.process_time() - busy)/40))
    return rows


def show(rows: list[dict]) -> None:
    "Medians over the turns, and how many times faster than the first way where a row does not say it."
    import pandas as pd
    table = pd.DataFrame(rows).groupby("way", sort=False).median().drop(columns="turn")
    if "times faster" not in table: table["times faster"] = table["ms"].iloc[0]/table["ms"]
    print(table.to_string(float_format="{:.4g}".format), flush=True)


PARTS = {"seeds": seeds, "fewshot": fewshot, "sequence": sequence, "step": step}


def main() -> None:
    args = arguments()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    print("ms: wall milliseconds of a step, for `seeds` divided by the runs side by side; cpu_ms: processor milliseconds of a step")
    figures = {}
    for part in args.part:
        print(f"\n{part}: median of {args.rounds} rounds", flush=True)
        figures[part] = PARTS[part](args)
        show(figures[part])
    if args.out: args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__": main()
