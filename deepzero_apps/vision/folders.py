"""Images that a user brings as a folder with one subfolder for each class.

Either ``root/<class>/<file>``, or ``root/train/<class>/<file>`` with ``root/test`` and, if wanted,
``root/validation`` of the same form. A class's index is its place in the sorted names of the
training classes. All files have one size; they are gray if every file is, else RGB. Files with
other endings than an image's, hidden ones, and what is no file (a pipe, a device) are left alone;
links are followed. A file is decoded by one of the formats below alone, whatever its ending, and
only after its header told a size that fits.
"""

__all__ = ["image_folder"]

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deepzero_apps.vision.images import Images, Splits, cut_test, cut_validation

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"})
"""Files that are taken for images, in capitals too."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What a file may be. Pillow knows more, some of which start other programs (EPS)."""

LARGEST = 2**24
"""Pixels that an image may have, 4096x4096: a PNG of a few kilobytes can claim a thousand times as
many."""

Labelled = list[tuple[Path, int]]


def image_folder(root: str | PathLike[str], *, seed: int = 0) -> Splits:
    """Loads all images below a folder.

    Without ``root/train`` a fifth of the images are for testing and a tenth for validation; with
    ``root/train`` and ``root/test``, a tenth of the training images are for validation unless
    ``root/validation`` is there.

    Args:
        root: The folder.
        seed: The seed of the division.

    Returns:
        The splits, named after the folder, with uint8 pixels.

    Raises:
        FileNotFoundError: If the folder, ``root/test``, a class or its images are missing.
        ValueError: If a file is unreadable, has more than 8 bits a pixel or another size than the
            first one, or a class of ``root/test`` is none of ``root/train``.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of images, found none at {root}")
    name = root.resolve().name
    if not (root / "train").is_dir():
        (everything,) = _load([root])
        return cut_test(everything, name=name, seed=seed)
    if not (root / "test").is_dir():
        raise FileNotFoundError(f"root must hold a folder test beside train, found none in {root}")
    if not (root / "validation").is_dir():
        train, test = _load([root / "train", root / "test"])
        return cut_validation(train, test, name=name, seed=seed)
    train, validation, test = _load([root / "train", root / "validation", root / "test"])
    return Splits(train, validation, test, name)


def _load(folders: Sequence[Path]) -> list[Images]:
    """Reads folders that share classes (the first one's), size and number of channels."""
    classes = tuple(path.name for path in _class_folders(folders[0]))
    found = [_files(folder, classes) for folder in folders]
    arrays: list[NDArray[np.uint8]] = []
    reference = found[0][0][0]
    for path, _ in (entry for files in found for entry in files):
        arrays.append(_read(path, arrays[0].shape[:2] if arrays else None, reference))
    gray = all(array.ndim == 2 for array in arrays)
    pixels = torch.from_numpy(np.stack([_channels_first(array, gray) for array in arrays]))
    labels = torch.tensor([label for files in found for _, label in files])
    sizes = [len(files) for files in found]
    parts = zip(pixels.split(sizes), labels.split(sizes), strict=True)
    return [Images(images, targets, classes) for images, targets in parts]


def _class_folders(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"root must hold one folder for each class, found none in {folder}"
        )
    return found


def _files(folder: Path, classes: tuple[str, ...]) -> Labelled:
    labelled: Labelled = []
    for path in _class_folders(folder):
        if path.name not in classes:
            raise ValueError(f"root must have the classes of train everywhere, got {path} as well")
        files = sorted(p for p in path.iterdir() if _is_image(p))
        if not files:
            raise FileNotFoundError(
                f"root must hold images in each class, found none in {path} "
                f"(endings: {', '.join(sorted(ENDINGS))})"
            )
        labelled += [(file, classes.index(path.name)) for file in files]
    return labelled


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


class _Unfit(ValueError):
    """An image that could be decoded and is not wanted."""


def _read(path: Path, shape: tuple[int, ...] | None, reference: Path) -> NDArray[np.uint8]:
    """Reads a file as gray (h, w) or RGB (h, w, 3), of the shape (h, w) of the reference's."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_header(image, path, shape, reference)
            return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (_Unfit, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise errors of nearly every class
        raise ValueError(f"root must hold readable images, got {path} ({error})") from error


def _check_header(
    image: Image.Image, path: Path, shape: tuple[int, ...] | None, reference: Path
) -> None:
    """Refuses by the header, before anything is decoded."""
    # Modes I and F hold 16 or 32 bits, which PIL would cut to 8 without a word.
    if image.mode.startswith(("I", "F")):
        raise _Unfit(f"images must have 8 bits a channel, got more in {path}; convert it first")
    width, height = image.size
    if width * height > LARGEST:
        raise _Unfit(
            f"images must have at most {LARGEST:,} pixels, got {width}x{height} in {path}"
        )
    if shape is not None and (height, width) != shape:
        raise _Unfit(
            f"images must all have one size, got {width}x{height} in {path} "
            f"and {shape[1]}x{shape[0]} in {reference}"
        )


def _channels_first(array: NDArray[np.uint8], gray: bool) -> NDArray[np.uint8]:
    if array.ndim == 3:
        return array.transpose(2, 0, 1)
    return array[None] if gray else np.broadcast_to(array, (3, *array.shape))
