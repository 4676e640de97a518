"A disk that is full, for everything that is written: one line that names the file, no half file, and what was there before stays."
import os, resource, subprocess, sys

import pytest

MSER = os.path.join(os.path.dirname(sys.executable), "mser")

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 64 kB."
    disk = tmp_path/"disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def limited(n): return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


WRITE = """
import sys
from pathlib import Path
import pandas as pd
from mser.core import InputError, write_json
from mser.manifest import make_manifest, write_manifest
from mser.protocols import Splits
import mser.cli_corpus as cli

n = 20_000
ids = [f"utterance_{i*7919 % 1_000_003:07}_{i:06}" for i in range(n)]
manifest = make_manifest(pd.DataFrame({"id": ids, "corpus": "c", "text": [f"sentence {i*i % 10_007}" for i in range(n)], "label": "neutral", "speaker": "s"}))
splits = Splits("random", pd.DataFrame({"id": ids, "fold": 0, "part": "train"}), 0)
class Audit: overlaps = splits.table
folder = Path(sys.argv[1])
writers = {"a.csv": lambda path: write_manifest(manifest, path), "a.parquet": lambda path: write_manifest(manifest, path), "a.jsonl": lambda path: write_manifest(manifest, path),
           "s.parquet": splits.save, "s.csv": lambda path: cli._write_splits(splits, path), "overlaps.csv": lambda path: cli._write_overlaps({"c": Audit}, path),
           "x.json": lambda path: write_json(path, ids)}
for name, write in writers.items():
    (folder/name).write_text("before")
    try: write(folder/name)
    except InputError as e: print(e)
    assert (folder/name).read_text() == "before", name
assert sorted(p.name for p in folder.iterdir()) == sorted(writers)
"""


def said(folder, **options):
    done = subprocess.run([sys.executable, "-c", WRITE, folder], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


NAMES = ["a.csv", "a.parquet", "a.jsonl", "s.parquet", "s.csv", "overlaps.csv", "x.json"]


def test_files_that_cannot_grow(tmp_path):
    for name, line in zip(NAMES, said(tmp_path, preexec_fn=limited(40_000)), strict=True):
        assert line == f"{tmp_path/name}: the file is larger than files may be here. Make room and give the same call again: what is finished is kept"


def test_a_full_disk(small_disk):
    for name, line in zip(NAMES, said(small_disk), strict=True):
        assert line == f"{small_disk/name}: the disk is full. Make room and give the same call again: what is finished is kept"


@pytest.mark.parametrize("arguments", [["corpus", "splits", "--corpus", "sim-cremad", "--out", "splits.csv"],
                                       ["corpus", "audit", "--corpus", "sim-cremad", "--protocol", "random", "--out", "overlaps.csv"],
                                       ["reproduce", "--corpus", "sim-iemocap", "--profile", "smoke", "--only", "in_domain", "--out", "results"]], ids=lambda a: " ".join(a[:2]))
def test_a_command_ends_with_one_line(tmp_path, arguments):
    done = subprocess.run([MSER, *arguments], cwd=tmp_path, capture_output=True, text=True, preexec_fn=limited(5_000 if "reproduce" in arguments else 100))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("mser: ") and "larger than files may be here. Make room" in last and arguments[-1] in last
    assert not list(tmp_path.glob(".part-*"))
