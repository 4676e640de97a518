"Extraction: good and bad recordings, half-written folders, workers, shards of other extractions."
import os, shutil, subprocess, sys, tracemalloc
from pathlib import Path

import av, numpy as np, pandas as pd, pytest, soundfile as sf
from hypothesis import given, settings, strategies as st

from mser.audio import load_audio
from mser.core import InputError
from mser.encoders.audio import EgemapsEncoder
from mser.encoders.base import Encoded, EncoderCard, batches_by_length
from mser.encoders.emotion2vec import Emotion2vecEncoder, architecture, save_random
from mser.features import extract
from mser.manifest import make_manifest, read_manifest, write_manifest
from mser.store import average_frames

few = settings(max_examples=30, deadline=None, derandomize=True)
CARD = EncoderCard(name="toy", modality="text", frame_dim=3, utterance_dim=2, pretraining="none", licence="MIT")


def content(folder): return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if not p.name.startswith(".part-")}


def make_corpus(folder, n=24):
    "A folder of short clips and its manifest, read back from a file as a user's would be."
    generator = np.random.default_rng(0)
    for i in range(n):
        t = np.arange(int(16_000*generator.uniform(0.3, 1)))/16_000
        voice = sum(np.sin(2*np.pi*k*(100 + 5*i)*t)/k for k in range(1, 10))
        sf.write(folder/f"c{i:02}.wav", 0.1*voice + 0.002*generator.standard_normal(len(t)), 16_000)
    table = pd.DataFrame({"id": [f"c{i:02}" for i in range(n)], "corpus": "clips", "audio": [f"c{i:02}.wav" for i in range(n)],
                          "text": "", "label": "neutral", "speaker": "s"})
    write_manifest(make_manifest(table), folder/"manifest.csv")
    return read_manifest(folder/"manifest.csv")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return extract(corpus, EgemapsEncoder(), tmp_path_factory.mktemp("whole"), shard_size=4, progress=False)


def test_two_workers_give_the_same_bytes(corpus, undisturbed, tmp_path):
    assert content(extract(corpus, EgemapsEncoder(), tmp_path, shard_size=4, workers=2, progress=False).path) == content(undisturbed.path)


def test_features_are_the_encoders(corpus, undisturbed):
    name, path = corpus.ids[5], corpus.audio_paths()[5]
    encoded, = EgemapsEncoder().encode([load_audio(path)])
    np.testing.assert_array_equal(undisturbed.frames(name), encoded.frames)
    np.testing.assert_array_equal(undisturbed.pooled([name])[0], encoded.utterance)


def test_a_shard_of_another_extraction_is_not_used(corpus, undisturbed, tmp_path):
    path = tmp_path/undisturbed.path.name
    first = extract(corpus, EgemapsEncoder(), tmp_path, shard_size=8, progress=False)
    (first.path/"store.json").unlink()
    (path/".part-left.safetensors").write_bytes(b"half")
    os.utime(path/".part-left.safetensors", (0, 0))
    assert content(extract(corpus, EgemapsEncoder(), tmp_path, shard_size=4, progress=False).path) == content(undisturbed.path)
    assert not (path/".part-left.safetensors").exists()


