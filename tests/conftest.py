"""Where the real data for tests lies, if it is there: a user's clone has none, and the tests that need it say so and are skipped."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mser.core import project_root


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = project_root().parent/"shared"/"data"
    if not folder.is_dir(): pytest.skip("the shared test data is not beside this clone")
    return folder


@pytest.fixture(scope="session")
def emodb_folder(shared) -> Path: return shared/"emodb"


LETTERS = "WLEAFTN"


def tone(path: Path, seed: int, seconds: float = 0.5, rate: int = 16000) -> None:
    "A short voiced-like sound whose pitch and timbre depend on the seed."
    generator = np.random.default_rng(seed)
    t = np.arange(int(rate*seconds))/rate
    pitch = 120 + 25*(seed % 7)
    samples = sum(np.sin(2*np.pi*pitch*k*t)/k for k in range(1, 6))*0.1 + 0.01*generator.standard_normal(len(t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


@pytest.fixture(scope="session")
def small_emodb(tmp_path_factory) -> Path:
    "A tree in EmoDB's layout: 4 speakers, 7 emotions, 3 sentences, made tones."
    root = tmp_path_factory.mktemp("small-emodb")
    names = [f"{s}{t}{e}a" for s in ("03", "08", "10", "13") for t in ("a01", "b02", "a05") for e in LETTERS]
    for i, name in enumerate(names): tone(root/"wav"/f"{name}.wav", 7*i + LETTERS.index(name[5]))
    return root


@pytest.fixture
def copy_of_small_emodb(small_emodb, tmp_path) -> Path:
    return Path(shutil.copytree(small_emodb, tmp_path/"emodb"))
