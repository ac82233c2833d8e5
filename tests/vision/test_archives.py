"""Archives of uint8 images, whole and unfit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepzero_apps.vision import load, npz
from deepzero_apps.vision.archives import images_from_npz


def archive(path: Path, **changes: Any) -> Path:  # noqa: ANN401
    """Stores ten RGB images of 4x5 and their labels, with some arrays changed or left out."""
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    arrays = {"images": images, "labels": np.arange(10) % 3, **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_pixels_and_labels_come_back_channels_first(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", classes=np.array(["x", "y", "z"]))
    with np.load(path) as stored:
        images = stored["images"]

    loaded = images_from_npz(path)

    assert loaded.images.dtype == torch.uint8
    assert loaded.images.shape == (10, 3, 4, 5)
    assert loaded.images[7, 2, 3, 1] == images[7, 3, 1, 2]
    assert loaded.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert loaded.classes == ("x", "y", "z")


@pytest.mark.parametrize("shape", [(10, 4, 5), (10, 4, 5, 1)])
def test_gray_images_have_one_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = archive(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    assert images_from_npz(path).shape == (1, 4, 5)


def test_one_archive_is_divided_in_three(tmp_path: Path) -> None:
    splits = npz(archive(tmp_path / "mine.npz"), seed=1)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [7, 1, 2]
    assert splits.name == "mine"
    assert splits.train.classes == ("0", "1", "2")


def test_a_test_archive_is_kept_whole_and_may_hold_the_largest_label(tmp_path: Path) -> None:
    train = archive(tmp_path / "train_images.npz")
    test = archive(tmp_path / "test_images.npz", labels=np.array([9] * 10, np.uint8))
    expected = images_from_npz(test).images

    for splits in (npz(train, test), load("npz", root=tmp_path)):
        assert torch.equal(splits.test.images, expected)
        assert splits.test.labels.tolist() == [9] * 10
        assert [len(splits.train), len(splits.validation)] == [9, 1]
        assert len(splits.train.classes) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"path must hold arrays 'images' and 'labels', .* without"),
        ({"labels": None}, r"without \['labels'\]"),
        ({"images": np.zeros((10, 4, 5))}, r"images must be uint8 .* got float64"),
        ({"images": np.zeros((10, 20), np.uint8)}, r"images must have shape .*got \(10, 20\)"),
        ({"images": np.zeros((10, 3, 4, 5), np.uint8)}, r"c = 1 or 3, got \(10, 3, 4, 5\)"),
        ({"images": np.zeros((0, 4, 5), np.uint8)}, r"images must not be empty, got shape \(0"),
        ({"labels": np.zeros(9, int)}, r"labels must be .* got int64 of shape \(9,\)"),
        ({"labels": np.zeros(10)}, r"labels must be whole numbers .* got float64"),
        ({"labels": np.full(10, -1)}, r"labels must be within 0 and .*, got -1 to -1"),
        ({"labels": np.arange(10), "classes": np.array(["a"])}, r"into the 1 classes, got 9"),
        ({"labels": np.full(10, 2**63, np.uint64)}, r"within .* got 9223372036854775808 to"),
        ({"classes": np.zeros((2, 2))}, r"classes must be a list of names, got float64"),
        (
            {"images": np.array([None] * 10)},
            r"archive of plain arrays, got .*a plain array, got objects",
        ),
    ],
)
def test_unfit_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        npz(archive(tmp_path / "a.npz", **changes))


def test_two_archives_must_fit_each_other(tmp_path: Path) -> None:
    train = archive(tmp_path / "train.npz", classes=np.array(["a", "b", "c"]))
    other = archive(tmp_path / "x.npz", images=np.zeros((10, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"training images' shape \(4, 5, 3\), got \(4, 4, 3\)"):
        npz(train, other)
    other = archive(tmp_path / "y.npz", classes=np.array(["a", "c", "b"]))
    with pytest.raises(ValueError, match="classes must be the same for training and testing"):
        npz(train, other)


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    path = archive(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"path must be an .*npz archive.*a\.npz"):
        npz(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_bytes_are_refused(tmp_path: Path, compressed: bool) -> None:
    path = archive(tmp_path / "a.npz")
    if compressed:
        np.savez_compressed(path, **np.load(path))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"path must be an intact .npz archive .*a\.npz"):
        npz(path)


def test_a_bare_array_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npy, which is none or is cut short"):
        npz(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match=r"found no file at .*absent\.npz"):
        npz(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match=r"found no file at .*train_images\.npz"):
        npz(tmp_path)
