r"""Checks of the black box: is it the deterministic function of one image that smoothing assumes?

Certificates hold for *one* function that answers each image by itself. A service can break that
unseen: by caching, by batch normalization over strangers' images, by a model replaced overnight.

- **Repeats**: canaries, a few noisy images, are asked twice. A black box that draws lots may still
  be certified (its probability is over its own lots, too), but it says so.
- **Batches**: the canaries are asked in other batches, in another order. An answer that depends on
  its company is no function of an image; no certificate holds.
- **Change**: the canaries are asked again at the end, and when a run is resumed.
- **Drift**: for a fixed number of votes, the first half of an image's votes and the second are
  exchangeable. Given their sum :math:`k`, the first half is hypergeometric, so that over images

  .. math::
      z = \frac{\sum_i (k_i^{(1)} - m_i k_i / n_i)}{\sqrt{\sum_i \mathrm{Var}_i}}, \qquad
      \mathrm{Var}_i = \frac{k_i (n_i - k_i)\, m_i (n_i - m_i)}{n_i^2 (n_i - 1)}       \tag{1}

  is nearly standard normal where many votes went either way. Where few did, its tails are those
  of a Poisson number. So with d and V the sums in numerator and denominator, a finding is what
  Bernstein's inequality allows for neither:

  .. math::
      d^2 > 4.5^2 \, (V + |d| / 3)                                                     \tag{2}

  (less than once in 100,000 runs). Where votes decided when to stop, their halves are not
  exchangeable, and drift is left to the canaries.
"""

__all__ = ["CANARY", "Canaries", "canaries", "changes", "drift", "repeats"]

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import NO_VOTE, Classifier, labels_of
from deepzero_apps.smoothing.ballots import ESTIMATION, SELECTION
from deepzero_apps.smoothing.blackbox import ask
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.noise import NoisyCopies
from deepzero_apps.smoothing.vote_log import Entry, Votes

CANARY = 3
"""The stream of noise that canaries are made with."""

_TOLERANCE = 1e-3  # of the largest score: other batch sizes may round other ways
_DRIFT = 4.5


@dataclass(frozen=True)
class Canaries:
    """Noisy images and what was answered to them first.

    Args:
        images: The images, ``(n, channel, height, width)``.
        answer: Scores ``(n, classes)`` or labels ``(n,)``.
    """

    images: Tensor
    answer: Tensor


def canaries(images: Tensor, settings: Settings, count: int) -> Tensor:
    """Makes noisy images to watch a black box with.

    Args:
        images: Clean images ``(n, channel, height, width)`` in [0, 1].
        settings: The noise.
        count: How many, at least 1; at most n are made.

    Returns:
        One noisy copy of each of the first images, float32.
    """
    made = torch.empty((min(count, len(images)), *images.shape[1:]), dtype=torch.float32)
    made = made.to(images.device)
    for index, row in enumerate(made):
        NoisyCopies(
            images[index],
            sigma=settings.sigma,
            seed=settings.seed,
            index=index,
            phase=CANARY,
            noise=settings.noise,
            device=images.device,
        ).write(row[None])
    return made


def repeats(classifier: Classifier, images: Tensor) -> tuple[Canaries, list[str]]:
    """Asks canaries twice in one batch, and once in other batches: 3 queries an image.

    Args:
        classifier: The black box.
        images: From `canaries`.

    Returns:
        The canaries with their first answer, and the findings.
    """
    first = ask(classifier, images)
    findings = []
    fault = _difference(first, ask(classifier, images))
    if fault:
        findings.append(
            f"repeats: the same images asked twice got other answers ({fault}); certificates "
            "hold if these are independent lots, not if they follow a state"
        )
    elif len(images) > 1:
        order = torch.arange(len(images) - 1, -1, -1, device=images.device)
        sizes = [len(images) // 3, len(images) - len(images) // 3]
        parts = [ask(classifier, images[part]) for part in order.split(sizes) if len(part)]
        fault = _difference(first, torch.cat(parts)[order])
        if fault:
            findings.append(
                f"batches: the same images in other batches got other answers ({fault}); the "
                "answer depends on the other images, so NO certificate holds"
            )
    return Canaries(images, first), findings


def changes(classifier: Classifier, known: Canaries) -> list[str]:
    """Asks canaries again, one query each, and compares with their first answer.

    Args:
        classifier: The black box.
        known: The canaries with their first answer.

    Returns:
        The findings.
    """
    fault = _difference(known.answer, ask(classifier, known.images))
    if fault is None:
        return []
    return [
        (
            f"change: canaries got other answers at the end than at the start ({fault}); the votes "
            "are of more than one classifier"
        )
    ]


def drift(votes: Votes) -> list[str]:
    """Compares the first half of each image's estimation votes with the second, eq. (2).

    Args:
        votes: The votes of a run by the procedure ``fixed`` or ``adaptive``.

    Returns:
        The findings; none where the procedure looked at the votes.
    """
    if votes.settings.is_sequential:
        return []
    difference = variance = 0.0
    for k, n, first, m in _halves(votes):
        difference += first - m * k / n
        variance += k * (n - k) * m * (n - m) / (n * n * (n - 1))
    if difference**2 <= _DRIFT**2 * (variance + abs(difference) / 3):
        return []
    z = difference / variance**0.5
    less = "less" if z > 0 else "more"
    return [
        (
            f"drift: the second half of the votes agrees {less} often with the selected classes than "
            f"the first (z = {z:.1f}); the black box changed on the way"
        )
    ]


def _halves(votes: Votes) -> list[tuple[int, int, int, int]]:
    """For each image its votes k of n for the selected class, k1 of them among the first m."""
    return [
        halves
        for entries in votes.by_image().values()
        if (selected := _selected(entries)) is not None
        and (halves := _split([e for e in entries if e.phase == ESTIMATION], selected))
    ]


def _selected(entries: Sequence[Entry]) -> int | None:
    """The class with most selection votes, of equal ones the smallest; None without votes."""
    votes = Counter[int]()
    for entry in entries:
        if entry.phase == SELECTION:
            votes.update(entry.counts)
    return max(sorted(votes), key=votes.__getitem__) if votes else None


def _split(entries: Sequence[Entry], label: int) -> tuple[int, int, int, int] | None:
    n = sum(entry.rows for entry in entries)
    k = sum(entry.counts.get(label, 0) for entry in entries)
    first = m = 0
    for entry in entries:  # a batch that holds the middle belongs to the second half
        if 2 * (m + entry.rows) > n:
            break
        m += entry.rows
        first += entry.counts.get(label, 0)
    return (k, n, first, m) if 0 < m < n else None


def _difference(one: Tensor, other: Tensor) -> str | None:
    """Says how two answers to the same images differ; None if they agree where both answered."""
    labels = labels_of(one), labels_of(other)
    known = (labels[0] != NO_VOTE) & (labels[1] != NO_VOTE)
    unequal = int((labels[0] != labels[1])[known].sum())
    if unequal:
        return f"{unequal} of {len(one)} labels"
    if one.ndim == 2 and other.ndim == 2 and bool(known.any()):
        gap = float((one - other)[known].abs().max())
        if gap > _TOLERANCE * float(one[known].abs().max()):
            return f"scores by up to {gap:.2g}"
    return None
