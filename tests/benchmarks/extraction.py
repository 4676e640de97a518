"""How fast emotion2vec features are extracted, and whether they stay the same: funasr's generate() against ours in fp32 and bf16.

    python tests/benchmarks/extraction.py ../shared/data/emodb --size large --threads 2

The three take turns on the same recordings, block by block, so that whatever else the machine does falls on all of them. Weights are random: they
decide neither the time nor how far bf16 is from fp32. Ours is timed as `extract` runs it: fingerprints of the recordings, decoding, encoding,
writing the store. funasr's is timed as `generate` runs it, from file names to arrays in memory. A logistic regression on the utterance
vectors, tested on speakers it has not seen, tells whether a classifier would notice the difference.
"""
import argparse, json, os, tempfile, time
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with EmoDB's wav files in wav/")
    parser.add_argument("--size", choices=["base", "large"], default="large", help="architecture (default: large)")
    parser.add_argument("--threads", type=int, default=2, help="threads for each (default: 2)")
    parser.add_argument("--limit", type=int, help="take every n-th recording, so many in all (default: all)")
    parser.add_argument("--block", type=int, default=64, help="recordings in a turn (default: 64)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    return parser.parse_args()


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
    os.environ.update(OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
    import numpy as np, pandas as pd, torch
    from tqdm import tqdm
    from mser.corpora.emodb import emodb
    from mser.encoders.emotion2vec import LABELS, SIZES, architecture, save_random
    torch.set_num_threads(args.threads)
    corpus = emodb(args.corpus)
    if args.limit: corpus = corpus.where(np.isin(np.arange(len(corpus)), np.linspace(0, len(corpus) - 1, args.limit).astype(int)))
    with tempfile.TemporaryDirectory() as d:
        ways = loaded(save_random(Path(d)/"model", architecture(**SIZES[args.size]), LABELS), args.threads)
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
