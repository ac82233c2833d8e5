r"""When to look at the votes of an image, and when to give up: tables of integers.

A radius :math:`r` is reached where the class has probability :math:`\Phi(r / \sigma)`, its
*target*. Looks are at multiples of 32 votes, later 1/16 apart. For each of them a table holds the
least votes that refute each target (``sequences``), and the most votes at which nothing is left
to wait for. Both are functions of the settings alone, so that a run, its replay and a simulation
read the same integers.

**Giving up is free**: it certifies nothing, so whatever decides it, no certificate becomes false.
It only has to be good, and the best is an optimal stopping problem. A certified radius is worth
:math:`w` = 200,000 votes; the probability is uniform *a priori*, so that further votes are
beta-binomial given those at hand. With :math:`k` of :math:`n_t` votes and :math:`j` targets refuted,

.. math::
    V_j(t, k) = \begin{cases}
        1 + V_{j + 1}(t, k) & k \ge c_{t, j} \\
        \max(0, \, E[V_j(t + 1, K) \mid k] - (n_{t + 1} - n_t) / w) & \text{else}
    \end{cases}                                                                 \tag{1}

and an image is given up where :math:`V` is 0; before the first estimation vote, where the
selection votes predict it. Solved backwards on 1,025 values of :math:`k` a look. The beta-binomial
is exact where further votes against the class are few, as near radii that need nearly all votes;
elsewhere the normal distribution of the same moments takes its place. Both cost votes at most.

References:
    | Optimal Statistical Decisions (DeGroot, 1970), ch. 12
    | https://doi.org/10.1002/0471729000
"""

