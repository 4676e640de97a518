"Recordings as they come, whole and broken: each is decoded right, or refused by name with a remedy."
import struct, subprocess, sys, time

import av, numpy as np, psutil, pytest, soundfile as sf
from hypothesis import given, settings, strategies as st

from mser.audio import inspect_audio, is_silent, load_audio, wav_data_bytes
from mser.core import InputError

few = settings(max_examples=40, deadline=None, derandomize=True)
RATES = (8_000, 16_000, 44_100, 48_000)
MAGIC = (b"", b"RIFF\x24\x00\x00\x00WAVE", b"fLaC", b"OggS", b"ID3\x03", b"\x00\x00\x00\x20ftypisom", b"\x1aE\xdf\xa3")  # how files begin


def tone(rate, seconds=1.0): return (0.3*np.sin(2*np.pi*440*np.arange(int(rate*seconds))/rate)).astype(np.float32)


def strongest(x, rate=16_000): return np.argmax(np.abs(np.fft.rfft(x*np.hanning(len(x)))))*rate/len(x)


def write_container(path, samples, rate, codec, video=False):
    "A sound track (or, without samples, a picture) in a container, written with FFmpeg."
    with av.open(str(path), "w") as c:
        if video:
            stream, frame = c.add_stream("mpeg4", rate=25), av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            stream.width = stream.height = 64
        else:
            stream, frame = c.add_stream(codec, rate=rate, layout="mono"), av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
        c.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_wav_of_any_rate_and_channels(tmp_path, rate, channels):
    sf.write(tmp_path/"a.wav", np.stack([tone(rate)]*channels, axis=1), rate)
    assert inspect_audio(tmp_path/"a.wav") == (1.0, rate, channels)
    x = load_audio(tmp_path/"a.wav")
    assert (x.dtype, x.shape, strongest(x)) == (np.float32, (16_000,), 440)
    assert np.abs(x[2000:-2000]).max() == pytest.approx(0.3, abs=2e-3)


@pytest.mark.parametrize("subtype, error", [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-5), ("PCM_32", 1e-6), ("FLOAT", 0), ("ULAW", 2e-2)])
def test_sample_formats(tmp_path, subtype, error):
    sf.write(tmp_path/"a.wav", tone(16_000), 16_000, subtype=subtype)
    np.testing.assert_allclose(load_audio(tmp_path/"a.wav"), tone(16_000), atol=error)


@pytest.mark.parametrize("name, codec", [("a.mp3", "libmp3lame"), ("a.mp4", "aac"), ("a.m4a", "aac"), ("a.mkv", "aac"), ("a.flac", "flac"), ("a.webm", "libopus")])
def test_containers(tmp_path, name, codec):
    rate = 48_000 if codec == "libopus" else 44_100
    samples = (tone(rate)*32767).astype(np.int16) if codec == "flac" else tone(rate)
    if codec == "flac": sf.write(tmp_path/name, samples, rate)
    else: write_container(tmp_path/name, samples, rate, codec)
    info, x = inspect_audio(tmp_path/name), load_audio(tmp_path/name)
    assert info.sample_rate == rate and info.duration == pytest.approx(1, abs=0.15)
    assert len(x)/16_000 == pytest.approx(1, abs=0.15)
    assert strongest(x[1000:13_000]) == pytest.approx(440, abs=2)


