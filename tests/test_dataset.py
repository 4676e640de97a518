"Training data from memory or a file: equal to plain padding for any lengths, whole after a kill, written once by several processes, small in memory."
import multiprocessing, os, signal, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st

import mser.dataset, mser.store
from mser.core import InputError
from mser.dataset import FlatFile, Ragged, Resident, SpeechData, concat, gather, sequences
from mser.encoders.base import Encoded, EncoderCard
from mser.labels import label_set
from mser.manifest import make_manifest
from mser.model import ModelConfig, moments
from mser.store import FLAT, FeatureStore, average_frames, write_store
from mser.training import TrainConfig, build, fit

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
torch.set_num_threads(1)


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    "The obvious way: [B, n, D] and mask [B, n], at least one position long."
    longest = max(1, *map(len, rows))
    values, mask = torch.zeros(len(rows), longest, rows[0].shape[1]), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, r in enumerate(rows): values[i, :len(r)], mask[i, :len(r)] = r, True
    return values, mask


def same(batch, rows) -> bool: return all(torch.equal(a, b) for a, b in zip(batch, padded(rows)))


@st.composite
def utterances(draw, dim=3):
    "Vectors of some utterances [n, dim], n may be 0, in a type that stores keep."
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return [torch.randn(n, dim, generator=generator).to(draw(st.sampled_from(DTYPES))) for n in lengths]


def ragged(rows: list[torch.Tensor], folder: Path | None = None) -> Ragged:
    "In memory, or in a file."
    lengths, dtype = torch.tensor([len(r) for r in rows]), rows[0].dtype
    source = Resident(torch.cat([r.to(dtype) for r in rows]))
    if folder is not None and len(source):
        source.bytes.tofile(folder/"vectors")
        source = FlatFile(folder/"vectors", len(source), source.dim, dtype)
    return Ragged(source, lengths.cumsum(0) - lengths, lengths)


def with_one_type(rows): return [r.to(rows[0].dtype).float() for r in rows]


@settings(deadline=None, derandomize=True)
@given(utterances(), st.data(), st.booleans())
def test_a_batch_is_the_padded_utterances(tmp_path_factory, rows, data, in_file):
    made = ragged(rows, tmp_path_factory.mktemp("flat") if in_file else None)
    rows = with_one_type(rows)
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    assert same(made.batch(torch.tensor(index)), [rows[i] for i in index])
    assert same(made.at(torch.tensor(index)).batch(torch.arange(len(index))), [rows[i] for i in index])
    assert torch.equal(made.packed(), torch.cat(rows))


def speech(rows: list[torch.Tensor], name: str, folder: Path | None = None) -> SpeechData:
    n = len(rows)
    ids = tuple(f"{name}{i}" for i in range(n))
    return SpeechData(ids, ragged(rows, folder), None, torch.arange(n), torch.rand(n, 3), torch.zeros(n, dtype=torch.long))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(utterances(), min_size=1, max_size=4), st.data(), st.booleans())
def test_joining_taking_and_cutting_commute(tmp_path_factory, corpora, data, in_file):
    folders = [tmp_path_factory.mktemp("flat") if in_file and k % 2 else None for k in range(len(corpora))]
    parts = [speech(rows, f"c{k}-", folder) for k, (rows, folder) in enumerate(zip(corpora, folders))]
    vectors = {name: r for part, rows in zip(parts, corpora) for name, r in zip(part.ids, with_one_type(rows))}
    joined = concat(parts)
    ids = data.draw(st.lists(st.sampled_from(joined.ids), min_size=1, max_size=10))
    taken = joined.take(ids)
    assert same(taken.text.batch(torch.arange(len(ids))), [vectors[i] for i in ids])
    assert taken.corpus.tolist() == [int(i[1:].split("-")[0]) for i in ids]
    assert taken.labels.tolist() == [int(i.split("-")[1]) for i in ids]
    mine = [[i for i in dict.fromkeys(ids) if i in part.row_of] for part in parts]  # take from each, then join
    first = concat([part.take(m) for part, m in zip(parts, mine) if m])
    again, at_once = first.whole(), joined.take(first.ids).whole()
    assert torch.equal(again.text, at_once.text) and torch.equal(again.text_mask, at_once.text_mask) and torch.equal(again.vad, at_once.vad)


@settings(deadline=None, derandomize=True)
@given(utterances(), st.integers(1, 40))
def test_going_through_all_vectors_in_parts_is_going_through_them_at_once(rows, at_a_time):
    made, rows = ragged(rows), with_one_type(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mser.dataset, "CHUNK", at_a_time)
        assert sum(map(len, made.chunks())) == len(rows)
        assert torch.equal(torch.cat([*made.vectors()]), torch.cat(rows))
        means = torch.stack([r.mean(0) if len(r) else torch.zeros(3) for r in rows])
        torch.testing.assert_close(made.means(), means)
        if not sum(map(len, rows)): return
        mean, std = moments(made.vectors(), 3)
    torch.testing.assert_close(mean, torch.cat(rows).double().mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, torch.cat(rows).double().std(0, correction=0), atol=1e-5, rtol=1e-5)


def store(folder: Path, lengths, hop: float | None = 0.02, dtype: str = "bfloat16", seed: int = 0, modality: str = "audio") -> FeatureStore:
    "Noise, 5 numbers a frame."
    rng = np.random.default_rng(seed)
    card = EncoderCard(name="noise", modality=modality, frame_dim=5, utterance_dim=2, hop_seconds=hop, pretraining="none", licence="MIT")
    stream = ((f"u{i:03}", Encoded(rng.standard_normal((n, 5), dtype=np.float32), np.ones(2, np.float32))) for i, n in enumerate(lengths))
    return write_store(folder, card, stream, "noise", dtype, shard_size=7)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from((1, 2, 2.5, 7)), st.sampled_from([*mser.store.DTYPES]), st.data())
