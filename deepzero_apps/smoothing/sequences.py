r"""Confidence sequences for votes: a lower bound that holds at all numbers of votes at once.

After :math:`n` votes, :math:`k` of them for the class, the hypothesis that its probability is at
most :math:`p_0` is tested by a mixture of likelihood ratios over the alternatives, uniform above
:math:`p_0`:

.. math::
    M_n(p_0) = \frac{1}{1 - p_0} \int_{p_0}^1
        \frac{q^k (1 - q)^{n - k}}{p_0^k (1 - p_0)^{n - k}} \, dq
    = \frac{B(k + 1, n - k + 1) \, I_{1 - p_0}(n - k + 1, k + 1)}
        {p_0^k (1 - p_0)^{n - k + 1}}                                           \tag{1}

(:math:`I`: the regularized incomplete beta function). With binomial tails it is
:math:`P(\mathrm{Bin}(n + 1, p_0) \le k)` over
:math:`(n + 1 - k) \, P(\mathrm{Bin}(n + 1, p_0) = k)`. The bound is the largest :math:`p_0` that
the votes refute:

.. math::
    L_n = \sup \{ p_0 : M_n(p_0) \ge 1 / \alpha \}                              \tag{2}

**Guarantee.** :math:`P(\exists n: L_n > p) \le \alpha`, so that one may look after every vote, stop
for whatever reason, and report the largest bound ever seen.

**Proof.** (a) For a fixed :math:`q > p_0` one more vote multiplies the ratio by a factor of mean
:math:`p q / p_0 + (1 - p)(1 - q) / (1 - p_0)`: rising in :math:`p`, and 1 at :math:`p = p_0`. So the
ratio, and with it every mixture of weight 1, is a martingale at :math:`p = p_0` and a
supermartingale below. (b) Ville: it ever reaches :math:`1 / \alpha` with probability at most
:math:`\alpha`. (c) In :math:`u = (1 - q) / (1 - p_0)`, uniform on (0, 1) whatever :math:`p_0`,

.. math::
    M_n(p_0) = \int_0^1 \Big(\frac{1 - u}{p_0} + u\Big)^k u^{n - k} \, du       \tag{3}

falls as :math:`p_0` grows (strictly for :math:`k > 0`), and grows with :math:`k`. So
:math:`L_n > p` implies that :math:`M_n(p)`, at the one true :math:`p`, reached :math:`1 / \alpha`. It
follows too that any number of radii may be decided by one sequence without a union bound.

*Why uniform.* A mixture over all :math:`q` (Krichevsky & Trofimov's, two-sided, as in RS_conf_seq)
spends weight on alternatives that certify nothing and needs 10 to 30 % more votes. One-sided ones
with other beta weights, or with geometric ones towards :math:`p_0`, differ by less than 10 % either
way, and most of them lack (3) or the closed form.

References:
    | Statistical Methods Related to the Law of the Iterated Logarithm (Robbins, 1970)
    | https://doi.org/10.1214/aoms/1177696786

    | Estimating means of bounded random variables by betting (Waudby-Smith & Ramdas, 2023)
    | https://arxiv.org/abs/2010.09686

    | The performance of universal encoding (Krichevsky & Trofimov, 1981)
    | https://doi.org/10.1109/TIT.1981.1056331

    | Treatment of Statistical Estimation Problems in Randomized Smoothing (Voracek, 2024)
    | https://arxiv.org/abs/2406.17830
"""

__all__ = ["least_votes", "log_evidence", "lower_bound_anytime", "lower_bounds_anytime"]

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaln, xlog1py, xlogy

# Halvings of an interval no longer than 1: to the spacing of float64 below 1.
_HALVINGS = 53


