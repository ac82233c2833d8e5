"""Scores of a rollout: each number against the metric it is named after, blow-ups included."""

import math

import numpy as np
import pytest

from deepzero_apps.correction.evaluation import evaluate
from deepzero_apps.correction.metrics import correlation, correlation_time, mae, relative_l2
from deepzero_apps.correction.simulator import Array
from deepzero_apps.correction.spectra import spectrum_error

TIMES = np.arange(1.0, 6.0)


def waves(shift: float = 0.0) -> Array:
    """Two simulations, five frames, two channels, of a wave on 4 x 16 cells."""
    x = 2 * np.pi * np.arange(16) / 16
    wave = np.sin(x - 2 * np.pi * TIMES[:, None] / 5 - shift * TIMES[:, None])
    channels = np.stack((wave, 0.5 * wave), axis=1)[:, :, None, :]
    return np.stack((channels, 2 * channels)) * np.ones((4, 1))


def vorticity(fields: Array) -> Array:
    assert fields.shape[1:] == (2, 4, 16)
    return np.roll(fields[:, 1], -1, axis=-1) - fields[:, 1]


def divergence(fields: Array) -> Array:
    return np.roll(fields[:, 0], -1, axis=-1) - fields[:, 0]


def test_scores_are_means_over_simulations() -> None:
    p, r = waves(0.2), waves()

    scores = evaluate(p, r, times=TIMES, periodic=True, divergence=divergence)

    np.testing.assert_array_equal(scores.mae, mae(p, r).mean(0))
    np.testing.assert_array_equal(scores.relative_l2, relative_l2(p, r).mean(0))
    # the wave is .2 t out of phase, and its mean over the five frames is zero
    np.testing.assert_allclose(scores.correlation, np.cos(0.2 * TIMES), rtol=0, atol=1e-14)
    expected = correlation_time(correlation(p, r), TIMES).mean()
    assert scores.correlation_time == expected
    assert 3 < expected < 4
    assert scores.spectrum_error == spectrum_error(p, r, periodic=True).mean()
    slopes = np.abs(divergence(p.reshape(-1, 2, 4, 16)))
    assert scores.divergence == pytest.approx(slopes.mean())
    assert scores.blow_ups == 0


def test_the_observed_quantity_is_correlated() -> None:
    p = waves()
    p[:, :, 0] *= -1

    plain = evaluate(p, waves(), times=TIMES, periodic=True)
    observed = evaluate(p, waves(), times=TIMES, periodic=True, observe=vorticity)

    # channels of amplitudes -1 and .5 against 1 and .5: (.25 - 1) / (.25 + 1)
    np.testing.assert_allclose(plain.correlation, -0.6, rtol=1e-13)
    np.testing.assert_allclose(observed.correlation, 1, rtol=1e-13)
    assert plain.divergence is None


def test_a_blow_up_is_counted_and_costs_four_times_the_amplitude() -> None:
    p, r = waves(), waves()
    p[1, 2] = math.nan
    p[1, 4] = r[1, 4]

    scores = evaluate(p, r, times=TIMES, periodic=True, divergence=divergence)

    amplitudes = np.abs(r[1]).reshape(5, -1).mean(-1)
    np.testing.assert_allclose(scores.mae, [0, 0, *(4 * amplitudes[2:] / 2)], rtol=1e-14)
    np.testing.assert_allclose(scores.relative_l2, [0, 0, 2, 2, 2], rtol=1e-14)
    np.testing.assert_allclose(scores.correlation, [1, 1, 0.5, 0.5, 0.5], rtol=1e-14)
    # one never falls below .8; the other falls from 1 at time 2 to 0 at time 3
    assert scores.correlation_time == pytest.approx((5 + 2.2) / 2)
    assert scores.blow_ups == 1
    alive = np.concatenate((r[0], r[1, :2]))
    assert scores.divergence == pytest.approx(np.abs(divergence(alive)).mean())


def test_the_divergence_of_nothing_is_nan() -> None:
    scores = evaluate(
        waves() * math.nan, waves(), times=TIMES, periodic=True, divergence=divergence
    )

    assert scores.divergence is not None
    assert math.isnan(scores.divergence)
    assert scores.blow_ups == 2
    np.testing.assert_allclose(scores.relative_l2, 4, rtol=1e-14)
    # -3 r has nine times the energy in every bin with any
    assert scores.spectrum_error == pytest.approx(math.log10(9) / 8, abs=1e-6)
    assert scores.correlation_time == pytest.approx(0.2)


def test_a_rollout_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="predicted must be of shape"):
        evaluate(waves()[:1], waves(), times=TIMES, periodic=True)
    with pytest.raises(ValueError, match=r"with \(4,\) times"):
        evaluate(waves(), waves(), times=TIMES[1:], periodic=True)
