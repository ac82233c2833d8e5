"""Procedures run on votes that are drawn from known probabilities, for planning and for tests.

No classifier is asked. The numbers of votes and the integers that decide are those of the rules
themselves; only the loop is over looks here, for all images at once.
"""

__all__ = ["Outcomes", "simulate"]

from dataclasses import dataclass

import numpy as np

from deepzero_apps.smoothing.bounds import lower_bound
from deepzero_apps.smoothing.rules import Adaptive, Anytime, Decide, Fixed
from deepzero_apps.smoothing.sequences import lower_bounds_anytime


@dataclass(frozen=True)
class Outcomes:
    """What became of each image.

    Attributes:
        selected: The class of most selection votes, of shape ``(m,)``.
        drawn: Estimation votes, of shape ``(m,)``.
        p_lower: Lower bounds of that class's probability, of shape ``(m,)``.
    """

    selected: np.ndarray
    drawn: np.ndarray
    p_lower: np.ndarray


def simulate(
    rule: Fixed | Adaptive | Decide | Anytime,
    probabilities: np.ndarray,
    *,
    generator: np.random.Generator,
) -> Outcomes:
    """Runs a procedure on images whose classes have known probabilities.

    Args:
        rule: The procedure.
        probabilities: Of each class under noise, of shape ``(m, classes)``; a row that sums to
            less than 1 loses queries.
        generator: The source of the votes.

    Returns:
        The outcomes, one an image.

    Raises:
        ValueError: If ``probabilities`` is no such array.
    """
    _check(probabilities)
    lost = np.maximum(1 - probabilities.sum(1, keepdims=True), 0)
    shares = np.concatenate((probabilities, lost), axis=1)
    selection = generator.multinomial(rule.settings.n0, shares)[:, :-1]
    selected, most = selection.argmax(1), selection.max(1)
    p = probabilities[np.arange(len(probabilities)), selected]
    if isinstance(rule, Fixed | Adaptive):
        drawn, p_lower = _whole(rule, most, p, generator)
    else:
        drawn, p_lower = _sequential(rule, most, p, generator)
    return Outcomes(selected, drawn, p_lower)


def _whole(
    rule: Fixed | Adaptive, most: np.ndarray, p: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.array([rule.size(selected) for selected in range(rule.settings.n0 + 1)])[most]
    counts = np.stack((generator.binomial(drawn, p), drawn))
    unique, where = np.unique(counts, axis=1, return_inverse=True)
    alpha = rule.settings.alpha
    bounds = [lower_bound(int(k), int(n), alpha) if n else 0.0 for k, n in unique.T]
    return drawn, np.array(bounds)[where]


def _sequential(
    rule: Decide | Anytime, most: np.ndarray, p: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    table = rule.table
    votes, drawn, refuted = (np.zeros(len(p), dtype=np.int64) for _ in range(3))
    best = np.zeros(len(p))
    going = np.flatnonzero(most >= table.least_selection)
    for look, more in enumerate(np.diff(table.looks, prepend=0)):
        votes[going] += generator.binomial(more, p[going])
        drawn[going] = table.looks[look]
        unique, where = np.unique(votes[going], return_inverse=True)
        bounds = lower_bounds_anytime(unique, table.looks[look], rule.settings.alpha)
        best[going] = np.maximum(best[going], bounds[where])
        refuted[going], over = table.step(look, votes[going], refuted[going])
        going = going[~over]
    return drawn, best


def _check(probabilities: np.ndarray) -> None:
    sound = probabilities.ndim == 2 and probabilities.size > 0
    # 1e-9: what rounding leaves of a sum of shares
    if not sound or not (probabilities >= 0).all() or not (probabilities.sum(1) < 1 + 1e-9).all():
        raise ValueError(
            "probabilities must be of shape (m, classes), at least 0, with sums of at most 1, "
            f"got shape {probabilities.shape}"
        )
