"""Metrics of rollouts whose errors are known in closed form."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr

from deepzero_apps.correction.metrics import (
    correlation,
    correlation_time,
    first_blow_up,
    interval,
    mae,
    penalized,
    relative_l2,
)
from deepzero_apps.correction.simulator import Array

FRAMES = 8


def reference(simulations: int = 2) -> Array:
    """Waves that travel one period, over a mean flow that varies in space."""
    x = 2 * np.pi * np.arange(16) / 16
    phase = 2 * np.pi * np.arange(FRAMES) / FRAMES
    flow = 1 + 0.3 * np.cos(x)
    waves = flow + np.sin(x - phase[:, None])
    return np.stack([waves * (1 + i) for i in range(simulations)])[:, :, None]


def test_mae_is_the_mean_magnitude_of_each_frame() -> None:
    offsets = np.arange(FRAMES) - 3.0
    alternating = np.resize([1.0, -1.0], 16)

    error = mae(reference() + offsets[:, None, None] * alternating, reference())

    # differences of numbers of size up to 7 are exact to 7 * 2^-53
    np.testing.assert_allclose(error, [np.abs(offsets)] * 2, rtol=0, atol=2e-15)


def test_mae_weighs_channels_alike() -> None:
    r = np.zeros((1, 1, 2, 4, 8))
    p = r.copy()
    p[:, :, 0] = 3

    assert mae(p, r).item() == 1.5


def test_relative_l2_is_the_share_of_the_norm() -> None:
    shares = np.linspace(0, 2, FRAMES)
    r = reference()
    # an error of the reference's own norm, in another direction
    turned = np.roll(r, 5, axis=-1)

    error = relative_l2(r + shares[:, None, None] * turned, r)

    np.testing.assert_allclose(error, [shares] * 2, rtol=1e-14, atol=1e-15)
    assert (relative_l2(0 * r, r) == 1).all()


def test_correlation_is_the_cosine_of_the_phase_error() -> None:
    # fluctuations sin(x - t) and sin(x - t - a) about the same flow have correlation cos a
    a = np.linspace(0, np.pi, FRAMES)
    x = 2 * np.pi * np.arange(16) / 16
    waves = np.sin(x - 2 * np.pi * np.arange(FRAMES)[:, None] / FRAMES - a[:, None])
    p = 1 + 0.3 * np.cos(x) + 0.7 * waves
    p = np.stack((p, 2 * p))[:, :, None]

    np.testing.assert_allclose(correlation(p, reference()), [np.cos(a)] * 2, rtol=0, atol=1e-14)


def test_correlation_is_pearsons_where_fluctuations_have_no_spatial_mean() -> None:
    r = reference(1)
    values = np.random.default_rng(0).normal(size=r.shape)
    p = r + values - values.mean(-1, keepdims=True)
    m = r.mean(1)[0, 0]

    found = correlation(p, r)[0]

    expected = [pearsonr(p[0, k, 0] - m, r[0, k, 0] - m).statistic for k in range(FRAMES)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_steady_prediction_has_no_correlation_and_an_exact_one_has_all() -> None:
    r = reference()
    steady = np.broadcast_to(r.mean(1, keepdims=True), r.shape)

    assert (correlation(steady, r) == 0).all()
    np.testing.assert_allclose(correlation(r, r), 1, rtol=1e-15)
    assert (correlation(steady, steady) == 1).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # from 1 at time 0 to .6 at time 2: .8 halfway
        ([0.6, 0.9, 0.9], 1.0),
        # from .9 at time 2 to .5 at time 3: a quarter of the way
        ([0.9, 0.5, 0.95], 2.25),
        ([0.8, 0.8, 0.8], 5.0),
        ([1.0, 0.9, -0.1], 3.2),
    ],
)
def test_correlation_time_is_interpolated(values: list[float], expected: float) -> None:
    found = correlation_time(np.array([values]), np.array([2.0, 3.0, 5.0]))

    assert found.tolist() == [pytest.approx(expected, rel=1e-14)]


def test_correlation_time_may_start_at_the_start() -> None:
    values = np.array([[1.0, 0.6], [0.5, 0.9]])

    found = correlation_time(values, np.array([0.0, 1.0]))

    np.testing.assert_allclose(found, [0.5, 0], rtol=1e-14)


def test_a_rollout_blows_up_at_three_times_the_amplitude_or_nan() -> None:
    r = np.concatenate([reference(1)] * 4)
    p = 2.999 * r
    p[1, 5] = 3.001 * r[1, 5]
    p[2, 2, 0, 7] = math.nan
    p[3, 0] = 1e300

    first = first_blow_up(p, r)

    assert first.tolist() == [FRAMES, 5, 2, 0]
    assert first_blow_up(p, r, amplitude=2.5).tolist() == [0, 0, 0, 0]


def test_what_follows_a_blow_up_counts_as_minus_three_times_the_reference() -> None:
    r = reference(1)
    p = r + 0.1
    p[0, 3] = math.inf
    settled = penalized(p, r)

    assert np.array_equal(settled[:, :3], p[:, :3])
    assert np.array_equal(settled[:, 3:], -3 * r[:, 3:])
    np.testing.assert_allclose(relative_l2(settled, r)[:, 3:], 4, rtol=1e-14)
    np.testing.assert_allclose(
        mae(settled, r)[0, 3:], 4 * np.abs(r[0, 3:, 0]).mean(-1), rtol=1e-14
    )
    assert math.isinf(p[0, 3, 0, 0])


def test_blowing_up_never_pays() -> None:
    r = reference()
    p = np.random.default_rng(0).normal(size=r.shape) * np.linspace(1, 8, FRAMES)[:, None, None]
    alive = np.arange(FRAMES) < first_blow_up(p, r)[:, None]

    assert alive.any()
    assert not alive.all()
    assert relative_l2(penalized(p, r), r).max() <= 4 + 1e-14


def test_the_interval_is_students() -> None:
    # 95 % quantile of t with 4 degrees of freedom: 2.776445 (any table); s = sqrt(2.5), n = 5
    mean, half_width = interval([1, 2, 3, 4, 5])

    assert mean == 3
    assert half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    # 1 degree of freedom is Cauchy: tan(pi (level / 2)) s / sqrt 2, s = sqrt 2
    assert interval([0, 2], level=0.5).half_width == pytest.approx(math.tan(math.pi / 4))
    assert interval([7.0]) == (7.0, math.inf)


@pytest.mark.parametrize("metric", [mae, relative_l2, correlation])
def test_what_cannot_be_compared_is_refused(metric) -> None:  # noqa: ANN001
    r = reference()
    with pytest.raises(ValueError, match=r"reference's shape \(2, 8, 1, 16\), got \(1, 8"):
        metric(r[:1], r)
    with pytest.raises(ValueError, match=r"finite, got NaN or infinity; see .*penalized"):
        metric(r * math.nan, r)
    with pytest.raises(ValueError, match=r"\(simulations, frames, channels, \*grid\), got \(8,"):
        metric(r[0], r[0])
    with pytest.raises(ValueError, match=r"got \(0, 8, 1, 16\)"):
        metric(r[:0], r[:0])


def test_limits_are_refused_by_name() -> None:
    r = reference()
    with pytest.raises(ValueError, match="reference must not be zero in a whole frame"):
        relative_l2(r, 0 * r)
    with pytest.raises(ValueError, match="at least two frames"):
        correlation(r[:, :1], r[:, :1])
    with pytest.raises(ValueError, match="amplitude must be above 1 and finite, got 1"):
        first_blow_up(r, r, amplitude=1)
    with pytest.raises(ValueError, match=r"predicted must be of shape \(2, 8, 1, 16\)"):
        first_blow_up(r[:1], r)
    with pytest.raises(ValueError, match="fields must be finite"):
        first_blow_up(r, r * math.nan)


def test_times_and_thresholds_are_refused_by_name() -> None:
    values = np.ones((1, 2))
    with pytest.raises(ValueError, match="times must increase"):
        correlation_time(values, np.array([2.0, 1.0]))
    with pytest.raises(ValueError, match="times must increase"):
        correlation_time(values, np.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match=r"got \(1, 2\) with \(3,\) times and 0 NaN"):
        correlation_time(values, np.arange(3))
    with pytest.raises(ValueError, match="and 2 NaN"):
        correlation_time(values * math.nan, np.arange(2))
    with pytest.raises(ValueError, match="threshold must be below 1, got 1"):
        correlation_time(values, np.arange(2), threshold=1)


@pytest.mark.parametrize("values", [[], [math.nan, 1], [[1.0, 2.0]]])
def test_an_interval_of_nothing_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be a list of at least one number"):
        interval(values)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        interval([1, 2], level=95)
