"""Does training need more memory for more utterances? Peak of a process that trains the paper's model in sequence mode.

    python tests/benchmarks/memory_of_training.py 5000 50000

Each number of utterances (24 tokens of 768 and 32 segments of 1,024 numbers, made up) is written as feature stores in a folder that is removed at the end.
Then two fresh processes train the same steps on the same utterances: one takes them from the whole corpus, where that is larger than the budget from files;
the other holds these few in memory. The line of each gives peak MiB (`ru_maxrss`), seconds to open the data (the first time files are written) and to fit the
input standardisation on all of it, milliseconds per batch over one whole epoch without a model, and milliseconds per training step (`cpu`: of computing, which
suffers less from other work on the machine). Both must learn the same, bit for bit.
"""
import argparse, json, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, pandas as pd, torch

from mser.dataset import RESIDENT, gather
from mser.encoders.base import Encoded, EncoderCard
from mser.labels import label_set
from mser.manifest import make_manifest
from mser.model import ModelConfig
from mser.store import DTYPES, FeatureStore, write_store
from mser.training import TrainConfig, batches, build, fit

SIZES = {"text": (24, 768), "audio": (32, 1024)}  # positions, numbers in each
SEGMENT = 0.1  # seconds


def made_up(n: int):
    "A manifest of `n` utterances."
    labels = np.resize(label_set("4").classes, n)
    return make_manifest(pd.DataFrame({"id": [f"{i:07}" for i in range(n)], "corpus": "made-up", "text": "-", "speaker": "s", "label": labels}))


def features(n: int, length: int, dim: int, dtype: str):
    "Pieces of one block of noise, so that making them costs nothing."
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4096 + length, dim), dtype=np.float32).astype(DTYPES[dtype])
    for i, start in enumerate(rng.integers(4096, size=n)): yield f"{i:07}", Encoded(noise[start:start + length], noise[start])


def write(folder: Path, n: int, dtype: str, average: int) -> None:
    "Stores of both modalities; `average` audio frames make a segment."
    for modality, (length, dim) in SIZES.items():
        hop = SEGMENT/average if modality == "audio" else None
        card = EncoderCard(name=f"noise-{modality}", modality=modality, frame_dim=dim, utterance_dim=dim, hop_seconds=hop, pretraining="none", licence="MIT")
        write_store(folder/modality, card, features(n, length*(average if hop else 1), dim, dtype), "made up", dtype, shard_size=64)


def timed(fn):
    "What it returns, seconds on the clock, and seconds of computing (which other work on the machine stretches less)."
    start, computing = time.perf_counter(), time.process_time()
    return fn(), time.perf_counter() - start, time.process_time() - computing


def train(folder: Path, n: int, steps: int, resident: int) -> dict:
    "Train some steps; of a corpus that is kept in memory only the utterances of these steps are loaded."
    torch.set_num_threads(1)
    few = [f"{i:07}" for i in np.random.default_rng(1).permutation(n)[:16*steps + 256]]
    manifest, stores = made_up(n), [FeatureStore(folder/m) for m in SIZES]
    data, opened, _ = timed(lambda: gather(manifest.take(few) if resident > RESIDENT else manifest, label_set("4"), *stores, "sequence", SEGMENT, resident=resident))
    _, standardised, _ = timed(lambda: build(ModelConfig(), data, seed=0))
    read, reading, copying = timed(lambda: sum(len(data.batch(i).labels) for i in batches(len(data), 16, torch.Generator().manual_seed(0), data.lengths)))
    part, val = data.take(few[:16*steps]), data.take(few[16*steps:])
    fitted, training, computing = timed(lambda: fit(build(ModelConfig(), part, seed=0), part, val, TrainConfig(epochs=1), seed=0))
    return {"utterances": len(data), "source": type(data.audio.source).__name__, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024,
            "open_s": round(opened, 1), "standardise_s": round(standardised, 1), "batch_ms": round(1000*reading/(read/16), 2),
            "batch_cpu_ms": round(1000*copying/(read/16), 2), "step_ms": round(1000*training/steps), "step_cpu_ms": round(1000*computing/steps), "loss": fitted.history["loss"].iloc[0], "val_ua": fitted.history["val_ua"].iloc[0]}


def run(*given) -> dict | None:
    "This file in a fresh process."
    done = subprocess.run([sys.executable, __file__, *map(str, given)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.stdout else None


def compare(n: int, dtype: str, average: int, steps: int, folder: str | None) -> None:
    "Write, train twice, print, remove."
    need = 2*n*sum(length*dim for length, dim in SIZES.values())*np.dtype(DTYPES[dtype]).itemsize*(1 + average)//2
    if shutil.disk_usage(folder or tempfile.gettempdir()).free < 1.5*need: sys.exit(f"{need/2**30:.0f} GiB of disk are needed")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        run("--write", work, n, "--dtype", dtype, "--average", average)
        lines = [run("--train", work, n, "--steps", steps, "--resident", resident) for resident in (RESIDENT, sys.maxsize)]
        for line in lines: print(json.dumps({"dtype": dtype, **line}), flush=True)
        for name in ("loss", "val_ua"): assert lines[0][name] == lines[1][name], f"{name} depends on where the data lies"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("utterances", type=int, nargs="+")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the stored numbers")
    parser.add_argument("--average", type=int, default=1, help="audio frames in a segment")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--folder", help="where there is room, on a disk and not in memory")
    parser.add_argument("--resident", type=int, default=RESIDENT, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write: write(given.write, given.utterances[0], given.dtype, given.average)
    elif given.train: print(json.dumps(train(given.train, given.utterances[0], given.steps, given.resident)))
    else:
        for n in given.utterances: compare(n, given.dtype, given.average, given.steps, given.folder)
