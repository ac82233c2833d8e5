"""What the tests of the command line share: a cheap black box that counts, and a trained network."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
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
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)


@pytest.fixture
def centroids(own_module: Callable[[str], str]) -> str:
    """A black box that answers scores."""
    return f"{own_module(CENTROIDS)}:scores"


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[], int]:
    """Says how many images were shown to `centroids` so far."""

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
