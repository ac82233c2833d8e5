"""Forecasts against binomial sums."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from deepzero_apps.smoothing.bounds import Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.planning import Forecast, forecast
from deepzero_apps.smoothing.rules import Adaptive


def played(
    settings: Settings, p: list[float], radii: tuple[float, ...], runs: int = 4_000
) -> Forecast:
    generator = np.random.default_rng(0)
    return forecast(settings, np.array(p), radii=radii, runs=runs, generator=generator)


def test_a_fixed_procedure_certifies_as_often_as_the_binomial_says() -> None:
    settings, radii = Settings(sigma=0.5, n0=50, n=500), (0.25, 0.5)

    found = played(settings, [0.7, 0.75, 0.9], radii)

    assert found.queries.tolist() == [550.0] * 3
    bounds = np.array([lower_bound(k, 500, 0.001) for k in range(501)])
    reached = np.array([round_down(radius(b, 0.5)) if b > 0.5 else -1 for b in bounds])
    for p, row in zip(found.p, found.certified, strict=True):
        for r, share in zip(radii, row, strict=True):
            exact = binom.pmf(np.arange(501), 500, p)[reached >= r].sum()
            assert abs(share - exact) <= 5 * (exact * (1 - exact) / 4_000) ** 0.5 + 1e-12


def test_the_queries_of_an_adaptive_procedure_follow_from_the_selection_votes() -> None:
    settings = Settings(sigma=0.5, n0=50, n=2_000, procedure="adaptive", radii=(0.25,))
    rule = Adaptive(settings)
    sizes = np.array([rule.size(k) for k in range(51)])

    found = played(settings, [0.6, 0.8], (0.25,))

    for p, queries in zip(found.p, found.queries, strict=True):
        weights = binom.pmf(np.arange(51), 50, p)
        mean = 50 + weights @ sizes
        deviation = (weights @ sizes**2 - (mean - 50) ** 2) ** 0.5
        assert abs(queries - mean) < 5 * deviation / 4_000**0.5 + 1e-9


def test_true_radii_are_those_of_the_probabilities() -> None:
    found = played(Settings(sigma=0.5), [0.3, 0.5, norm.cdf(1.0)], (), runs=1)

    assert found.radius == pytest.approx([0, 0, 0.5])


@pytest.mark.parametrize(
    ("p", "runs", "message"),
    [
        ([], 1, "p must be a vector of probabilities"),
        ([[0.5]], 1, "p must be a vector"),
        ([1.1], 1, r"in \[0, 1\], got \[1.1\]"),
        ([float("nan")], 1, r"in \[0, 1\], got \[nan\]"),
        ([0.5], 0, "runs must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(p: list[float], runs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        played(Settings(sigma=0.5), p, (0.5,), runs)
