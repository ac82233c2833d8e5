"""The confidence sequence against integrals, exact expectations and its own inversion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom

from deepzero_apps.smoothing.bounds import lower_bound
from deepzero_apps.smoothing.sequences import (
    least_votes,
    log_evidence,
    lower_bound_anytime,
    lower_bounds_anytime,
)

counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
many = st.integers(1, 1_000_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
alphas = st.floats(1e-6, 0.4)
thresholds = st.floats(0.05, 0.98)


@given(counts, thresholds)
def test_evidence_is_the_mean_likelihood_ratio_over_what_lies_above(
    counted: tuple[int, int], p0: float
) -> None:
    k, n = counted

    def ratio(q: float) -> float:
        return math.exp(k * math.log(q / p0) + (n - k) * math.log((1 - q) / (1 - p0)))

    peak = min(max(k / n, p0), 1)
    mean = quad(ratio, p0, 1, points=[peak], epsrel=1e-10, epsabs=0, limit=200)[0] / (1 - p0)

    assert math.exp(log_evidence(k, n, p0)) == pytest.approx(mean, rel=1e-7)


@pytest.mark.parametrize("n", [1, 7, 300])
@pytest.mark.parametrize("p0", [0.3, 0.5, 0.84, 0.99])
def test_evidence_has_mean_one_at_the_threshold_and_less_below(n: int, p0: float) -> None:
    k = np.arange(n + 1)
    evidence = np.exp(log_evidence(k, n, p0))

    # 301 terms, each with a relative error of some 1e-13 (the logarithms are of size 1e3)
    assert binom.pmf(k, n, p0) @ evidence == pytest.approx(1, rel=1e-10)
    below = [binom.pmf(k, n, p) @ evidence for p in (0.9 * p0, 0.99 * p0)]
    assert below[0] < below[1] < 1


@given(many, st.floats(0.01, 0.97))
def test_evidence_falls_with_the_threshold_and_grows_with_the_votes(
    counted: tuple[int, int], p0: float
) -> None:
    k, n = counted
    # Below 1 the tail may be next to the smallest float, and inexact; above, terms of at most 1e7
    # round to 1e-9.
    here, rounding = max(log_evidence(k, n, p0), 0), 1e-8
    assert log_evidence(k, n, p0 + 0.01) <= here + rounding
    if k < n:
        assert here <= max(log_evidence(k + 1, n, p0), 0) + rounding


@given(many, alphas)
def test_the_bound_is_where_the_evidence_is_one_over_alpha(
    counted: tuple[int, int], alpha: float
) -> None:
    k, n = counted
    bound = lower_bound_anytime(k, n, alpha)

    assert 0 <= bound <= k / n
    if bound > 0:
        wanted = -math.log(alpha)
        # 1e-12 of p0 on either side moves the logarithm by 1e-6 at most for a million votes,
        # and rounding of numbers of size 1e7 moves it by 1e-8
        assert log_evidence(k, n, bound * (1 - 1e-12)) >= wanted - 1e-7
        assert log_evidence(k, n, min(bound * (1 + 1e-12), 1 - 1e-16)) <= wanted + 1e-5


@pytest.mark.parametrize("n", [20, 1_000, 100_000])
def test_with_all_votes_the_evidence_is_a_geometric_sum(n: int) -> None:
    # eq. (1) at k = n: (1 - p^(n + 1)) / ((n + 1) (1 - p) p^n), here at the bound
    p = lower_bound_anytime(n, n, 0.001)

    evidence = -math.expm1((n + 1) * math.log(p)) / ((n + 1) * (1 - p) * p**n)
    assert evidence == pytest.approx(1_000, rel=1e-6)


@given(many, alphas)
def test_looking_always_costs_something_against_looking_once(
    counted: tuple[int, int], alpha: float
) -> None:
    # Were it more than Clopper and Pearson's at one n, it would err more often than alpha there.
    k, n = counted
    assert lower_bound_anytime(k, n, alpha) <= lower_bound(k, n, alpha) * (1 + 1e-9)


def test_many_bounds_are_the_single_ones() -> None:
    votes, n = np.array([[0, 3], [90, 1_000]]), np.array([[0, 7], [100, 1_000]])

    bounds = lower_bounds_anytime(votes, n, 0.01)

    single = [
        lower_bound_anytime(int(k), int(m), 0.01) for k, m in zip(votes.flat, n.flat, strict=True)
    ]
    assert bounds.shape == (2, 2)
    assert bounds.ravel().tolist() == single
    assert single[0] == 0


@pytest.mark.parametrize("p0", [0.5, 0.8413, 0.999])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_least_votes_are_the_first_whose_bound_reaches(p0: float, alpha: float) -> None:
    n = np.array([0, 1, 15, 200, 3_001])

    for total, least in zip(n.tolist(), least_votes(n, p0, alpha).tolist(), strict=True):
        bounds = lower_bounds_anytime(np.arange(total + 1), total, alpha)
        assert least == np.searchsorted(bounds, p0)


@pytest.mark.parametrize(
    ("votes", "n", "alpha", "message"),
    [
        (11, 10, 0.1, "votes must be in 0 ... n, got 11 of 10"),
        (-1, 10, 0.1, "got -1 of 10"),
        (math.nan, 10, 0.1, "got nan of 10"),
        (0, -1, 0.1, "got 0 of -1"),
        (1, 10, 0.0, r"alpha must be in \(0, 1\), got 0.0"),
        (1, 10, math.nan, r"alpha must be in \(0, 1\), got nan"),
    ],
)
def test_impossible_counts_are_refused(votes: int, n: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_bound_anytime(votes, n, alpha)


@pytest.mark.parametrize(
    ("n", "p0", "alpha", "message"),
    [
        (10, 1.0, 0.1, r"p0 must be in \(0, 1\), got 1.0"),
        (10, math.nan, 0.1, "p0 must be .* got nan"),
        (-1, 0.5, 0.1, "n must be at least 0, got -1"),
        (10, 0.5, 1.0, "alpha must be .* got 1.0"),
    ],
)
def test_impossible_thresholds_are_refused(n: int, p0: float, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        least_votes(n, p0, alpha)
