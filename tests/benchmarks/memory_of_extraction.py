"""Does extraction need more memory for more clips? Peak of the whole process tree, for as many clips as asked.

    python tests/benchmarks/memory_of_extraction.py --workers 2 2000 20000

Each number of clips is extracted in a fresh process; the line for it gives peak MiB (resident, summed over the processes) and seconds.
"""
import argparse, json, os, subprocess, sys, tempfile, threading, time
from pathlib import Path

import numpy as np, pandas as pd, psutil, soundfile as sf

from mser.encoders.base import Encoded, EncoderCard
from mser.features import extract
from mser.manifest import make_manifest


class Spectra:
    "A light encoder: log energies of 257 frequencies every 10 ms, and their mean."
    card = EncoderCard(name="spectra", modality="audio", frame_dim=257, utterance_dim=257, hop_seconds=0.01, sample_rate=16_000, pretraining="none",
                       licence="MIT")

    def encode(self, items):
        windows = (np.lib.stride_tricks.sliding_window_view(samples, 512)[::160]*np.hanning(512) for samples in items)  # [n, 512]
        frames = (np.log(np.abs(np.fft.rfft(w)) + 1e-6).astype(np.float32) for w in windows)  # [n, 257]
        return [Encoded(f, f.mean(axis=0)) for f in frames]


def make_clips(folder: Path, n: int):
    "A manifest of `n` clips of 0.1 s: 64 different sounds, the other files are links to them."
    rng = np.random.default_rng(0)
    for i in range(n):
        if i < 64: sf.write(folder/f"{i:05}.wav", 0.1*rng.standard_normal(1600), 16_000)
        else: os.link(folder/f"{i % 64:05}.wav", folder/f"{i:05}.wav")
    names = [f"{i:05}" for i in range(n)]
    table = pd.DataFrame({"id": names, "corpus": "clips", "audio": [f"{name}.wav" for name in names], "text": "", "label": "neutral", "speaker": "s"})
    return make_manifest(table, root=folder)


class Peak(threading.Thread):
    "Samples the resident memory of this process and its children."
    def __init__(self): super().__init__(daemon=True); self.bytes, self.stopped = 0, False
    def run(self):
        me = psutil.Process()
        while not self.stopped:
            self.bytes = max(self.bytes, sum(rss(p) for p in [me, *me.children(recursive=True)]))
            time.sleep(0.02)


def rss(process) -> int:
    try: return process.memory_info().rss
    except psutil.Error: return 0  # it has ended


def measure(n: int, workers: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        manifest, peak, start = make_clips(Path(folder), n), Peak(), time.monotonic()
        peak.start()
        store = extract(manifest, Spectra(), Path(folder)/"features", workers=workers, progress=False)
        peak.stopped = True
        return {"clips": len(store), "workers": workers, "peak_mib": round(peak.bytes/2**20), "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    if len(given.clips) == 1: print(json.dumps(measure(given.clips[0], given.workers)))
    else:
        for n in given.clips: subprocess.run([sys.executable, __file__, str(n), "--workers", str(given.workers)], check=True)
