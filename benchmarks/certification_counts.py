"""Votes of a real black box: digits behind an mse denoiser, counted once and kept.

The denoiser is a ``defend --method mse`` run of a minute. The counts of every image go to an npz of
``counts`` (images, classes) and ``labels`` (images,), which is also what ``--counts`` reads.
"""

__all__ = ["Votes", "made", "read"]

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.cli.certify import defended
from deepzero_apps.cli.defend import DefendSettings, defend
from deepzero_apps.cli.scenes import scene
from deepzero_apps.smoothing.answers import Classifier, labels_of
from deepzero_apps.smoothing.blackbox import ask
from deepzero_apps.zeroth_order.randomness import generator_for

ROWS = 1_000


@dataclass(frozen=True)
class Votes:
    """Probabilities of each class under noise, (images, classes), and the true classes."""

    probabilities: np.ndarray
    labels: np.ndarray


def read(path: Path) -> Votes:
    """Reads counted votes."""
    with np.load(path, allow_pickle=False) as archive:
        counts, labels = archive["counts"], archive["labels"]
    return Votes(counts / counts.sum(1, keepdims=True), labels)


def made(
    folder: Path, *, classifier: str, split: Literal["test", "validation"], votes: int
) -> Votes:
    """Counts the votes of a split of the digits, or reads those counted before."""
    path = folder / f"{classifier}-{split}-{votes}.npz"
    if not path.exists():
        settings = DefendSettings(classifier=classifier, method="mse", resume=True)
        view = scene(settings)
        defend(settings, folder / classifier, view)
        subject = defended(settings, folder / classifier, view)
        images = view.splits.test if split == "test" else view.splits.validation
        counts = np.stack(
            [
                count(subject, image, votes=votes, sigma=settings.sigma, index=i)
                for i, image in enumerate(images.pixels())
            ]
        )
        np.savez_compressed(path, counts=counts, labels=images.labels.numpy())
    return read(path)


def count(
    classifier: Classifier, image: Tensor, *, votes: int, sigma: float, index: int
) -> np.ndarray:
    """Counts the votes of one image by class."""
    generator = generator_for(0, f"votes of image {index}")
    counts = torch.zeros(classifier.classes, dtype=torch.int64)
    for done in range(0, votes, ROWS):
        noise = torch.empty((min(ROWS, votes - done), *image.shape)).normal_(generator=generator)
        labels = labels_of(ask(classifier, image + sigma * noise))
        counts += torch.bincount(labels, minlength=classifier.classes)
    return counts.numpy()
