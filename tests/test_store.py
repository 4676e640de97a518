"Stores that are large, damaged, killed while they are written, or written to a disk that is full."
import json, os, resource, shutil, signal, struct, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from mser.core import InputError, digest, digest_file, write_json
from mser.encoders.base import Encoded, EncoderCard
from mser.manifest import make_manifest
from mser.store import DTYPES, FORMAT, SEAL, FeatureStore, average_frames, group_starts, shard_path, write_store

CARD = EncoderCard(name="toy", modality="audio", frame_dim=3, utterance_dim=2, hop_seconds=0.02, pretraining="none", licence="MIT")
few = settings(max_examples=30, deadline=None, derandomize=True)
HERE = Path(__file__).parent


def encoded(n, seed=0):
    rng = np.random.default_rng(seed)
    return Encoded(rng.standard_normal((n, 3)).astype(np.float32), rng.standard_normal(2).astype(np.float32), truncated=n == 7)


def content(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


# Large

def sparse_shard(path: Path, n: int, length: int, dim: int):
    "A shard of `n` utterances, `length` frames each: a real header, and a hole where the numbers would be."
    frames, ends = 2*n*length*dim, 2*n*(length + 1)*dim  # bytes
    header = json.dumps({"frames": {"dtype": "F16", "shape": [n*length, dim], "data_offsets": [0, frames]},
                         "utterance": {"dtype": "F16", "shape": [n, dim], "data_offsets": [frames, ends]}}).encode()
    header += b" "*(-len(header) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + ends)


def sparse_store(folder: Path, n_shards: int, in_shard: int, length: int, dim: int) -> Path:
    "A store in all but its numbers, which are holes; digests of the shards are not taken."
    folder.mkdir()
    for k in range(n_shards): sparse_shard(shard_path(folder, k), in_shard, length, dim)
    n, rank = n_shards*in_shard, np.tile(np.arange(in_shard), n_shards)
    index = pd.DataFrame({"id": [f"Ses{i//1000:03}_utterance_{i:06}" for i in range(n)], "shard": np.repeat(np.arange(n_shards), in_shard), "rank": rank,
                          "start": rank*length, "length": length, "truncated": False, "silent": False})
    index.to_parquet(folder/"index.parquet", index=False)
    card = CARD.model_copy(update={"frame_dim": dim, "utterance_dim": dim})
    files = {shard_path(folder, k).name: "0"*16 for k in range(n_shards)} | {"index.parquet": digest_file(folder/"index.parquet")}
    about = {"format": FORMAT, "fingerprint": "f"*16, "card": card.model_dump(mode="json"), "source": "s", "dtype": "float16", "n_utterances": n,
             "n_frames": n*length, "n_truncated": 0, "n_silent": 0, "skipped": [], "files": files}
    write_json(folder/"store.json", about | {SEAL: digest(about)})
    return folder


BOUNDED = """
import resource, sys
import numpy as np
from mser.store import OPEN_SHARDS, FeatureStore
def io(): return dict(line.split(": ") for line in open("/proc/self/io"))
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))  # what is allocated, not what is mapped
read, faults = int(io()["rchar"]), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
store = FeatureStore(sys.argv[1])
ids = [store.ids[i] for i in np.random.default_rng(0).integers(0, len(store), 100)]
print(len(store), store.pooled(ids).shape, store.frames(ids[0]).shape, store.ragged(ids[:5], 5)[0].shape)
for name in store.ids[::len(store)//40]: store.frames(name)
mapped = {line.split()[-1] for line in open("/proc/self/maps") if ".safetensors" in line}
assert 0 < len(mapped) <= OPEN_SHARDS, mapped
assert int(io()["rchar"]) - read < 100e6 and resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 100_000  # 50 GB are 12 million pages
"""


def sizes(store): return sum(p.stat().st_size for p in store.iterdir()), sum(p.stat().st_blocks*512 for p in store.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process maps and reads is told by /proc")
@pytest.mark.parametrize("n_shards, in_shard", [(1600, 64), (1, 102_400)])
def test_50_gb_are_read_in_a_gigabyte_of_memory(tmp_path, n_shards, in_shard):
    "Opening reads the index alone, rows from all over cost their own size, and few shards stay mapped: the kernel counts, and refuses more memory."
    path = sparse_store(tmp_path/"large", n_shards, in_shard, length=240, dim=1024)  # 102,400 utterances, 4.8 s each at 50 Hz
    apparent, real = sizes(path)
    assert apparent > 50e9 and real < 100e6
    done = subprocess.run([sys.executable, "-c", BOUNDED, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "102400 (100, 1024) (240, 1024) (240, 1024)\n"), done.stderr


# Damaged

@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    items = [(f"u{i:02}", encoded(3 + i % 4, i)) for i in range(10)]
    return write_store(tmp_path_factory.mktemp("sound")/"store", CARD, items, "source", shard_size=4).path


@few
@given(st.sampled_from(["index.parquet", "store.json", *(f"shard-{k:05}.safetensors" for k in range(3))]), st.floats(0, 1, exclude_max=True),
       st.integers(1, 255))
def test_any_changed_byte_is_found_and_named(sound, tmp_path_factory, name, where, change):
    path = Path(shutil.copytree(sound, tmp_path_factory.mktemp("damaged")/"store"))
    data = bytearray((path/name).read_bytes())
    data[int(where*len(data))] ^= change
    (path/name).write_bytes(data)
    try: problems = FeatureStore(path).verify()
    except InputError as e: problems = [str(e)]
    assert len(problems) == 1 and name.split(".")[0] in problems[0] and "\n" not in problems[0]
    if name == "shard-00001.safetensors": assert "utterances u04 to u07" in problems[0]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_named_and_refused(sound, tmp_path, keep):
    path = Path(shutil.copytree(sound, tmp_path/"store"))
    shard = shard_path(path, 2)
    shard.write_bytes(shard.read_bytes()[:keep])
    store = FeatureStore(path)
    assert store.verify() == ["shard-00002.safetensors (utterances u08 to u09) was changed after it was written"]
    with pytest.raises(InputError, match="shard-00002.safetensors: damaged"): store.frames("u09")


def test_verify_shows_progress(sound, capfd):
    FeatureStore(sound).verify(progress=True)
    assert "verify store" in capfd.readouterr().err


# Killed, and a disk that is full

JOB = """
import os, signal, sys
import mser.features
from memory_of_extraction import Spectra
from mser.core import InputError
from mser.manifest import read_manifest

manifest, out, workers, killed_after = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
write, written = mser.features.write_shard, []
def write_and_die(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == killed_after: os.kill(os.getpid(), signal.SIGKILL)

mser.features.write_shard = write_and_die
try: mser.features.extract(read_manifest(manifest), Spectra(), out, dtype="bfloat16", shard_size=4, workers=workers, progress=False)
except InputError as e: sys.exit(str(e))
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    import soundfile as sf
    from mser.manifest import write_manifest
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for i in range(24): sf.write(folder/f"c{i:02}.wav", 0.1*rng.standard_normal(int(16_000*rng.uniform(0.2, 0.6))), 16_000)
    table = pd.DataFrame({"id": [f"c{i:02}" for i in range(24)], "corpus": "clips", "audio": [f"c{i:02}.wav" for i in range(24)], "text": "",
                          "label": "neutral", "speaker": "s"})
    write_manifest(make_manifest(table), folder/"manifest.csv")
    return folder/"manifest.csv"


def with_benchmarks(): return os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE/"benchmarks"), os.environ.get("PYTHONPATH", "")])}


def start(manifest, out, workers=1, killed_after=0, **options):
    return subprocess.Popen([sys.executable, "-c", JOB, str(manifest), str(out), str(workers), str(killed_after)], stderr=subprocess.PIPE, text=True,
                            env=with_benchmarks(), **options)


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(clips, out).wait() == 0
    path, = out.iterdir()
    assert FeatureStore(path).verify() == [] and FeatureStore(path).dtype == "bfloat16"
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_shard_and_resumed_gives_the_same_bytes(clips, undisturbed, tmp_path, workers):
    out = tmp_path/undisturbed.name
    for n in (1, 3, 5):  # killed three times on the way
        done = len(list(out.glob("shard-*")))
        job = start(clips, tmp_path, workers, killed_after=n - done)
        assert job.wait() == -signal.SIGKILL, job.stderr.read()
        assert len(list(out.glob("shard-*"))) == n and not (out/"store.json").exists()
        with pytest.raises(InputError, match="not a finished feature store"): FeatureStore(out)
    done = {p: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    job = start(clips, tmp_path, workers)
    assert job.wait() == 0, job.stderr.read()
    assert content(out) == content(undisturbed)
    assert {p: p.stat().st_mtime_ns for p in done} == done  # what was whole was not written again


def check_full(job, out, undisturbed, clips, message):
    "One line that names the file; no half store, no half file; and with room again it goes on to the same bytes."
    said = job.stderr.read().strip()
    assert job.wait() == 1 and said.count("\n") == 0, said
    assert message in said and "Make room and give the same call again" in said and str(out) in said
    path = out/undisturbed.name
    assert not (path/"store.json").exists() and not list(path.glob(".part-*"))


def limit_file_size(n): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


def test_a_file_that_cannot_grow(clips, undisturbed, tmp_path):
    check_full(start(clips, tmp_path, preexec_fn=limit_file_size(20_000)), tmp_path, undisturbed, clips, "the file is larger than files may be here")
    assert start(clips, tmp_path).wait() == 0
    assert content(tmp_path/undisturbed.name) == content(undisturbed)


@pytest.fixture
def small_disk(tmp_path, undisturbed):
    "A file system with room for about half of the store."
    disk = tmp_path/"disk"
    disk.mkdir()
    size = sum(p.stat().st_size for p in undisturbed.iterdir())//2
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(clips, undisturbed, small_disk):
    check_full(start(clips, small_disk), small_disk, undisturbed, clips, "the disk is full")
    kept = len(list((small_disk/undisturbed.name).glob("shard-*")))
    assert 0 < kept < 6
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert start(clips, small_disk).wait() == 0
    assert content(small_disk/undisturbed.name) == content(undisturbed)


def test_a_damaged_shard_is_the_only_one_made_again(clips, undisturbed, tmp_path):
    path = Path(shutil.copytree(undisturbed, tmp_path/undisturbed.name))
    shard_path(path, 3).unlink()
    (path/"store.json").unlink()
    done = {p: p.stat().st_mtime_ns for p in path.glob("shard-*")}
    assert start(clips, tmp_path).wait() == 0
    assert content(path) == content(undisturbed) and {p: p.stat().st_mtime_ns for p in done} == done


PEAK = """
import sys, tempfile, tracemalloc
from pathlib import Path
from memory_of_extraction import Spectra, make_clips
from mser.features import extract
peaks = []
for n in (64, 400, 2000):  # the first loads what is loaded once
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_clips(Path(folder), n)
        tracemalloc.start()
        extract(manifest, Spectra(), Path(folder)/"features", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
print(*peaks)
"""


def test_memory_does_not_grow_with_the_corpus():
    "A clip's features take 10 kB; what is kept of a clip until the end is its row of the index. The benchmark beside this file tells resident memory."
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, env=with_benchmarks())
    assert done.returncode == 0, done.stderr
    _, small, large = map(int, done.stdout.split())
    assert large - small < 1600*3_000


# Any numbers

@few
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from(list(DTYPES)), st.floats(1, 9), st.data())
def test_round_trip(tmp_path_factory, lengths, shard_size, dtype, pool, data):
    items = {f"u{i}": encoded(n, i) for i, n in enumerate(lengths)}
    store = write_store(tmp_path_factory.mktemp("store"), CARD, iter(items.items()), "source", dtype, shard_size)
    ids = data.draw(st.lists(st.sampled_from(list(items)), max_size=20))  # any order, some twice, some not
    stored = {name: (e.frames.astype(DTYPES[dtype]).astype(np.float32), e.utterance.astype(DTYPES[dtype]).astype(np.float32)) for name, e in items.items()}
    assert store.pooled(ids).tolist() == [stored[name][1].tolist() for name in ids]
    values, sizes = store.ragged(ids, pool)
    assert np.split(values, np.cumsum(sizes))[-1].size == 0
    for name, part in zip(ids, np.split(values, np.cumsum(sizes))): np.testing.assert_array_equal(part, average_frames(stored[name][0], pool))
    assert store.n_truncated == lengths.count(7) and store.verify() == []


@few
@given(st.integers(1, 400), st.integers(1, 200), st.integers(1, 200))
def test_groups_partition_the_frames_at_exact_borders(n, frame_rate, rate):
    "Frame i, at i/frame_rate seconds, belongs to segment floor(i*rate/frame_rate): compared in whole numbers."
    frame_rate, rate = max(frame_rate, rate), min(frame_rate, rate)
    starts = group_starts(n, frame_rate/rate)
    segments = [i*rate//frame_rate for i in range(n)]
    assert starts.tolist() == [i for i in range(n) if i == 0 or segments[i] != segments[i - 1]]


@few
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-2.0**126, max_value=2.0**126), min_size=1, max_size=20))
def test_bfloat16_keeps_eight_bits_and_rounds_as_torch_does(numbers):
    import torch
    numbers = np.array(numbers, np.float32)
    stored = numbers.astype(DTYPES["bfloat16"]).astype(np.float32)
    np.testing.assert_array_equal(stored, torch.from_numpy(numbers).bfloat16().float().numpy())
    normal = np.abs(numbers) > 2e-38
    assert (np.abs(stored - numbers)[normal] <= np.abs(numbers)[normal]*2.0**-8).all()