def log_evidence(votes: ArrayLike, n: ArrayLike, p0: ArrayLike) -> np.ndarray:
    r"""Computes the logarithm of the evidence against a probability of at most p0, eq. (1).

    Args:
        votes: Votes for the class, in 0 ... n; broadcast against the others.
        n: Votes in all, at least 0.
        p0: The probability to refute, in (0, 1).

    Returns:
        :math:`\log M_n(p_0)`, of the broadcast shape. Where the beta function is next to the
        smallest float, or minus infinity where it is below, it is inexact; the evidence is then
        less than 1, since the share of votes is far below ``p0``.

    Example:
        >>> print(f"{np.exp(log_evidence(1, 1, 0.5)):.3f}")  # mean of q / 0.5 over q in (0.5, 1)
        1.500
    """
    k, total, p = (np.asarray(x, dtype=np.float64) for x in (votes, n, p0))
    with np.errstate(divide="ignore"):
        tail = np.log(betainc(total - k + 1, k + 1, 1 - p))
    ratio: np.ndarray = (
        tail + betaln(k + 1, total - k + 1) - xlogy(k, p) - xlog1py(total - k + 1, -p)
    )
    return ratio


def lower_bound_anytime(votes: int, n: int, alpha: float) -> float:
    """Bounds a probability from below, at any number of votes, eq. (2).

    Args:
        votes: Votes for the class, in 0 ... n.
        n: Votes in all, at least 0.
        alpha: Probability that the bound ever exceeds the truth, in (0, 1).

    Returns:
        The bound, in [0, 1); 0 where nothing is refuted.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(lower_bound_anytime(1_000, 1_000, 0.001), 4)  # Clopper and Pearson's is 0.9931
        0.9909
    """
    return float(lower_bounds_anytime(votes, n, alpha))


def lower_bounds_anytime(votes: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """Bounds many probabilities from below, `lower_bound_anytime` of each.

    Args:
        votes: Votes for the class, integers in 0 ... n; broadcast against ``n``.
        n: Votes in all, integers of at least 0.
        alpha: Probability that the bound ever exceeds the truth, in (0, 1).

    Returns:
        The bounds, of the broadcast shape, float64.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_alpha(alpha)
    k, total = np.broadcast_arrays(np.asarray(votes), np.asarray(n))
    wrong = ~((k >= 0) & (k <= total))  # NaN is wrong too
    if wrong.any():
        first = np.flatnonzero(wrong.ravel())[0]
        raise ValueError(
            f"votes must be in 0 ... n, got {k.ravel()[first]} of {total.ravel()[first]}"
        )
    # The ratio (1) is at most 1 where p0 >= k / n, so that the bound lies below.
    low, high = np.zeros(k.shape), k / np.maximum(total, 1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = (middle > 0) & (middle < 1)
        refuted = log_evidence(k, total, np.where(inside, middle, 0.5)) >= -math.log(alpha)
        low, high = np.where(refuted & inside, middle, low), np.where(refuted, high, middle)
    return low


def least_votes(n: ArrayLike, p0: float, alpha: float) -> np.ndarray:
    """Gives the least votes for the class that refute a probability of at most p0.

    Args:
        n: Votes in all, integers of at least 0.
        p0: The probability to refute, in (0, 1).
        alpha: Probability of ever refuting a true one, in (0, 1).

    Returns:
        Integers of the shape of ``n``; n + 1 where not even all votes suffice.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> least_votes([16, 100, 1_000], 0.5, 0.001)  # Clopper and Pearson: 16, 66, 550
        array([ 16,  71, 569])
    """
    _check_alpha(alpha)
    if not 0 < p0 < 1:
        raise ValueError(f"p0 must be in (0, 1), got {p0}")
    total = np.asarray(n)
    if (total < 0).any():
        raise ValueError(f"n must be at least 0, got {total.min()}")
    low, high = np.full(total.shape, -1), total + 1  # (3) grows with k
    while (high - low > 1).any():
        middle = (low + high) // 2
        inside = np.clip(middle, 0, total)
        refuted = log_evidence(inside, total, p0) >= -math.log(alpha)
        open_ = high - low > 1
        high = np.where(open_ & refuted, middle, high)
        low = np.where(open_ & ~refuted, middle, low)
    return high


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
