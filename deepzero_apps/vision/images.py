"""Labelled images in memory, and their division into training, validation and test.

Pixels stay in the form they came in (bytes: a quarter of the memory) and become float32 numbers in
[0, 1] a batch at a time. A division is drawn from numpy's own generator and its seed alone, so
that it is the same in every process, whatever else draws random numbers.
"""

__all__ = ["Images", "Splits", "cut_test", "cut_validation", "divide"]

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their classes.

    Attributes:
        images: Pixels of shape ``(n, c, h, w)``: uint8 in 0...255, or float32 in [0, 1].
        labels: Indices into ``classes``, int64 of shape ``(n,)``.
        classes: The names of the classes.

    Raises:
        ValueError: If the shapes do not fit each other, a label is out of range, a float pixel
            is outside of [0, 1], or the name of a class is no plain text of one line.
        TypeError: If ``images`` is neither uint8 nor float32, or ``labels`` not int64.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_types(self.images, self.labels)
        if self.images.ndim != 4:
            raise ValueError(
                f"images must have shape (n, c, h, w), got shape {tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.images)},), one for each image, "
                f"got shape {tuple(self.labels.shape)}"
            )
        _check_range("labels", self.labels, len(self.classes) - 1)
        _check_names(self.classes)
        if self.images.is_floating_point():
            _check_range("images", self.images, 1)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape ``(c, h, w)`` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pixels(self, rows: Tensor | slice | None = None) -> Tensor:
        """Returns images as float32 numbers in [0, 1].

        Args:
            rows: Which images: indices of shape ``(k,)`` or a slice; all by default.

        Returns:
            A new tensor of shape ``(k, c, h, w)``, on the device of ``images``.
        """
        chosen = self.images if rows is None else self.images[rows]
        if chosen.dtype == torch.uint8:
            return chosen.to(torch.float32) / 255
        return chosen.clone()

    def subset(self, rows: Tensor | slice) -> "Images":
        """Returns some of the images: indices of shape ``(k,)`` or a slice."""
        return Images(self.images[rows], self.labels[rows], self.classes)

    def to(self, device: torch.device | str) -> "Images":
        """Returns the same images on another device."""
        return Images(self.images.to(device), self.labels.to(device), self.classes)


@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint sets of images that share size and classes.

    Attributes:
        train: What weights are fitted to.
        validation: What settings are chosen on.
        test: What results are reported on.
        name: The data set's name, for tables.
    """

    train: Images
    validation: Images
    test: Images
    name: str

    def to(self, device: torch.device | str) -> "Splits":
        """Returns the same splits on another device."""
        return Splits(
            self.train.to(device), self.validation.to(device), self.test.to(device), self.name
        )


def divide(images: Images, sizes: tuple[int, ...], seed: int) -> tuple[Images, ...]:
    """Deals shuffled images into disjoint parts.

    Args:
        images: What is dealt.
        sizes: The number of images of each part; their sum is at most ``len(images)``.
        seed: The seed of the shuffle, at least 0.

    Returns:
        One part for each size, in order.

    Raises:
        ValueError: If ``seed`` is negative, a size is below 1 or there are too few images.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if min(sizes) < 1 or sum(sizes) > len(images):
        raise ValueError(
            f"images must be enough for parts of {sizes}, each at least 1, got {len(images)}"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    parts = torch.split(order[: sum(sizes)], list(sizes))
    return tuple(images.subset(rows) for rows in parts)


def cut_validation(train: Images, test: Images, *, name: str, seed: int) -> Splits:
    """Keeps a given test set and cuts a tenth of the training set, at least 1, for validation.

    Args:
        train: The training images, at least 2.
        test: The test images, kept as they are.
        name: The data set's name.
        seed: The seed of the shuffle, at least 0.

    Returns:
        The splits.

    Raises:
        ValueError: If ``seed`` is negative or ``train`` has too few images.
    """
    size = max(1, len(train) // 10)
    kept, validation = divide(train, (len(train) - size, size), seed)
    return Splits(kept, validation, test, name)


def cut_test(everything: Images, *, name: str, seed: int) -> Splits:
    """Cuts a fifth of the images for testing and a tenth for validation, at least one each.

    Args:
        everything: All images, at least 3.
        name: The data set's name.
        seed: The seed of the shuffle, at least 0.

    Returns:
        The splits.

    Raises:
        ValueError: If ``seed`` is negative or there are fewer than 3 images.
    """
    held = max(1, len(everything) // 5), max(1, len(everything) // 10)
    test, validation, train = divide(everything, (*held, len(everything) - sum(held)), seed)
    return Splits(train, validation, test, name)


def _check_types(images: Tensor, labels: Tensor) -> None:
    if images.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"images must be uint8 or float32, got {images.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")


def _check_names(classes: tuple[str, ...]) -> None:
    """Names go to terminals and pages, which obey what is not printable."""
    for name in classes:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"classes must have printable names of at most {_LONGEST_NAME} characters, got "
                f"{name[:_LONGEST_NAME]!r}; rename the class"
            )


def _check_range(name: str, values: Tensor, largest: int) -> None:
    # Written so that a NaN, which compares false with everything, is refused.
    wrong = ~((values >= 0) & (values <= largest))
    if wrong.any():
        raise ValueError(
            f"{name} must be within 0 and {largest}, got {values[wrong].flatten()[0].item()}"
        )
