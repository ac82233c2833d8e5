r"""The arithmetic of certificates: from counted votes to a radius, and what can be reached.

A class with probability at least :math:`p > 1/2` under noise :math:`\sigma\epsilon`,
:math:`\epsilon \sim \mathcal{N}(0, I)`, keeps it within the l2 ball of radius

.. math::
    R = \sigma \Phi^{-1}(p)                                                     \tag{1}

The probability is bounded by :math:`n` votes, :math:`k` of them for the class, with the
one-sided limit of Clopper and Pearson, which exceeds the truth with probability at most
:math:`\alpha`:

.. math::
    \underline{p} = B^{-1}(\alpha; k, n - k + 1)                                \tag{2}

the :math:`\alpha` quantile of a beta distribution, 0 at :math:`k = 0`. At :math:`k = n` it is
:math:`\alpha^{1/n}`, so that no certificate exceeds :math:`\sigma \Phi^{-1}(\alpha^{1/n})`.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Thm. 1
    | https://arxiv.org/abs/1902.02918

    | The use of confidence or fiducial limits (Clopper & Pearson, 1934)
    | https://doi.org/10.1093/biomet/26.4.404
"""

__all__ = ["WITH_RADII", "Procedure", "Settings", "lower_bound", "radius", "round_down"]

import math
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Literal, get_args

from scipy.special import betaincinv, ndtr, ndtri

_STEP = Decimal("0.0001")
_SMALLEST_SIGMA = 0.001
_USEFUL_SHARE = 0.01
# Far above the relative error of the two inverse functions in (1) and (2), so that a radius
# whose true value lies just under a step is not rounded to that step.
_ROUNDING = 1e-9

Procedure = Literal["fixed", "adaptive", "decide", "anytime"]
"""How many estimation votes are drawn, and which bound they allow; see ``rules``."""

WITH_RADII: tuple[Procedure, ...] = ("decide", "adaptive")
"""The procedures that take radii to decide."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a certificate depends on besides image and classifier.

    Settings that cannot certify anything are refused: the largest radius that they could
    reach, with all votes for one class, must be at least 0.01 sigma.

    Args:
        sigma: Standard deviation of the noise, in the images' units, at least 0.001.
        n0: Votes that choose the class, at least 1.
        n: Votes that bound its probability, at least 1; at most so many for a procedure
            other than ``fixed``.
        alpha: Probability that a certificate may be wrong, in (0, 0.5).
        seed: Seed of the noise, at least 0.
        procedure: How many of the votes are drawn: all (``fixed``), a number that the
            selection votes determine (``adaptive``), until every radius is decided
            (``decide``), or until the budget ends (``anytime``).
        radii: The radii to decide, positive and ascending; for ``decide`` and ``adaptive``.
        noise: ``gaussian``; or ``grid``, where noisy images are rounded to multiples of 1/255
            (and not clipped), so that what is certified is the classifier behind that rounding.

    Raises:
        TypeError: If ``n0``, ``n`` or ``seed`` is no int.
        ValueError: If one is out of range, or the settings cannot certify anything.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    seed: int = 0
    procedure: Procedure = "fixed"
    radii: tuple[float, ...] = ()
    noise: Literal["gaussian", "grid"] = "gaussian"

    @property
    def is_sequential(self) -> bool:
        """Whether votes are looked at while they come in, and say how many there will be."""
        return self.procedure in ("decide", "anytime")

    def __post_init__(self) -> None:
        if not _SMALLEST_SIGMA <= self.sigma < math.inf:
            raise ValueError(
                f"sigma must be finite and at least {_SMALLEST_SIGMA}, in the units of images "
                f"in [0, 1], got {self.sigma}"
            )
        for name, smallest in (("n0", 1), ("n", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be in (0, 0.5), got {self.alpha}")
        self._refuse_unknown()
        self._refuse_impossible()

    def _refuse_unknown(self) -> None:
        if self.procedure not in get_args(Procedure):
            raise ValueError(
                f"procedure must be one of {', '.join(get_args(Procedure))}, got {self.procedure}"
            )
        if self.noise not in ("gaussian", "grid"):
            raise ValueError(f"noise must be gaussian or grid, got {self.noise}")
        wanted = self.procedure in WITH_RADII
        ascending = all(a < b for a, b in zip((0.0, *self.radii), self.radii, strict=False))
        if wanted != bool(self.radii) or not ascending or not all(map(math.isfinite, self.radii)):
            raise ValueError(
                "radii must be positive, finite and ascending for procedure decide and adaptive, "
                f"and empty for the others, got {self.radii} for {self.procedure}"
            )

    def _refuse_impossible(self) -> None:
        share = radius(lower_bound(self.n, self.n, self.alpha), 1.0)
        if share >= _USEFUL_SHARE:
            return
        enough = math.ceil(math.log(self.alpha) / math.log(ndtr(_USEFUL_SHARE)))
        reach = radius(lower_bound(enough, enough, self.alpha), 1.0)
        raise ValueError(
            f"n must be at least {enough} at alpha {self.alpha}, got {self.n}: with all "
            f"{self.n} votes for one class the largest radius is {share:.4f} sigma; "
            f"n = {enough} can reach {reach:.4f} sigma, a radius of "
            f"{round_down(self.sigma * reach)}"
        )


def lower_bound(count: int, n: int, alpha: float) -> float:
    """Bounds a probability from below, one-sided, eq. (2).

    Args:
        count: Successes, in 0 ... n.
        n: Trials, at least 1.
        alpha: Probability that the bound exceeds the truth, in (0, 1).

    Returns:
        The bound, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(lower_bound(100, 100, 0.001), 6)  # 0.001 ** (1 / 100)
        0.933254
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"count must be in 0 ... n with n at least 1, got {count} of {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    return 0.0 if count == 0 else float(betaincinv(count, n - count + 1, alpha))


def radius(p_lower: float, sigma: float) -> float:
    """Gives the radius that a probability certifies, eq. (1), not rounded.

    Args:
        p_lower: Lower bound of the probability of the class, in [0, 1].
        sigma: Standard deviation of the noise, in the images' units.

    Returns:
        The radius, in the images' units; 0 at a probability of 1/2 and below.

    Raises:
        ValueError: If ``p_lower`` is out of range or ``sigma`` is not positive.

    Example:
        >>> round(radius(0.841344746, sigma=0.5), 6)  # one standard deviation
        0.5
    """
    if not 0 <= p_lower <= 1:
        raise ValueError(f"p_lower must be in [0, 1], got {p_lower}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    return float(sigma * ndtri(p_lower)) if p_lower > 0.5 else 0.0


def round_down(value: float) -> float:
    """Rounds a radius down to four decimals, as certificates carry it.

    Args:
        value: The radius, finite, at least 0.

    Returns:
        The largest multiple of 0.0001 below it, allowing for errors of its computation.

    Example:
        >>> round_down(0.12349999)
        0.1234
    """
    return float(Decimal(value * (1 - _ROUNDING)).quantize(_STEP, rounding=ROUND_FLOOR))
