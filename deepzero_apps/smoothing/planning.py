r"""What a certification will cost, before it is paid for.

For an image whose class has probability :math:`p` under noise, a procedure takes a random number
of votes. `forecast` plays it many times with votes drawn from :math:`p` (``simulation``), by the
same tables that a run reads.
"""

__all__ = ["USUAL", "Forecast", "forecast"]

from dataclasses import dataclass

import numpy as np

from deepzero_apps.smoothing.bounds import Settings, radius, round_down
from deepzero_apps.smoothing.rules import rule_of
from deepzero_apps.smoothing.simulation import simulate

USUAL = (
    0.401, 0.465, 0.525, 0.569, 0.603, 0.647, 0.682, 0.710, 0.737, 0.761,
    0.781, 0.801, 0.821, 0.844, 0.856, 0.872, 0.891, 0.906, 0.920, 0.945,
)  # fmt: skip
"""Probabilities of twenty typical images, for whoever has measured none: quantiles over 500 test
images of digits, an SVC behind an ``mse`` denoiser at sigma .5, 10,000 votes each."""


@dataclass(frozen=True)
class Forecast:
    """What is to be expected for images of given probabilities.

    Attributes:
        p: The probabilities, of shape ``(m,)``.
        radius: The radii at which the smoothed class changes, in the images' units, ``(m,)``.
        queries: Mean queries, selection votes included, ``(m,)``.
        certified: How often each radius is certified, ``(m, radii)``.
    """

    p: np.ndarray
    radius: np.ndarray
    queries: np.ndarray
    certified: np.ndarray


def forecast(
    settings: Settings,
    p: np.ndarray,
    *,
    radii: tuple[float, ...],
    runs: int = 1_000,
    generator: np.random.Generator,
) -> Forecast:
    """Plays a procedure for images of given probabilities.

    Args:
        settings: The settings.
        p: Probabilities of the class, in [0, 1], of shape ``(m,)``, m at least 1.
        radii: The radii asked about, at least 0.
        runs: How often each image is played, at least 1.
        generator: The source of the votes.

    Returns:
        The forecast. The other votes are taken to be scattered, so that they select no class.

    Raises:
        ValueError: If a probability or ``runs`` is out of range, or a radius is out of reach.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p must be a vector of probabilities in [0, 1], got {p}")
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    rule = rule_of(settings)
    found = simulate(rule, np.repeat(p, runs)[:, None], generator=generator)
    reached = np.array(
        [
            round_down(radius(bound, settings.sigma)) if bound > 0.5 else -1
            for bound in found.p_lower
        ]
    )
    hits = reached.reshape(len(p), runs, 1) >= np.array(radii, dtype=np.float64)
    return Forecast(
        p=p,
        radius=np.array([radius(share, settings.sigma) for share in p]),
        queries=settings.n0 + found.drawn.reshape(len(p), runs).mean(1),
        certified=hits.mean(1),
    )