def test_bad_recording_stops_or_is_listed(tmp_path):
    corpus = make_corpus(tmp_path, n=6)
    cut, silent = tmp_path/"c02.wav", tmp_path/"c04.wav"
    cut.write_bytes(cut.read_bytes()[:3000])
    sf.write(silent, np.zeros(16_000), 16_000)
    with pytest.raises(InputError, match=r"c02.wav: truncated.* pass --skip-bad"):
        extract(corpus, EgemapsEncoder(), tmp_path/"f", workers=2, progress=False)
    assert not list(tmp_path.glob("f/*/store.json"))
    store = extract(corpus, EgemapsEncoder(), tmp_path/"f", skip_bad=True, progress=False)
    assert [s.item for s in store.skipped] == ["c02"] and "truncated" in store.skipped[0].reason
    assert store.ids == ["c00", "c01", "c03", "c04", "c05"] and store.silent == ["c04"]
    with pytest.raises(InputError, match="1 utterances could not be encoded"): extract(corpus, EgemapsEncoder(), tmp_path/"f", progress=False)
    (tmp_path/"c03.wav").unlink()
    assert [s.item for s in extract(corpus, EgemapsEncoder(), tmp_path/"f", skip_bad=True, progress=False).skipped] == ["c02", "c03"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    "A small emotion2vec with random weights."
    folder = save_random(tmp_path_factory.mktemp("model")/"tiny", architecture(width=32, prenet=1, depth=2, heads=4, conv_dim=16, groups=4, decoder_dim=16))
    return Emotion2vecEncoder(folder, device="cpu")


def voice(seconds, rate, seed=0):
    t = np.arange(int(rate*seconds))/rate
    return (0.1*sum(np.sin(2*np.pi*k*(110 + 20*seed)*t)/k for k in range(1, 10)) + 0.002*np.random.default_rng(seed).standard_normal(len(t))).astype(np.float32)


def write_film(path):
    "An mp4 with a picture and no sound."
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        film.mux([*stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")), *stream.encode(None)])


def make_zoo(folder):
    "Recordings of every kind, good and bad: file name to what a refusal says, or None."
    for rate in (8_000, 44_100, 48_000): sf.write(folder/f"rate{rate}.wav", voice(0.7, rate), rate)
    for name, subtype in (("bits8", "PCM_U8"), ("bits24", "PCM_24")): sf.write(folder/f"{name}.wav", voice(0.5, 16_000, 1), 16_000, subtype=subtype)
    sf.write(folder/"stereo.wav", np.stack([voice(0.6, 16_000, 2)]*2, axis=1), 16_000)
    for kind in ("mp3", "flac"): sf.write(folder/f"{kind}.{kind}", voice(1, 16_000, 3), 16_000)
    sf.write(folder/"silent.wav", np.zeros(8_000), 16_000)
    sf.write(folder/"cut.wav", voice(1, 16_000), 16_000)
    (folder/"cut.wav").write_bytes((folder/"cut.wav").read_bytes()[:9_000])
    (folder/"empty.wav").touch()
    sf.write(folder/"nan.wav", np.r_[voice(1, 16_000), np.nan].astype(np.float32), 16_000, subtype="FLOAT")
    sf.write(folder/"tenminutes.wav", np.zeros(600*8_000), 8_000, subtype="PCM_U8")
    sf.write(folder/"blink.wav", voice(0.02, 16_000), 16_000)
    write_film(folder/"film.mp4")
    refused = {"cut.wav": "truncated", "empty.wav": "0 bytes", "nan.wav": "NaN", "tenminutes.wav": "600.0 s is longer than the 60 s", "blink.wav": "0.020 s is too short",
               "film.mp4": "no sound track"}
    return {p.name: refused.get(p.name) for p in sorted(folder.iterdir())}


def zoo_manifest(folder, names):
    return make_manifest(pd.DataFrame({"id": [n.split(".")[0] for n in names], "corpus": "zoo", "audio": names, "text": "", "label": "neutral", "speaker": "s"}), root=folder)


def test_a_network_extracts_every_kind_of_recording(network, tmp_path):
    (tmp_path/"zoo").mkdir()
    zoo = make_zoo(tmp_path/"zoo")
    store = extract(zoo_manifest(tmp_path/"zoo", list(zoo)), network, tmp_path/"f", skip_bad=True, shard_size=6, progress=False)
    assert sorted(store.ids) == sorted(n.split(".")[0] for n, why in zoo.items() if why is None)
    reasons = {s.item: s.reason for s in store.skipped}
    for name, why in zoo.items():
        if why: assert why in reasons[name.split(".")[0]] and str(tmp_path/"zoo"/name) in reasons[name.split(".")[0]]
        else: np.testing.assert_allclose(store.frames(name.split(".")[0]), network.encode([load_audio(tmp_path/"zoo"/name)])[0].frames, atol=1e-4)
    assert store.silent == ["silent"] and store.verify() == []


def test_a_ten_minute_clip_is_refused_before_it_is_decoded(network, tmp_path):
    make_zoo(tmp_path)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"tenminutes.wav: a clip of 600.0 s is longer.*Cut it into utterances, or pass --skip-bad"):
        extract(zoo_manifest(tmp_path, ["tenminutes.wav"]), network, tmp_path/"f", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # decoded it takes 38 MB, and the attention over it 57 GB
    frames, = EgemapsEncoder().encode([np.zeros(16_000*90, np.float32)])  # a feature set takes any length
    assert len(frames.frames) > 8_000


def test_a_network_gives_the_same_bytes_after_a_kill_and_with_workers(network, corpus, tmp_path):
    whole = extract(corpus, network, tmp_path/"whole", shard_size=5, progress=False)
    for name in whole.ids: np.testing.assert_allclose(whole.frames(name), network.encode([load_audio(corpus.root/f"{name}.wav")])[0].frames, atol=1e-4)
    path = Path(shutil.copytree(whole.path, tmp_path/"again"/whole.path.name))
    for name in ("store.json", "index.parquet", "shard-00001.safetensors", "shard-00003.safetensors"): (path/name).unlink()
    resumed = extract(corpus, network, tmp_path/"again", shard_size=5, workers=2, progress=False)
    assert content(resumed.path) == content(whole.path)


def test_progress_counts_every_recording(network, corpus, tmp_path, capsys):
    bad = [*(f"{i}.wav" for i in corpus.ids[:5]), "missing.wav"]
    extract(zoo_manifest(corpus.root, bad), network, tmp_path, shard_size=4, skip_bad=True)
    assert "6/6" in capsys.readouterr().err


class Faulty:
    "A text encoder that fails on one utterance."
    def __init__(self, bad): self.card, self.bad = CARD, bad
    def encode(self, items): return [Encoded(np.ones((2, 3), np.float32), np.array([1, self.bad if t == "bad" else 1], np.float32)) for t in items]


@pytest.mark.parametrize("bad, dtype", [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")])
def test_numbers_that_are_none_are_refused_by_name(tmp_path, bad, dtype):
    manifest = make_manifest(pd.DataFrame({"id": ["u1", "u2"], "corpus": "c", "text": ["good", "bad"], "label": "neutral", "speaker": "s"}))
    with pytest.raises(InputError, match="utterance u2"): extract(manifest, Faulty(bad), tmp_path, dtype, progress=False)
    assert extract(manifest, Faulty(bad), tmp_path, dtype, skip_bad=True, progress=False).ids == ["u1"]


@few
@given(st.integers(1, 40), st.integers(1, 50))
def test_average_is_the_mean_of_each_group(n, pool):
    frames = np.random.default_rng(n).standard_normal((n, 2)).astype(np.float32)
    expected = np.stack([frames[i:i + pool].mean(axis=0) for i in range(0, n, pool)])
    np.testing.assert_allclose(average_frames(frames, pool), expected, atol=1e-6)


@few
@given(st.lists(st.integers(1, 300), max_size=50), st.integers(1, 9))
def test_batches_hold_every_item_once(lengths, size):
    batches = batches_by_length(lengths, size)
    assert sorted(i for b in batches for i in b.tolist()) == list(range(len(lengths)))
    assert all(1 <= len(b) <= size for b in batches)
    assert [lengths[i] for b in batches for i in b] == sorted(lengths, reverse=True)


def test_import_is_light():
    "Looking into a store must not cost the seconds that the encoders' libraries take to load."
    code = "import sys, mser.features, mser.encoders.registry; print([m for m in ('torch', 'transformers', 'opensmile', 'av') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