def test_sequences_are_the_averaged_frames_wherever_they_lie(tmp_path_factory, lengths, pool, dtype, data):
    made = store(tmp_path_factory.mktemp("store"), lengths, dtype=dtype)
    ids = data.draw(st.lists(st.sampled_from(made.ids), min_size=1, max_size=20))
    expected = [torch.from_numpy(average_frames(made.frames(i), pool)).to(getattr(torch, dtype)).float() for i in ids]
    kinds = {Resident: sequences(made, ids, pool), FlatFile: sequences(made, ids, pool, resident=0)}
    for kind, vectors in kinds.items():
        assert type(vectors.source) is kind and same(vectors.batch(torch.arange(len(ids))), expected)


@pytest.fixture
def corpus(tmp_path) -> tuple:
    n = 40
    table = pd.DataFrame({"id": [f"u{i:03}" for i in range(n)], "corpus": "noise", "text": "-", "speaker": "s"})
    table["label"] = np.resize(label_set("4").classes, n)
    text = store(tmp_path/"text", [2 + i % 4 for i in range(n)], hop=None, seed=1, modality="text")
    return make_manifest(table), label_set("4"), text, store(tmp_path/"audio", [20 + i for i in range(n)], seed=2)


def test_a_model_learns_the_same_from_memory_and_from_a_file(corpus):
    fits = []
    for resident in (mser.dataset.RESIDENT, 0):
        data = gather(*corpus, "sequence", resident=resident)
        part, val = data.take(data.ids[:24]), data.take(data.ids[24:])
        config = ModelConfig(text_dim=5, audio_dim=5, hidden_dim=16, n_heads=2, n_layers=1)
        fits.append(fit(build(config, part, 0), part, val, TrainConfig(epochs=3), seed=0))
    memory, file = fits
    assert memory.history.equals(file.history)
    for a, b in zip(memory.model.state_dict().values(), file.model.state_dict().values()): assert torch.equal(a, b)


def test_a_flat_file_that_was_cut_is_refused_by_name(corpus):
    path = corpus[3].flat(5)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=f"{path.name}: .* bytes where .* should be. Delete it") as refusal: gather(*corpus, "sequence", resident=0)
    assert "\n" not in str(refusal.value)


def count_writes(folder: Path, barrier) -> int:
    "How often this process wrote a flat file that several want."
    calls, write = [], mser.store.write_flat
    mser.store.write_flat = lambda *given: (calls.append(1), write(*given))
    made = FeatureStore(folder)
    barrier.wait()
    vectors = sequences(made, made.ids, 2, resident=0)
    assert torch.equal(vectors.packed(), sequences(made, made.ids, 2).packed())
    return len(calls)


def test_of_several_processes_one_writes(tmp_path):
    store(tmp_path/"s", [20]*200)
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(3) as pool:
        barrier = manager.Barrier(3)
        assert sum(pool.starmap(count_writes, [(tmp_path/"s", barrier)]*3)) == 1
    assert len(list((tmp_path/"s").glob(f"*{FLAT}"))) == 1 and not list((tmp_path/"s").glob(".part-*"))


STOP = """
import sys, time, mser.store
from mser.store import FeatureStore
averaged = FeatureStore.averaged
def slow(self, rows, pool):
    for k, block in enumerate(averaged(self, rows, pool)):
        yield block
        if k == 2: print("half", flush=True); time.sleep(60)
FeatureStore.averaged = slow
FeatureStore(sys.argv[1]).flat(2)
"""


def test_a_killed_writer_leaves_nothing_that_is_taken_for_the_file(tmp_path):
    made = store(tmp_path/"s", [20]*200)
    with subprocess.Popen([sys.executable, "-c", STOP, made.path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert list(made.path.glob(".part-*")) and not list(made.path.glob(f"[!.]*{FLAT}"))
    assert torch.equal(sequences(made, made.ids, 2, resident=0).packed(), sequences(made, made.ids, 2).packed())
    assert not list(made.path.glob(".part-*"))


FULL = """
import resource, signal, sys
from mser.core import InputError
from mser.store import FeatureStore
store = FeatureStore(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: store.flat()
except InputError as e: print(e)
"""


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    made = store(tmp_path/"s", [20]*50)
    done = subprocess.run([sys.executable, "-c", FULL, made.path], capture_output=True, text=True)
    assert f"{FLAT}: the file is larger than files may be here" in done.stdout and len(done.stdout.splitlines()) == 1, done
    assert not list(made.path.glob(".part-*")) and not list(made.path.glob(f"[!.]*{FLAT}"))


READ_ALL = """
import resource, sys, torch
from mser.dataset import FlatFile, Ragged
n, dim = 1600, 16384
data = Ragged(FlatFile(sys.argv[1], n, dim, torch.float32), torch.arange(0, n, 4), torch.full((n//4,), 4))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
data.batch(torch.arange(2)); before = peak()
for index in torch.randperm(n//4).split(4): data.batch(index)
print(peak() - before, n*dim*4//2**20)
"""


def test_reading_all_of_a_file_does_not_make_the_process_larger(tmp_path):
    with open(tmp_path/"zeros", "wb") as f: f.truncate(1600*16384*4)  # a hole: it takes no room
    done = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path/"zeros"], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size == 100 and grown < 20
