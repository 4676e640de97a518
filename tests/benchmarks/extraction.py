"""How fast emotion2vec features are extracted, and whether they stay the same: funasr's generate() against ours in fp32 and bf16.

    OMP_WAIT_POLICY=passive python tests/benchmarks/extraction.py ../shared/data/emodb --size large --threads 2
    python tests/benchmarks/extraction.py ../shared/data/emodb --size large --device cuda

The three take turns on the same recordings, block by block, so that whatever else the machine does falls on all of them. Weights are random: they
decide neither the time nor how far bf16 is from fp32. Ours is timed as `extract` runs it: fingerprints of the recordings, decoding, encoding,
writing the store. funasr's is timed as `generate` runs it, from file names to arrays in memory. A logistic regression on the utterance
vectors, tested on speakers it has not seen, tells whether a classifier would notice the difference.

On a processor the work is bound by arithmetic, and a batch gains nothing. On a GPU one short clip leaves most of it idle. So with `--device` the question is another one: the
same network one clip at a time against batches of like length, in fp32 and bf16. Recordings are decoded before the clock starts, since only the device is
asked, and cut to between 0.4 and 1 of their length, drawn once, so that batches need padding. `--device cpu --size tiny` shows on any machine that the way there works; its ratio says nothing about a GPU.
"""
import argparse, json, os, tempfile, time
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with EmoDB's wav files in wav/")
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="large", help="architecture (default: large)")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu: compare batches with one by one there, instead of ours with funasr's")
    parser.add_argument("--batch-seconds", type=float, help="sound in a batch (default: what suits the device)")
    parser.add_argument("--repeats", type=int, default=3, help="with --device: turns for each way, of which the median is taken (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads for each (default: 2)")
    parser.add_argument("--limit", type=int, help="take every n-th recording, so many in all (default: all)")
    parser.add_argument("--block", type=int, default=64, help="recordings in a turn (default: 64)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    return parser.parse_args()


TINY = dict(width=32, prenet=1, depth=2, heads=4, conv_dim=16, groups=4, decoder_dim=16)


def stopwatch(fn, *args):
    "What `fn` returns, wall seconds and processor seconds."
    wall, cpu = time.perf_counter(), time.process_time()
    return fn(*args), time.perf_counter() - wall, time.process_time() - cpu


def probe(vectors, labels, speakers) -> float:
    "UA of a logistic regression on speakers it has not seen."
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return balanced_accuracy_score(labels, cross_val_predict(model, vectors, labels, groups=speakers, cv=LeaveOneGroupOut()))


def prepare_threads(n: int) -> None:
    os.environ.update(OMP_NUM_THREADS=str(n), MKL_NUM_THREADS=str(n))
    import torch
    torch.set_num_threads(n)


def recordings(args: argparse.Namespace):
    "EmoDB as a manifest, or every n-th of it."
    import numpy as np
    from mser.corpora.emodb import emodb
    corpus = emodb(args.corpus)
    return corpus.where(np.isin(np.arange(len(corpus)), np.linspace(0, len(corpus) - 1, args.limit).astype(int))) if args.limit else corpus


def random_model(folder: Path, size: str) -> Path:
    "An emotion2vec of this size, with random weights."
    from mser.encoders.emotion2vec import LABELS, SIZES, architecture, save_random
    return save_random(folder, architecture(**(TINY if size == "tiny" else SIZES[size])), LABELS)


def device_seconds(encoder, batches) -> tuple[float, list]:
    "Wall seconds until the device has finished, and what was encoded."
    import torch
    wait = torch.cuda.synchronize if encoder.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    encoded = [encoder.encode(batch) for batch in batches]
    wait()
    return time.perf_counter() - start, [e for batch in encoded for e in batch]


def batched_against_single(encoder, clips: list, repeats: int) -> dict:
    "The same clips one by one and in batches, in turns: median seconds, their ratio, and how far the vectors are apart."
    import numpy as np
    ways = {"one by one": [[clip] for clip in clips], "batched": [clips]}
    for batches in ways.values(): device_seconds(encoder, batches)  # warm-up: kernels are chosen, memory is taken
    runs = {name: [] for name in ways}
    for _ in range(repeats):
        for name, batches in ways.items(): runs[name].append(device_seconds(encoder, batches))
    single, batched = (np.median([seconds for seconds, _ in runs[name]]) for name in ways)
    a, b = (np.stack([e.utterance for e in runs[name][-1][1]]) for name in ways)
    cosine = (a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1)
    return {"one by one, s": single, "batched, s": batched, "ratio": single/batched, "least cosine": cosine.min(), "largest difference": np.abs(a - b).max()}


def compare_batches(args: argparse.Namespace) -> None:
    "What batches gain on a device."
    prepare_threads(args.threads)
    import numpy as np, pandas as pd, torch
    from mser.audio import load_audio
    from mser.encoders.emotion2vec import Emotion2vecEncoder
    corpus = recordings(args)
    shares = np.random.default_rng(0).uniform(0.4, 1, len(corpus))
    clips = [samples[:int(share*len(samples))] for share, samples in zip(shares, (load_audio(path, 16_000) for path in corpus.audio_paths()))]
    with tempfile.TemporaryDirectory() as d:
        folder = random_model(Path(d)/"model", args.size)
        encoders = {p: Emotion2vecEncoder(folder, precision=p, device=args.device, batch_seconds=args.batch_seconds) for p in ("fp32", "bf16")}
        table = pd.DataFrame({p: batched_against_single(encoder, clips, args.repeats) for p, encoder in encoders.items()}).T
    device = encoders["fp32"].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} threads of the processor"
    sound = sum(map(len, clips))/16_000
    print(f"emotion2vec {args.size}, random weights, {len(clips)} recordings, {sound:.0f} s of sound, batches of {encoders['fp32'].batch_seconds:g} s, on {name}")
    print(table.to_string(float_format="{:.6g}".format))
    if args.out: args.out.write_text(json.dumps(table.to_dict("index"), indent=1) + "\n")


