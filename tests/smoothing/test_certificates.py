"""Summaries of certificates against numbers made by hand and the binomial distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from deepzero_apps.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    average_certified_radius,
    bootstrap_interval,
    certified_accuracy,
    correct_radii,
    difference,
    population_bound,
)
from tests.smoothing.certificate_examples import SETTINGS, certificate

FIVE = [
    certificate(0, label=1, predicted=1, radius=0.5),
    certificate(1, label=1, predicted=2, radius=0.9),
    certificate(2, label=1, predicted=ABSTAIN, radius=0.0),
    certificate(3, label=1, predicted=1, radius=0.0),
    certificate(4, label=1, predicted=1, radius=0.25),
]


@pytest.mark.parametrize(
    ("changes", "classifier", "unequal"),
    [
        ({}, "bb", None),
        ({"alpha": 0.01}, "bb", ("alpha", 0.01, 0.001)),
        ({"seed": 3, "noise": "grid"}, "cc", ("seed", 3, 0)),
        ({}, "cc", ("classifier", "cc", "bb")),
    ],
)
def test_runs_differ_in_the_first_setting_that_is_unequal_or_in_the_classifier(
    changes: dict[str, object], classifier: str, unequal: tuple[str, object, object] | None
) -> None:
    found = replace(SETTINGS, **changes), classifier  # type: ignore[arg-type]

    assert difference(found, (SETTINGS, "bb")) == unequal


def test_certified_accuracy_counts_what_is_right_at_the_radius_and_beyond() -> None:
    shares = certified_accuracy(FIVE, [0, 0.25, 0.2501, 0.5, 0.75])

    assert shares == (0.6, 0.4, 0.2, 0.2, 0.0)


def test_average_certified_radius_is_zero_where_wrong_or_abstained() -> None:
    assert average_certified_radius(FIVE) == pytest.approx(0.75 / 5)
    assert average_certified_radius(FIVE[1:3]) == 0


def test_correct_radii_tell_a_right_class_without_radius_from_a_wrong_one() -> None:
    assert correct_radii(FIVE).tolist() == [0.5, -math.inf, -math.inf, 0.0, 0.25]


def test_bootstrap_of_zeros_and_ones_has_the_binomial_s_quantiles() -> None:
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap_interval(values, resamples=20_000)

    # A resampled count is binomial (100, .3). The quantile at .025 of 20,000 draws has a
    # standard error of sqrt(.025 * .975 / 20000) = .0011 in probability, under half a count.
    assert low == pytest.approx(binom.ppf(0.025, 100, 0.3) / 100, abs=0.0101)
    assert high == pytest.approx(binom.ppf(0.975, 100, 0.3) / 100, abs=0.0101)


def test_bootstrap_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(50)
    again = [bootstrap_interval(values, generator=np.random.default_rng(7)) for _ in range(2)]

    assert again[0] == again[1] != bootstrap_interval(values)
    assert again[0][0] < values.mean() < again[0][1]


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(50)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))

    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("hits", "m"), [(1, 1), (3, 5), (190, 200), (200, 200)])
def test_the_population_bound_is_where_so_many_hits_have_probability_delta_less_alpha(
    hits: int, m: int
) -> None:
    right = [certificate(i, radius=0.25, alpha=0.01) for i in range(hits)]
    wrong = [certificate(i, label=2, radius=0.9, alpha=0.001) for i in range(hits, m)]

    bound = population_bound([*right, *wrong], 0.25, delta=0.1)

    # brentq's tolerance is 1e-12 in q; alpha is the largest one
    q = brentq(lambda q: binom.sf(hits - 1, m, q) - 0.1, 1e-9, 1 - 1e-9, xtol=1e-12)
    assert bound == pytest.approx(max(0.0, q - 0.01), abs=1e-9)


def test_the_population_bound_is_too_high_as_seldom_as_stated() -> None:
    # An image is truly robust with probability .7; of the others alpha have a false certificate.
    share, alpha, delta, m = 0.7, 0.05, 0.1, 60
    reported = share + (1 - share) * alpha
    bounds = [
        population_bound(
            [certificate(i, label=1 if i < hits else 2, alpha=alpha) for i in range(m)],
            0.1,
            delta=delta,
        )
        for hits in range(m + 1)
    ]

    too_high = binom.pmf(np.arange(m + 1), m, reported)[np.array(bounds) > share].sum()

    assert 0 < too_high <= delta


def test_the_population_bound_of_no_hit_is_zero() -> None:
    assert population_bound(FIVE, 0.6) == 0
    assert population_bound(FIVE[1:3], 0.0) == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_impossible_confidences_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\), got"):
        population_bound(FIVE, 0.25, delta=delta)


@pytest.mark.parametrize("summary", [correct_radii, average_certified_radius])
def test_no_certificate_is_refused(summary: object) -> None:
    with pytest.raises(ValueError, match="at least one certificate, got none"):
        summary([])  # type: ignore[operator]


@pytest.mark.parametrize("r", [-0.1, math.nan])
def test_impossible_radii_are_refused(r: float) -> None:
    with pytest.raises(ValueError, match="radii must be at least 0, got"):
        certified_accuracy(FIVE, [r])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"vector of finite numbers, got shape \(0,\)"),
        ([[1.0]], {}, r"got shape \(1, 1\)"),
        ([-math.inf], {}, "clip minus infinity"),
        ([1.0], {"level": 1.0}, r"level must be in \(0, 1\), got 1.0"),
        ([1.0], {"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_bad_bootstraps_are_refused(
    values: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)  # type: ignore[arg-type]


def test_a_certificate_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        FIVE[0].radius = 1.0  # type: ignore[misc]
    assert isinstance(FIVE[0], Certificate)
