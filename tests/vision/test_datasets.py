"""Data sets by name: what they hold, how they are divided, what is said when they are absent."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from deepzero_apps import vision
from deepzero_apps.vision import DATASETS, Splits, digits, load
from deepzero_apps.vision.torchvision_cpu import torchvision_datasets


def test_public_names_are_as_listed() -> None:
    assert len(vision.__all__) <= 12
    assert all(hasattr(vision, name) for name in vision.__all__)
    assert list(vision.__all__) == sorted(vision.__all__)


def rows(splits: Splits) -> list[tuple[float, ...]]:
    """All images with their labels, sorted."""
    parts = (splits.train, splits.validation, splits.test)
    return sorted(
        (float(label), *image.flatten().tolist())
        for part in parts
        for image, label in zip(part.pixels(), part.labels, strict=True)
    )


def test_digits_are_all_of_scikit_learns_each_once() -> None:
    splits = digits()
    raw = load_digits()
    expected = sorted((float(y), *(x / 16)) for x, y in zip(raw.data, raw.target, strict=True))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1_000, 297, 500]
    assert rows(splits) == expected
    assert splits.train.shape == (1, 8, 8)
    assert splits.name == "digits"


def test_digits_are_divided_by_their_seed_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = digits(seed=2)
    torch.manual_seed(6)
    assert torch.equal(first.test.images, load("digits", seed=2).test.images)
    assert not torch.equal(first.test.images, digits(seed=3).test.images)


@pytest.mark.parametrize("name", ["cifar10", "stl10"])
def test_absent_data_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"found none.* in {tmp_path}; pass --download"):
        load(name, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_datasets().STL10, "download", fail)
    with pytest.raises(OSError, match=rf"STL10 could not be downloaded to {tmp_path} .*no route"):
        load("stl10", root=tmp_path, download=True)


def test_stl10_is_read_from_its_own_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 training and 3 test images; only the checksums of the real files are left out."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    generator = np.random.default_rng(0)
    stored = {"train": 20, "test": 3}
    for split, count in stored.items():
        # STL-10 stores columns before rows, and labels from 1.
        pixels = generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(torchvision_datasets().STL10, "_check_integrity", lambda _: True)

    splits = load("stl10", root=tmp_path)

    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [18, 2, 3]
    assert splits.test.labels.tolist() == [0, 1, 2]
    assert torch.equal(splits.test.images, torch.from_numpy(pixels))  # the last ones written
    assert splits.test.classes == tuple("abcdefghij")


def test_cifar10_arrays_are_turned_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stored:
        """What torchvision holds once its files are read: (n, h, w, c) and a list of labels."""

        classes = ("cat", "dog")

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            assert (root, download) == (str(tmp_path), False)
            count = 10 if train else 4
            self.data = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
            self.targets = [0, 1] * (count // 2)

    monkeypatch.setattr(torchvision_datasets(), "CIFAR10", Stored)
    splits = load("cifar10", root=tmp_path)

    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [9, 1, 4]
    assert splits.test.shape == (3, 2, 2)
    assert splits.test.images[1, :, 0, 1].tolist() == [15, 16, 17]
    assert splits.test.labels.tolist() == [0, 1, 0, 1]


def test_unknown_names_and_unfit_roots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"name must be one of {', '.join(DATASETS)}, got 'mnist"):
        load("mnist")
    with pytest.raises(ValueError, match="root must be left out, since digits are embedded"):
        load("digits", root=tmp_path)
    for name in ("folder", "npz"):
        with pytest.raises(
            ValueError, match=f"root must say .* for {name}, got None; pass --root"
        ):
            load(name)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        load("digits", seed=-1)