def loaded(folder: Path, threads: int) -> dict:
    "Name to a function from a manifest to utterance vectors, in the order of its ids."
    import numpy as np
    from mser.encoders.emotion2vec import Emotion2vecEncoder, undisturbed
    from mser.features import extract
    with undisturbed():
        from funasr import AutoModel
        model = AutoModel(model=str(folder), device="cpu", disable_update=True, disable_pbar=True, ncpu=threads)

    def theirs(manifest, _):
        with undisturbed(): results = model.generate([str(p) for p in manifest.audio_paths()], granularity="frame")
        return np.stack([r["feats"].mean(axis=0) for r in results])

    def ours(precision):
        encoder = Emotion2vecEncoder(folder, precision=precision, device="cpu")
        return lambda manifest, out: extract(manifest, encoder, out/precision, progress=False).pooled(manifest.ids)

    return {"funasr generate()": theirs, "mser fp32": ours("fp32"), "mser bf16": ours("bf16")}


def main() -> None:
    args = arguments()
    if args.device: return compare_batches(args)
    prepare_threads(args.threads)
    import numpy as np, pandas as pd
    from tqdm import tqdm
    corpus = recordings(args)
    with tempfile.TemporaryDirectory() as d:
        ways = loaded(random_model(Path(d)/"model", args.size), args.threads)
        vectors, wall, cpu = ({name: [] for name in ways} for _ in range(3))
        warm_up = corpus.where(np.arange(len(corpus)) < 2)
        for way in ways.values(): way(warm_up, Path(d)/"warm-up")
        bar = tqdm(range(0, len(corpus), args.block), desc="blocks")
        for k in bar:
            block = corpus.where((np.arange(len(corpus))//args.block) == k//args.block)
            for name, way in ways.items():
                got, seconds, busy = stopwatch(way, block, Path(d)/"features")
                for held, value in ((vectors, got), (wall, seconds), (cpu, busy)): held[name].append(value)
            bar.set_postfix({f"{name}, s": f"{sum(seconds):.0f}" for name, seconds in wall.items()})
    vectors = {name: np.concatenate(v) for name, v in vectors.items()}
    reference, sound = vectors["funasr generate()"], corpus.table.duration.sum()
    def cosine(v): return (v*reference).sum(1)/np.linalg.norm(v, axis=1)/np.linalg.norm(reference, axis=1)
    table = pd.DataFrame({name: {
        "seconds": sum(wall[name]), "times real time": sound/sum(wall[name]), "throughput over funasr": sum(wall["funasr generate()"])/sum(wall[name]),
        "processor seconds": sum(cpu[name]), "least cosine to funasr": cosine(v).min(), "largest difference": np.abs(v - reference).max(),
        "probe UA": probe(v, corpus.table.label, corpus.table.speaker)} for name, v in vectors.items()}).T
    print(f"emotion2vec {args.size}, random weights, {len(corpus)} recordings, {sound:.0f} s of sound, {args.threads} threads")
    print(table.to_string(float_format="{:.6g}".format))
    if args.out: args.out.write_text(json.dumps(table.to_dict("index"), indent=1) + "\n")


if __name__ == "__main__": main()
