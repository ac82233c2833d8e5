"""What the tests of the command line share: a cheap black box that counts, and a trained network."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from safetensors.torch import save_file

from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.vision import load

CENTROIDS = """
import numpy as np
from sklearn.datasets import load_digits

_raw = load_digits()
_images = _raw.images.reshape(-1, 64) / 16
_centers = np.stack([_images[_raw.target == c].mean(0) for c in range(10)])


def scores(images):
    with open("asked.txt", "a") as file:
        file.write(f"{len(images)}\\n")
    rows = images.reshape(len(images), 64)
    return -5 * ((rows[:, None] - _centers) ** 2).sum(2)


def labels(images):
    return scores(images).argmax(1)
"""
"""A module of the user's own: nearest class mean, every call noted in the working directory."""

DECAY = """
import math
from pathlib import Path

import numpy as np
import torch

from deepzero_apps.correction.correctors import Free
from deepzero_apps.correction.problem import Problem


class Decay:
    shape = (1, 6, 8)
    reach = math.inf
    accepts_forcing = True

    def __init__(self, rate, noted=False):
        self.rate, self.noted = rate, noted

    def step(self, fields, parameters, native=None, *, forcing=None):
        if self.noted:
            with open("asked.txt", "a") as file:
                file.write(f"{len(fields)}\\n")
        mean = fields.mean((2, 3), keepdims=True)
        rate = self.rate * parameters.reshape(-1, 1, 1, 1)
        moved = np.roll(fields, 1, 3) - fields + 0.1 * mean
        after = fields + rate * moved
        return after + (0.0 if forcing is None else forcing * 0.1), None


def start(parameters, seed):
    one = np.random.default_rng(seed).standard_normal((1, 1, 6, 8))
    return one.repeat(len(parameters), 0), None


def problem():
    return Problem(
        name="decay",
        coarse=Decay(0.05, noted=True),
        dt=0.1,
        outputs={"free": Free(torch.ones(1, 6, 8))},
        train=(1.0, 2.0, 3.0),
        validation=(1.5,),
        test=(1.25, 2.5),
        periodic=True,
        settings={"rate": 0.1},
        reference=Decay(0.1),
        frames=16,
        restrict=lambda fields: fields,
        start=start,
    )
"""
"""A problem of the user's own: a field that moves and decays, at half the speed in the coarse."""


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)  # as in a process of its own


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module of the user's own into the working directory; returns its name."""
    name = "box_of_the_user"
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        # byte code is known by second and size alone, which two texts of a test may share
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)
    get_reusable_executor().shutdown(wait=True)  # its processes know the module, and this folder


@pytest.fixture
def centroids(own_module: Callable[[str], str]) -> str:
    """A black box that answers scores."""
    return f"{own_module(CENTROIDS)}:scores"


@pytest.fixture
def decay(own_module: Callable[[str], str]) -> str:
    """A correction problem whose coarse simulator acts far."""
    return f"{own_module(DECAY)}:problem"


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[], int]:
    """Says how many images `centroids`, or states the coarse `decay`, was shown so far."""

    def count() -> int:
        file = tmp_path / "asked.txt"
        return sum(map(int, file.read_text().split())) if file.exists() else 0

    return count


@pytest.fixture(scope="session")
def cnn_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in network, fitted once."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    box = black_box("cnn", load("digits"), weights=None, seed=0, device="cpu")
    torch.set_default_dtype(before)
    path = tmp_path_factory.mktemp("cnn") / "cnn.safetensors"
    assert box.white_box is not None
    save_file(dict(box.white_box.state_dict()), path)
    return path
