"The simulated corpora at full size: time, memory and streaming. Everything else is tested in nbs/02b_simulated.ipynb."
import json, subprocess, sys

import numpy as np
import pytest

from mser.corpora.simulated import SIMULATED, simulate

MIB = 2**20

# Each measurement has a process of its own, so that its peak memory is its own: Linux starts ru_maxrss of a new process at what its parent
# holds, but not VmHWM. CPU time is tested, since wall time depends on what else the machine is doing; notebook 02b shows wall time.
PEAK = """
import pathlib, re, resource, sys
def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""

MEASURE = PEAK + """
import json, sys, time
import numpy as np
from mser.corpora.simulated import SIMULATED, simulate
name, fields = sys.argv[1], json.loads(sys.argv[2])
before, started = peak(), time.process_time()
corpus = simulate(SIMULATED[name].model_copy(update=fields))
if corpus.config.form == "pooled":
    kept = [np.stack([u for *_, u in stream]) for stream in (corpus.text(), corpus.audio())]
    streamed = sum(a.nbytes for a in kept)
else: streamed = sum(f.nbytes for stream in (corpus.text(), corpus.audio()) for _, f, _ in stream)
print(json.dumps({"n": len(corpus.manifest), "seconds": time.process_time() - started, "peak": peak(), "grown": peak() - before, "streamed": streamed}))
"""


def measure(name, **fields):
    done = subprocess.run([sys.executable, "-c", MEASURE, name, json.dumps(fields)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name, n", [("sim-iemocap", 5531), ("sim-cremad", 4900)])
def test_full_pooled_form_takes_15_seconds_and_1_gib_at_most(name, n):
    found = measure(name)
    assert found["n"] == n
    assert found["streamed"] == n * (768 + 1024) * 4
    assert found["seconds"] <= 15, found
    assert found["peak"] <= 1024 * MIB, found


def test_sequence_form_is_streamed():
    found = measure("sim-iemocap", form="sequence", scale=0.2, frame_rate=50.0)  # a speech encoder's own frame rate
    assert found["streamed"] > 1000 * MIB
    assert found["grown"] < 200 * MIB, found  # what is held does not grow with what is made
    assert found["peak"] <= 2048 * MIB, found


STORE = PEAK + """
import json, tempfile
from mser.corpora.simulated import SIMULATED
from mser.prepare import prepare_simulated
config = SIMULATED["sim-iemocap"].model_copy(update={"form": "sequence"})
with tempfile.TemporaryDirectory() as root:
    made = prepare_simulated(config, root)
    print(json.dumps({"n": len(made.audio), "words": made.text.n_frames, "frames": made.audio.n_frames, "bytes": made.text.n_bytes + made.audio.n_bytes, "peak": peak()}))
"""


def test_full_sequence_form_goes_to_a_feature_store_shard_by_shard():
    found = json.loads(subprocess.run([sys.executable, "-c", STORE], capture_output=True, text=True, check=True).stdout)
    assert found["n"] == 5531
    assert found["bytes"] > (found["words"] * 768 + found["frames"] * 1024) * 4 > 1200 * MIB
    assert found["peak"] <= 1024 * MIB, found  # a shard at a time, not a corpus; 2 GiB are allowed


def test_passes_are_independent_of_each_other():
    corpus = simulate(SIMULATED["sim-iemocap"].model_copy(update={"scale": 0.01, "form": "sequence"}))
    together = list(zip(corpus.text(), corpus.audio()))  # two passes, interleaved
    for stream, alone in zip(zip(*together), (corpus.text(), corpus.audio())):
        for (id_a, frames_a, mean_a), (id_b, frames_b, mean_b) in zip(stream, alone, strict=True):
            assert id_a == id_b
            np.testing.assert_array_equal(frames_a, frames_b)
            np.testing.assert_array_equal(mean_a, mean_b)


@pytest.mark.parametrize("name", SIMULATED)
def test_two_processes_make_the_same_corpus(name):
    code = ("import hashlib, sys; from mser.corpora.simulated import SIMULATED, simulate\n"
            "c = simulate(SIMULATED[sys.argv[1]].model_copy(update={'scale': 0.01, 'form': 'sequence'})); h = hashlib.sha256()\n"
            "for stream in (c.text(), c.audio()):\n"
            "    for _, frames, mean in stream: h.update(frames.tobytes()); h.update(mean.tobytes())\n"
            "print(h.hexdigest(), c.manifest.fingerprint)")
    runs = {subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