def broken(folder, kind):
    "A file that is not a whole recording."
    path = folder/f"{kind}.wav"
    sf.write(path, tone(16_000), 16_000)
    whole = path.read_bytes()
    if kind == "missing": path.unlink()
    elif kind == "folder": path.unlink(), path.mkdir()
    elif kind == "empty": path.write_bytes(b"")
    elif kind == "zero": sf.write(path, np.zeros(0), 16_000)
    elif kind == "truncated": path.write_bytes(whole[:len(whole)//2])
    elif kind == "header": path.write_bytes(whole[:20])
    elif kind == "pointer": path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88200\n")
    elif kind == "mac": path.write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    elif kind == "text": path.write_text("not a recording\n"*30)
    elif kind == "nan": sf.write(path, np.r_[tone(16_000), np.nan].astype(np.float32), 16_000, subtype="FLOAT")
    elif kind == "integers": sf.write(path, tone(16_000)*32768, 16_000, subtype="FLOAT")
    elif kind == "silent film": write_container(path := path.with_suffix(".mp4"), None, None, None, video=True)
    elif kind in ("flac", "mp3"):
        sf.write(path := path.with_suffix(f".{kind}"), tone(16_000), 16_000)
        path.write_bytes(path.read_bytes()[:4000 if kind == "flac" else 1000])
    return path


FAULTS = {"missing": "no such file", "folder": "cannot be read", "empty": "0 bytes", "zero": "no samples", "truncated": "truncated: 15,978 of the 32,000 bytes",
          "header": "no samples", "pointer": "git lfs pull", "mac": "macOS resource file", "text": "not audio", "nan": "1 of 16,001 samples are NaN",
          "integers": "must lie in [-1, 1]", "silent film": "no sound track", "flac": "truncated", "mp3": "truncated"}


@pytest.mark.parametrize("kind", FAULTS)
def test_broken_file_is_refused_by_name_with_a_remedy(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(InputError) as refused: load_audio(path)
    message = str(refused.value)
    assert FAULTS[kind] in message and str(path) in message and refused.value.remedy and "\n" not in message


@pytest.mark.parametrize("kind", [k for k in FAULTS if k not in ("nan", "integers", "flac", "mp3")])  # those need decoding
def test_the_header_is_enough_to_refuse_it(tmp_path, kind):
    with pytest.raises(InputError, match="."): inspect_audio(broken(tmp_path, kind))


def test_silence_is_a_recording(tmp_path):
    sf.write(tmp_path/"a.wav", np.zeros(8000), 16_000)
    x = load_audio(tmp_path/"a.wav")
    assert is_silent(x) and len(x) == 8000 and not is_silent(tone(16_000))


@few
@given(st.data())
def test_a_wav_cut_anywhere_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut")/"a.wav"
    sf.write(path, tone(16_000, data.draw(st.floats(0.001, 0.05))), 16_000)
    whole = path.read_bytes()
    assert wav_data_bytes(path)[0] == wav_data_bytes(path)[1] > 0
    path.write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError): inspect_audio(path)


@few
@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_junk_is_never_a_crash(tmp_path_factory, magic, junk):
    path = tmp_path_factory.mktemp("junk")/"a.wav"
    path.write_bytes(magic + junk)
    try: x = load_audio(path)
    except InputError as e: assert str(path) in str(e)
    else: assert len(x) and np.isfinite(x).all()


def test_streaming_header_is_whole(tmp_path):
    "FFmpeg and SoX leave a placeholder for the size when they write into a pipe."
    sf.write(tmp_path/"a.wav", tone(16_000), 16_000)
    whole = (tmp_path/"a.wav").read_bytes()
    at = whole.index(b"data") + 4
    for size in (0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF):
        (tmp_path/"b.wav").write_bytes(whole[:4] + struct.pack("<I", 0xFFFFFFFF) + whole[8:at] + struct.pack("<I", size) + whole[at + 4:])
        assert len(load_audio(tmp_path/"b.wav")) == 16_000


WORKERS = """
import sys, time
from mser.parallel import process_pool
job = "import os, pathlib, time; (pathlib.Path(folder)/str(os.getpid())).touch(); time.sleep(600)"
with process_pool(2) as pool:
    for _ in range(2): pool.submit(exec, job, {"folder": sys.argv[1]})
    time.sleep(600)
"""


def wait_for(what, seconds=120):
    "Wait until it is true; the time is for a machine that is busy with other things."
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline: time.sleep(0.05)
    return what()


def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def test_workers_die_with_their_parent(tmp_path):
    "SIGKILL gives the parent no chance to tell them."
    parent = subprocess.Popen([sys.executable, "-c", WORKERS, tmp_path])
    try: assert wait_for(lambda: len(list(tmp_path.iterdir())) == 2)  # both are at work
    finally: parent.kill()
    parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert wait_for(lambda: not any(map(alive, workers)))
