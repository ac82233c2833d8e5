r"""What else would decide radii: a two-sided KT mixture, and sizes in the manner of ISS.

*KT.* The evidence against :math:`p_0` is the mixture over all :math:`q` of Krichevsky and Trofimov,

.. math::
    M_n(p_0) = \frac{B(k + 1/2, n - k + 1/2)}{B(1/2, 1/2) \, p_0^k (1 - p_0)^{n - k}},

and an image is done when each target lies outside of :math:`\{p_0: M_n(p_0) < 1 / \alpha\}`, certified or
refuted. So RS_conf_seq decides.

*ISS.* The least number of votes whose radius, at the selection's share, is at most .05 below that of
100,000. Estimation votes are fresh here; as published the selection votes count again.

References:
    | Treatment of Statistical Estimation Problems in Randomized Smoothing (Voracek, 2024)
    | https://arxiv.org/abs/2406.17830

    | Input-Specific Robustness Certification for Randomized Smoothing (Chen et al., 2022)
    | https://arxiv.org/abs/2112.12084
"""

__all__ = ["iss", "kt"]

import math

import numpy as np
from scipy.special import betaln, ndtr, ndtri, xlog1py, xlogy
from scipy.stats import beta

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.simulation import Outcomes
from deepzero_apps.smoothing.stopping import schedule

DECLINE = 0.05


def kt(probabilities: np.ndarray, settings: Settings, generator: np.random.Generator) -> Outcomes:
    """Decides the settings' radii by the two-sided KT sequence, at the looks of `Decide`."""
    n, alpha = settings.n, settings.alpha
    selected, _, p = _select(probabilities, settings.n0, generator)
    targets = ndtr(np.asarray(settings.radii) / settings.sigma)
    looks = schedule(n)
    votes, drawn = np.zeros(len(p), dtype=np.int64), np.zeros(len(p), dtype=np.int64)
    best, decided = np.zeros(len(p)), np.zeros((len(p), len(targets)), dtype=bool)
    going = np.arange(len(p))
    for look, more in zip(looks, np.diff(looks, prepend=0), strict=True):
        votes[going] += generator.binomial(more, p[going])
        drawn[going] = look
        seen = votes[going]
        outside = _evidence(seen[:, None], look, targets) >= -math.log(alpha)
        decided[going] |= outside
        best[going] = np.maximum(best[going], _lower(seen, look, alpha))
        going = going[~decided[going].all(1)]
    return Outcomes(selected, drawn, best)


def iss(probabilities: np.ndarray, settings: Settings, generator: np.random.Generator) -> Outcomes:
    """Draws as many votes as the selection's share makes worth while, at most the settings' n."""
    sigma, n0, n, alpha = settings.sigma, settings.n0, settings.n, settings.alpha
    selected, most, p = _select(probabilities, n0, generator)
    choices = schedule(n)
    shares = np.arange(n0 + 1)[:, None] / n0
    radii = sigma * ndtri(
        np.maximum(_clopper_pearson(np.rint(shares * choices), choices, alpha), 0.5)
    )
    enough = (radii >= radii[:, -1:] - DECLINE).argmax(1)
    drawn = np.where(radii[:, -1] > 0, choices[enough], 0)[most]
    votes = generator.binomial(drawn, p)
    return Outcomes(selected, drawn, _clopper_pearson(votes, drawn, alpha))


def _select(
    probabilities: np.ndarray, n0: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    selection = generator.multinomial(n0, probabilities)
    selected = selection.argmax(1)
    return selected, selection.max(1), probabilities[np.arange(len(probabilities)), selected]


def _evidence(votes: np.ndarray, n: int, p0: np.ndarray) -> np.ndarray:
    mixture = betaln(votes + 0.5, n - votes + 0.5) - betaln(0.5, 0.5)
    ratio: np.ndarray = mixture - xlogy(votes, p0) - xlog1py(n - votes, -p0)
    return ratio


def _lower(votes: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The lower end of the KT interval, by halving between 0 and the share."""
    unique, where = np.unique(votes, return_inverse=True)
    low, high = np.zeros(unique.size), unique / n
    for _ in range(40):
        middle = (low + high) / 2
        outside = _evidence(unique, n, middle) >= -math.log(alpha)
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return low[where]


def _clopper_pearson(votes: np.ndarray, n: np.ndarray, alpha: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        bound = beta.ppf(alpha, votes, n - votes + 1)
    return np.where(votes > 0, np.nan_to_num(bound), 0.0)
