"""The arithmetic of certificates against closed forms and scipy's exact interval."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from deepzero_apps.smoothing.bounds import (
    Settings,
    lower_bound,
    radius,
    round_down,
)
from deepzero_apps.smoothing.procedures import largest_radius

votes = st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
alphas = st.floats(1e-6, 0.4)


@given(votes, alphas)
def test_lower_bound_is_scipy_s_exact_interval_at_doubled_alpha(
    counted: tuple[int, int], alpha: float
) -> None:
    count, n = counted
    interval = binomtest(count, n).proportion_ci(1 - 2 * alpha, method="exact")

    # 1 - 2 alpha is rounded to 1e-16, relative to alpha >= 1e-6 an error of 1e-10
    assert lower_bound(count, n, alpha) == pytest.approx(interval.low, rel=1e-8, abs=1e-12)


@given(st.integers(1, 100_000), alphas)
def test_all_votes_give_alpha_to_the_one_over_n(n: int, alpha: float) -> None:
    assert lower_bound(n, n, alpha) == pytest.approx(alpha ** (1 / n), rel=1e-9)
    assert lower_bound(0, n, alpha) == 0


@given(votes, alphas)
def test_lower_bound_rises_with_the_count_and_stays_below_the_share(
    counted: tuple[int, int], alpha: float
) -> None:
    count, n = counted
    bound = lower_bound(count, n, alpha)

    assert bound <= count / n
    if count < n:
        assert bound < lower_bound(count + 1, n, alpha)


@given(votes, alphas, st.floats(0.01, 4))
def test_a_stored_radius_is_sound(counted: tuple[int, int], alpha: float, sigma: float) -> None:
    # Were the probability only what the radius needs, so many votes had probability <= alpha.
    count, n = counted
    stored = round_down(radius(lower_bound(count, n, alpha), sigma))

    p = NormalDist().cdf(stored / sigma)
    # 1e-9: rounding of p to 1e-16 moves a tail of at most 100,000 votes by less
    assert stored == 0 or binom.sf(count - 1, n, p) <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(("p", "deviations"), [(0.8413447460685429, 1.0), (0.975, 1.959963985)])
def test_radius_is_sigma_times_the_normal_quantile(p: float, deviations: float) -> None:
    assert radius(p, 0.25) == pytest.approx(0.25 * deviations, rel=1e-9)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.4999, 0.5])
def test_nothing_is_certified_at_a_half_and_below(p: float) -> None:
    assert radius(p, 1.0) == 0


@given(st.floats(0, 10))
def test_the_stored_decimal_is_never_above_and_at_most_a_step_below(value: float) -> None:
    stored = round_down(value)

    assert stored <= value
    assert float(f"{stored:.4f}") == stored
    # a step and the allowance of 1e-9 of the value, and no more
    assert value - stored <= 1e-4 + 2e-9 * value


# Published for alpha = .001, to two decimals.
@pytest.mark.parametrize(
    ("n", "published"), [(100, 1.50), (1_000, 2.46), (10_000, 3.20), (100_000, 3.81)]
)
def test_largest_radius_is_the_published_one(n: int, published: float) -> None:
    assert largest_radius(Settings(sigma=1.0, n=n)) == pytest.approx(published, abs=0.005)
    assert largest_radius(Settings(sigma=0.5, n=n)) == pytest.approx(published / 2, abs=0.005)


@given(alphas)
def test_the_smallest_n_that_works_is_the_one_named(alpha: float) -> None:
    enough = math.ceil(math.log(alpha) / math.log(NormalDist().cdf(0.01)))

    assert largest_radius(Settings(sigma=1.0, n=enough, alpha=alpha)) >= 0.0099
    if enough > 1:
        with pytest.raises(ValueError, match=rf"n must be at least {enough} at alpha"):
            Settings(sigma=1.0, n=enough - 1, alpha=alpha)


def test_settings_that_cannot_certify_say_what_can() -> None:
    with pytest.raises(
        ValueError,
        match=r"at least 11 at alpha 0.001, got 10: .* 0.0030 sigma; n = 11 .* radius of 0.0422",
    ):
        Settings(sigma=0.5, n=10, alpha=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be finite and at least 0.001.*got 0.0"),
        ({"sigma": -0.5}, "sigma must be .* got -0.5"),
        ({"sigma": math.nan}, "sigma must be .* got nan"),
        ({"sigma": math.inf}, "sigma must be .* got inf"),
        ({"n0": 0}, "n0 must be at least 1, got 0"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 0.5\), got 0.0"),
        ({"alpha": 0.5}, r"alpha must be in \(0, 0.5\), got 0.5"),
        ({"alpha": math.nan}, r"alpha must be in \(0, 0.5\), got nan"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**{"sigma": 0.5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"n": 1e4}, {"n0": True}, {"seed": "0"}])
def test_counts_that_are_no_int_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="must be an int, got"):
        Settings(sigma=0.5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "n", "alpha", "message"),
    [
        (11, 10, 0.1, "count must be in 0 ... n with n at least 1, got 11 of 10"),
        (-1, 10, 0.1, "got -1 of 10"),
        (0, 0, 0.1, "got 0 of 0"),
        (1, 10, 1.0, r"alpha must be in \(0, 1\), got 1.0"),
    ],
)
def test_impossible_counts_are_refused(count: int, n: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_bound(count, n, alpha)


@pytest.mark.parametrize(
    ("p", "sigma", "message"),
    [
        (1.5, 1.0, r"p_lower must be in \[0, 1\], got 1.5"),
        (math.nan, 1.0, "p_lower must be .* got nan"),
        (0.9, 0.0, "sigma must be positive, got 0.0"),
    ],
)
def test_impossible_radii_are_refused(p: float, sigma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        radius(p, sigma)


def test_a_step_reached_by_no_more_than_errors_of_arithmetic_is_not_reached() -> None:
    assert round_down(0.1234 * (1 + 1e-12)) == 0.1233
    assert round_down(0.1234 * (1 + 1e-8)) == 0.1234