__all__ = ["WORTH", "Table", "schedule", "sizes", "table_of"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln
from scipy.stats import beta, binom

from deepzero_apps.smoothing.sequences import least_votes

WORTH = 200_000
"""Votes that a certified radius may cost: chosen on validation images for certified accuracies as
good as those of 100,000 votes an image, see ``benchmarks/results/certification.md``."""

_STEP = 32
_GROWTH = 1 / 16
_POINTS = 1025
_DEVIATIONS = 12.0
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(25)
_FEW = _NODES.size - 1


@dataclass(frozen=True)
class Table:
    """A sequential procedure, wholly.

    Attributes:
        looks: Cumulated votes at the looks, ascending, of shape ``(t,)``.
        certify: The least votes that refute each target, of shape ``(t, j)``.
        over: The most votes at which it ends, where 0 ... j targets are refuted; -1 where it
            does not; of shape ``(t, j + 1)``.
        least_selection: The least selection votes that are worth an estimation vote.
    """

    looks: np.ndarray
    certify: np.ndarray
    over: np.ndarray
    least_selection: int

    def step(
        self, look: int, votes: np.ndarray, refuted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Looks at the votes of one image or many.

        Args:
            look: Which look, in 0 ... t - 1.
            votes: Cumulated votes for the class, of any shape.
            refuted: Targets refuted before, of the same shape.

        Returns:
            Targets refuted now, and whether it is over.
        """
        now = np.maximum(refuted, (votes[..., None] >= self.certify[look]).sum(-1))
        return now, votes <= self.over[look][now]


def schedule(n: int) -> np.ndarray:
    """Gives the numbers of votes at which to look.

    Args:
        n: The most votes, at least 1; the last look.

    Returns:
        Ascending integers.

    Example:
        >>> schedule(100)
        array([ 32,  64,  96, 100])
    """
    looks = [min(_STEP, n)]
    while looks[-1] < n:
        growth = _STEP * round(looks[-1] * _GROWTH / _STEP)
        looks.append(min(looks[-1] + max(_STEP, growth), n))
    return np.array(looks)


def table_of(
    targets: Sequence[float], *, n0: int, n: int, alpha: float, stop_when_decided: bool
) -> Table:
    """Makes the table of a sequential procedure.

    Args:
        targets: Probabilities to refute, ascending, in (0, 1), at least one.
        n0: The number of selection votes.
        n: The most estimation votes.
        alpha: Probability of ever refuting a true one.
        stop_when_decided: Whether it ends once all targets are refuted.

    Returns:
        The table.
    """
    looks = schedule(n)
    certify = np.stack([least_votes(looks, target, alpha) for target in targets], axis=1)
    hopeless, least_selection = _solved(looks, certify, n0)
    end = looks if stop_when_decided else np.full_like(looks, -1)
    return Table(looks, certify, np.column_stack((hopeless, end)), least_selection)


def sizes(targets: Sequence[float], *, n0: int, n: int, alpha: float) -> np.ndarray:
    r"""Gives the best number of estimation votes for each number of selection votes.

    Best is what gains most by (1) where all votes are drawn at once and Clopper and Pearson's
    bound is taken: :math:`\sum_j P(K \ge c_{N, j}) - N / w`, at most ``n``.

    Args:
        targets: Probabilities to refute, ascending, in (0, 1), at least one.
        n0: The number of selection votes.
        n: The most estimation votes.
        alpha: Probability of refuting a true one.

    Returns:
        Integers of shape ``(n0 + 1,)``; 0 where nothing gains.
    """
    choices = schedule(n)
    p = (np.arange(_POINTS) + 0.5) / _POINTS
    enough = binom.isf(alpha, choices[:, None], np.asarray(targets))  # one more is enough
    power = binom.sf(enough[..., None], choices[:, None, None], p).sum(1)
    selected = np.arange(n0 + 1)
    density = beta.pdf(p[:, None], selected + 1, n0 - selected + 1)
    gain = power @ (density / density.sum(0)) - choices[:, None] / WORTH
    return np.where(gain.max(0) > 0, choices[gain.argmax(0)], 0)


def _solved(looks: np.ndarray, certify: np.ndarray, n0: int) -> tuple[np.ndarray, int]:
    """Solves (1): most votes that are hopeless, and least selection votes that are not."""
    hopeless = np.full(certify.shape, -1)
    votes = _band(looks[-1], certify[-1])
    worth = _collected(np.zeros((certify.shape[1], votes.size)), votes, certify[-1])
    for look in range(len(looks) - 2, -1, -1):
        here = _band(looks[look], certify[look])
        more = looks[look + 1] - looks[look]
        further, weights = _predicted(here, looks[look] - here, more)
        ahead = here[:, None] + further
        means = [_expected(ahead, weights, votes, row) for row in worth[:-1]]
        wait = np.stack(means) - more / WORTH
        for j, row in enumerate(wait):
            lost = here[(row <= 0) & (here < certify[look, j])]
            hopeless[look, j] = np.floor(lost.max()) if lost.size else np.ceil(here[0]) - 1
        votes, worth = here, _collected(np.maximum(wait, 0), here, certify[look])
    selected = np.arange(n0 + 1)
    first = _expected(*_predicted(selected, n0 - selected, looks[0]), votes, worth[0])
    hope = np.flatnonzero(first > looks[0] / WORTH)
    return hopeless, int(hope[0]) if hope.size else n0 + 1


def _band(n: int, certify: np.ndarray) -> np.ndarray:
    """Numbers of votes from where hope is nil to n, ascending."""
    low = certify.min() - _DEVIATIONS * np.sqrt(n) / 2
    return np.linspace(max(low, 0), n, _POINTS)


def _predicted(votes: np.ndarray, others: np.ndarray, more: int) -> tuple[np.ndarray, np.ndarray]:
    """Further votes and their weights, one row for each number of votes: the beta-binomial."""
    a, b = votes[:, None] + 1, others[:, None] + 1
    p = a / (a + b)
    deviation = np.sqrt(more * p * (1 - p) * (a + b + more) / (a + b + 1))
    points = np.clip(more * p + deviation * _NODES, 0, more)
    weights = np.broadcast_to(_WEIGHTS / _WEIGHTS.sum(), points.shape).copy()
    few = (more * (1 - p) + 4 * deviation < _FEW)[:, 0]
    against = np.arange(_FEW + 1)
    points[few] = np.maximum(more - against, 0)
    weights[few] = _few_against(a[few], b[few], more)
    return points, weights


def _few_against(a: np.ndarray, b: np.ndarray, more: int) -> np.ndarray:
    """Probabilities of 0 ... 24 further votes against the class, the last with all above it."""
    against = np.arange(_FEW)
    left = np.maximum(more - against, 0)
    ratios = left * (b + against) / (against + 1) / np.maximum(a + left - 1, 1)
    none = np.exp(betaln(a + more, b) - betaln(a, b))
    steps = np.concatenate((np.ones_like(none), ratios), axis=1)
    chances: np.ndarray = none * np.cumprod(steps, axis=1)
    chances[:, -1] += 1 - chances.sum(1)
    return chances


def _expected(
    points: np.ndarray, weights: np.ndarray, votes: np.ndarray, worth: np.ndarray
) -> np.ndarray:
    mean: np.ndarray = (np.interp(points, votes, worth, left=0.0) * weights).sum(1)
    return mean


def _collected(wait: np.ndarray, votes: np.ndarray, certify: np.ndarray) -> np.ndarray:
    """The value with 0 ... j targets refuted, from that of waiting with 0 ... j - 1."""
    worth = np.zeros((len(wait) + 1, votes.size))
    for j in range(len(wait) - 1, -1, -1):
        worth[j] = np.where(votes >= certify[j] - 0.5, 1 + worth[j + 1], wait[j])
    return worth
