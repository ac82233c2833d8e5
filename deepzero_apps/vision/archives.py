"""Images that a user brings as an ``.npz`` archive of uint8 arrays.

An archive holds ``images`` of shape ``(n, h, w)`` or ``(n, h, w, c)`` with 1 or 3 channels,
``labels`` of shape ``(n,)`` with whole numbers from 0, and optionally ``classes``, the names of the
classes. Pickled objects are never read.
"""

__all__ = ["images_from_npz", "npz"]

import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepzero_apps.foreign import read_arrays
from deepzero_apps.vision.images import Images, Splits, cut_test, cut_validation

FOLDER_FILES = ("train_images.npz", "test_images.npz")
"""The two archives that a folder given in place of an archive must hold."""

MOST_CLASSES = 100_000
"""Larger labels are taken for something else than labels."""

_WANTED = ("images", "labels", "classes")

Arrays = dict[str, NDArray[Any]]


def npz(
    path: str | PathLike[str], test: str | PathLike[str] | None = None, *, seed: int = 0
) -> Splits:
    """Loads images from one archive, or from one for training and one for testing.

    With a test archive, a tenth of the training images are for validation. Without, a fifth are
    for testing and a tenth for validation.

    Args:
        path: The archive, or a folder with ``train_images.npz`` and ``test_images.npz``.
        test: The archive of test images.
        seed: The seed of the division.

    Returns:
        The splits, named after the file or folder.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is no intact archive, an array is missing or has another dtype,
            shape, length or range than stated above, or the two files do not fit each other.
    """
    path = Path(path)
    name = path.stem
    if path.is_dir():
        path, test = (path / file for file in FOLDER_FILES)
    if test is None:
        return cut_test(images_from_npz(path), name=name, seed=seed)
    test = Path(test)
    train_arrays, test_arrays = _read(path), _read(test)
    if test_arrays["images"].shape[1:] != train_arrays["images"].shape[1:]:
        raise ValueError(
            f"test must hold images of the training images' shape "
            f"{train_arrays['images'].shape[1:]}, got {test_arrays['images'].shape[1:]} in {test}"
        )
    classes = _classes(path, train_arrays, test_arrays)
    return cut_validation(
        _images(train_arrays, path, classes),
        _images(test_arrays, test, classes),
        name=name,
        seed=seed,
    )


def images_from_npz(path: str | PathLike[str]) -> Images:
    """Loads all images of one archive, undivided and in order.

    Args:
        path: The archive.

    Returns:
        The images, with uint8 pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the archive is unfit (see `npz`).
    """
    path = Path(path)
    arrays = _read(path)
    return _images(arrays, path, _classes(path, arrays))


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError(f"path must be an .npz archive, found no file at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"path must be an .npz archive, got {path}, which is none or is cut short"
        )
    try:
        arrays = read_arrays(path, _WANTED)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"path must be an intact .npz archive of plain arrays, got {path} ({error})"
        ) from error
    _check_arrays(arrays, path)
    return arrays


def _check_arrays(arrays: Arrays, path: Path) -> None:
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise ValueError(
            f"path must hold arrays 'images' and 'labels', got {path} without {missing}"
        )
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 from 0 to 255, got {images.dtype} in {path}; "
            "scale and round them first"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"images must have shape (n, h, w) or (n, h, w, c) with c = 1 or 3, "
            f"got {images.shape} in {path}"
        )
    if 0 in images.shape:
        raise ValueError(f"images must not be empty, got shape {images.shape} in {path}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be whole numbers of shape {images.shape[:1]}, one for each image, "
            f"got {labels.dtype} of shape {labels.shape} in {path}"
        )
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"labels must be within 0 and {MOST_CLASSES - 1}, "
            f"got {labels.min()} to {labels.max()} in {path}"
        )


def _classes(path: Path, *sets: Arrays) -> tuple[str, ...]:
    """Takes the class names that are stored, else numbers up to the largest label."""
    named = [arrays["classes"] for arrays in sets if "classes" in arrays]
    if not named:
        largest = max(int(arrays["labels"].max()) for arrays in sets)
        return tuple(str(label) for label in range(largest + 1))
    if any(names.ndim != 1 or names.dtype.kind not in "USiu" for names in named):
        raise ValueError(
            f"classes must be a list of names, got {named[0].dtype} of shape {named[0].shape} "
            f"in {path}"
        )
    listed = [tuple(names.astype(str).tolist()) for names in named]
    if len(set(listed)) > 1:
        raise ValueError(
            f"classes must be the same for training and testing, got {listed[0]} and {listed[1]}"
        )
    return listed[0]


def _images(arrays: Arrays, path: Path, classes: tuple[str, ...]) -> Images:
    labels = arrays["labels"]
    if labels.max() >= len(classes):
        raise ValueError(
            f"labels must be indices into the {len(classes)} classes, got {labels.max()} in {path}"
        )
    pixels = torch.from_numpy(arrays["images"])
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(labels.astype(np.int64)), classes)
