r"""Certificates and what many of them say: certified accuracy and average certified radius.

For images with certified radii :math:`R_i` (:math:`c_i` = 1 where the certified class is the
true one, 0 where it is another or none):

.. math::
    A(r) = \frac{1}{m} \sum_i c_i [R_i \ge r], \qquad
    \mathrm{ACR} = \frac{1}{m} \sum_i c_i R_i                                   \tag{1}

Abstention counts as wrong, at r = 0 too. Both are means over images, so that a percentile
bootstrap over images gives their intervals. Of m images drawn independently from a population,
h of them certified rightly at r, the share of the population that is truly robust at r exceeds

.. math::
    B^{-1}(\delta; h, m - h + 1) - \alpha                                       \tag{2}

with probability at least :math:`1 - \delta`; of m certificates at most :math:`\alpha m` are
expected to be false.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Sec. 4
    | https://arxiv.org/abs/1902.02918

    | MACER: Attack-free and Scalable Robust Training (Zhai et al., 2020), Sec. 4.2
    | https://arxiv.org/abs/2001.02378
"""

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Source",
    "average_certified_radius",
    "bootstrap_interval",
    "certified_accuracy",
    "correct_radii",
    "difference",
    "population_bound",
]

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import beta

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.rules import Stop

ABSTAIN = -1
"""What stands for the class where none is certified."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What gave the votes, besides image and settings.

    Args:
        classifier: Fingerprint of the classifier.
        classes: The number of its classes.
        dtype: What noisy images were formed in.
        device: Type of the device that drew the noise.
        package_version: Version of deepzero-apps.
        torch_version: Version of torch.
    """

    classifier: str
    classes: int
    dtype: str
    device: str
    package_version: str
    torch_version: str


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The result for one image and what it was made from.

    Args:
        index: The image's place in its data set.
        label: Its true class.
        predicted: The certified class, or -1 for abstention.
        radius: The certified l2 radius, rounded down to four decimals, in the images' units;
            0 for abstention.
        correct: Whether ``predicted`` is ``label``.
        seconds: Time spent on the votes.
        selected: The class chosen by the selection votes.
        selection_counts: The selection votes by class.
        votes: Estimation votes for ``selected`` at the look that gave ``p_lower``.
        other_votes: Estimation votes for anything else at that look, lost ones included.
        asked: Votes drawn in all, those of the selection included.
        lost: Votes that failed or were answered with no known class; they count against.
        p_lower: The lower bound of the probability of ``selected``.
        stop: Why no more votes were drawn; see `rules.Stop`.
        image: Fingerprint of the image.
        settings: The settings.
        source: What gave the votes.
        findings: What checks of the black box found.
    """

    index: int
    label: int
    predicted: int
    radius: float
    correct: bool
    seconds: float
    selected: int
    selection_counts: tuple[int, ...]
    votes: int
    other_votes: int
    asked: int
    lost: int
    p_lower: float
    stop: Stop
    image: str
    settings: Settings
    source: Source
    findings: tuple[str, ...] = ()


def difference(
    found: tuple[Settings, str], expected: tuple[Settings, str]
) -> tuple[str, object, object] | None:
    """Says in what two runs differ, so that their votes or certificates must not be mixed.

    Args:
        found: The settings of one run, and the fingerprint of its classifier.
        expected: Those of the other.

    Returns:
        The name of the first field that differs, what was found and what was expected; ``None``
        where they agree.
    """
    if found == expected:
        return None
    has, wanted = ({**asdict(settings), "classifier": key} for settings, key in (found, expected))
    return next((name, has[name], wanted[name]) for name in wanted if has[name] != wanted[name])


def correct_radii(certificates: Sequence[Certificate]) -> np.ndarray:
    """Collects the radii of what is certified rightly.

    Args:
        certificates: The certificates, at least one.

    Returns:
        Radii of shape ``(len(certificates),)``, float64; minus infinity where the certified
        class is wrong or there is none.

    Raises:
        ValueError: If there is no certificate.
    """
    if len(certificates) == 0:
        raise ValueError("certificates must hold at least one certificate, got none")
    return np.array([c.radius if c.correct else -math.inf for c in certificates])


def certified_accuracy(
    certificates: Sequence[Certificate], radii: Sequence[float]
) -> tuple[float, ...]:
    """Gives the share of images certified rightly at each radius, eq. (1).

    Args:
        certificates: The certificates, at least one.
        radii: Radii, at least 0, in the images' units.

    Returns:
        One share in [0, 1] a radius.

    Raises:
        ValueError: If there is no certificate, or a radius is negative or NaN.
    """
    reached = correct_radii(certificates)
    for r in radii:
        if not r >= 0:
            raise ValueError(f"radii must be at least 0, got {r}")
    return tuple(float((reached >= r).mean()) for r in radii)


def average_certified_radius(certificates: Sequence[Certificate]) -> float:
    """Gives the mean certified radius, 0 where wrong or abstained, eq. (1).

    Args:
        certificates: The certificates, at least one.

    Returns:
        The average, in the images' units.

    Raises:
        ValueError: If there is no certificate.
    """
    return float(np.maximum(correct_radii(certificates), 0).mean())


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    generator: np.random.Generator | None = None,
) -> tuple[float, float]:
    """Gives a percentile bootstrap interval of a mean over images.

    Args:
        values: One finite number an image: 0 or 1 for certified accuracy, a radius for the
            average certified radius.
        level: Probability that the interval is to have, in (0, 1).
        resamples: Number of resamples, at least 1.
        generator: The source of the resamples; one of seed 0 by default.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: If ``values`` is no vector of finite numbers, or ``level`` or
            ``resamples`` is out of range.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(
            f"values must be a vector of finite numbers, got shape {numbers.shape}; "
            "of radii, clip minus infinity to 0"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if generator is None:
        generator = np.random.default_rng(0)
    size = numbers.size
    means = [numbers[generator.integers(size, size=size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def population_bound(
    certificates: Sequence[Certificate], r: float, *, delta: float = 0.05
) -> float:
    r"""Bounds the certified accuracy on the population from which the images were drawn, eq. (2).

    A certificate is reported and false with probability at most alpha, so that the share of
    images that are *truly* robust and right at the radius is at least the share that is
    reported, in expectation, less alpha. The first is bounded by Clopper and Pearson.

    Args:
        certificates: Of images drawn independently, and of all of them; at least one. What an
            interrupted run has so far is no such sample: images whose votes were soon decided
            come first, and they are the robust ones.
        r: The radius, at least 0, in the images' units.
        delta: Probability that the bound is too high, in (0, 1).

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: If there is no certificate, or ``r`` or ``delta`` is out of range.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    m = len(certificates)
    hits = round(certified_accuracy(certificates, [r])[0] * m)
    alpha = max(c.settings.alpha for c in certificates)
    return max(0.0, float(beta.ppf(delta, hits, m - hits + 1)) - alpha) if hits else 0.0
