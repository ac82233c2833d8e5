"""The data sets that are known by name, each divided into training, validation and test.

=======  ======================  =======================  =====================================
name     images                  train/validation/test    source
=======  ======================  =======================  =====================================
digits   1,797 of 8x8, gray      1,000 / 297 / 500        scikit-learn (UCI), embedded
cifar10  60,000 of 32x32, RGB    45,000 / 5,000 / 10,000  torchvision
stl10    13,000 of 96x96, RGB    4,500 / 500 / 8,000      torchvision, the labelled part
folder   image files             see `image_folder`       the user
npz      arrays of bytes         see `npz`                the user
=======  ======================  =======================  =====================================

An official test set is kept whole; validation images are cut from the training set by the seed.

References:
    | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
    | https://www.cs.toronto.edu/~kriz/cifar.html

    | An Analysis of Single-Layer Networks in Unsupervised Feature Learning (Coates et al., 2011)
    | https://cs.stanford.edu/~acoates/stl10/

    | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
    | https://doi.org/10.24432/C50P49
"""

__all__ = ["DATASETS", "cifar10", "digits", "load", "stl10"]

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from deepzero_apps.vision.archives import npz
from deepzero_apps.vision.folders import image_folder
from deepzero_apps.vision.images import Images, Splits, cut_validation, divide
from deepzero_apps.vision.torchvision_cpu import torchvision_datasets

DATASETS = ("digits", "cifar10", "stl10", "folder", "npz")
"""The names that `load` knows."""


def load(
    name: str,
    *,
    root: str | PathLike[str] | None = None,
    download: bool = False,
    seed: int = 0,
) -> Splits:
    """Loads a data set by its name.

    Args:
        name: One of `DATASETS`.
        root: Where the data is: the folder of ``folder``, the archive (or folder with two) of
            ``npz``, the folder that ``cifar10`` and ``stl10`` are stored below (``data`` by
            default). ``digits`` has none.
        download: Whether ``cifar10`` and ``stl10`` may be fetched into ``root``.
        seed: The seed of the division, at least 0.

    Returns:
        The splits.

    Raises:
        ValueError: If the name is unknown, ``root`` is missing or superfluous, or the data unfit.
        FileNotFoundError: If the data is not there.
        OSError: If a download fails.
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    if name == "digits":
        if root is not None:
            raise ValueError(f"root must be left out, since digits are embedded, got {root}")
        return digits(seed=seed)
    if name in ("cifar10", "stl10"):
        fetch = cifar10 if name == "cifar10" else stl10
        return fetch("data" if root is None else root, download=download, seed=seed)
    if root is None:
        raise ValueError(f"root must say where the images are for {name}, got None; pass --root")
    return image_folder(root, seed=seed) if name == "folder" else npz(root, seed=seed)


def digits(*, seed: int = 0) -> Splits:
    """Loads scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels.

    Args:
        seed: The seed of the division into 1,000, 297 and 500 images.

    Returns:
        The splits, with pixels k / 16 for k = 0...16 as float32.

    Raises:
        ValueError: If ``seed`` is negative.
    """
    from sklearn.datasets import load_digits  # half a second

    raw = load_digits()
    pixels = torch.from_numpy(raw.images).to(torch.float32)[:, None] / 16
    labels = torch.from_numpy(raw.target).to(torch.int64)
    everything = Images(pixels, labels, tuple(str(name) for name in raw.target_names))
    train, validation, test = divide(everything, (1_000, 297, 500), seed)
    return Splits(train, validation, test, "digits")


def cifar10(root: str | PathLike[str], *, download: bool = False, seed: int = 0) -> Splits:
    """Loads CIFAR-10: 45,000 / 5,000 / 10,000 color images of 32x32 pixels.

    The files are in Python's pickle format; torchvision reads them only if their checksums are
    those of the published ones.

    Args:
        root: The folder that holds ``cifar-10-batches-py``.
        download: Whether the data may be fetched (170 MB).
        seed: The seed of the division, at least 0.

    Returns:
        The splits, with uint8 pixels.

    Raises:
        FileNotFoundError: If the data is absent or damaged and ``download`` is false.
        OSError: If the download fails.
        ValueError: If ``seed`` is negative.
    """
    root = Path(root)
    train = _torchvision("CIFAR10", root, download=download, which={"train": True})
    test = _torchvision("CIFAR10", root, download=download, which={"train": False})
    return cut_validation(train, test, name="cifar10", seed=seed)


def stl10(root: str | PathLike[str], *, download: bool = False, seed: int = 0) -> Splits:
    """Loads the labelled part of STL-10: 4,500 / 500 / 8,000 color images of 96x96 pixels.

    Args:
        root: The folder that holds ``stl10_binary``.
        download: Whether the data may be fetched (2.6 GB, with the unlabelled part).
        seed: The seed of the division, at least 0.

    Returns:
        The splits, with uint8 pixels.

    Raises:
        FileNotFoundError: If the data is absent or damaged and ``download`` is false.
        OSError: If the download fails.
        ValueError: If ``seed`` is negative.
    """
    root = Path(root)
    train = _torchvision("STL10", root, download=download, which={"split": "train"})
    test = _torchvision("STL10", root, download=download, which={"split": "test"})
    return cut_validation(train, test, name="stl10", seed=seed)


def _torchvision(
    kind: str, root: Path, *, download: bool, which: Mapping[str, str | bool]
) -> Images:
    constructor = getattr(torchvision_datasets(), kind)
    try:
        raw = constructor(str(root), download=download, **which)
    except (RuntimeError, OSError) as error:
        if download:
            raise OSError(f"{kind} could not be downloaded to {root} ({error})") from error
        raise FileNotFoundError(
            f"root must hold {kind}, found none, or damaged files, in {root}; "
            "pass --download (download=True) to fetch it there"
        ) from error
    # CIFAR-10 comes as (n, h, w, c) with a list of targets, STL-10 as (n, c, h, w) with uint8 labels.
    pixels = raw.data.transpose(0, 3, 1, 2) if kind == "CIFAR10" else raw.data
    labels = raw.targets if kind == "CIFAR10" else raw.labels
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        tuple(raw.classes),
    )
