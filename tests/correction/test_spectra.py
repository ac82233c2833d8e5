"""Spectra of single waves, and Parseval's identity."""

import math

import numpy as np
import pytest

from deepzero_apps.correction.spectra import energy_spectrum, spectrum_error

GRIDS = [(16,), (15,), (8, 16), (12, 12), (4, 6, 8)]


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_bins_sum_to_the_mean_kinetic_energy(grid: tuple[int, ...], periodic: bool) -> None:
    fields = np.random.default_rng(0).normal(size=(2, 3, 2, *grid)) + 1

    spectrum = energy_spectrum(fields, periodic=periodic)

    energy = (fields**2).sum(2).reshape(2, 3, -1).mean(-1) / 2
    # a transform of n numbers is accurate to about log2(n) * 2^-53
    np.testing.assert_allclose(spectrum.sum(-1), energy, rtol=1e-14)


@pytest.mark.parametrize("k", range(1, 8))
def test_a_sine_of_k_waves_is_in_bin_k(k: int) -> None:
    x = 2 * np.pi * (np.arange(16) + 0.5) / 16
    along = np.broadcast_to(3 * np.sin(k * x), (8, 16)).reshape(1, 1, 1, 8, 16)

    spectrum = energy_spectrum(along, periodic=True)[0, 0]

    # the mean of (3 sin)^2 / 2
    assert spectrum[k] == pytest.approx(9 / 4)
    assert spectrum.sum() - spectrum[k] < 1e-14


def test_waves_across_a_narrow_grid_are_counted_by_their_length() -> None:
    # two waves over 8 cells are as short as four over 16
    y = 2 * np.pi * np.arange(8) / 8
    across = np.broadcast_to(np.cos(2 * y)[:, None], (8, 16)).reshape(1, 1, 1, 8, 16)

    assert energy_spectrum(across, periodic=True)[0, 0].argmax() == 4
    # (3, 4) waves of a square grid have the wave number 5
    x = 2 * np.pi * np.arange(16) / 16
    oblique = np.cos(3 * x[:, None] + 4 * x).reshape(1, 1, 1, 16, 16)
    assert energy_spectrum(oblique, periodic=True)[0, 0, 5] == pytest.approx(1 / 4)


def test_cosines_count_half_waves_and_see_no_jump() -> None:
    x = (np.arange(16) + 0.5) / 16
    three_waves = np.cos(2 * np.pi * 3 * x).reshape(1, 1, 1, 16)
    ramp = x.reshape(1, 1, 1, 16)

    assert energy_spectrum(three_waves, periodic=False)[0, 0, 3] == pytest.approx(1 / 4)
    half_a_wave = np.cos(np.pi * x).reshape(1, 1, 1, 16)
    assert energy_spectrum(half_a_wave, periodic=False)[0, 0, 1] == pytest.approx(1 / 4)
    jump, smooth = (energy_spectrum(ramp, periodic=p)[0, 0] for p in (True, False))
    # spectra of a ramp fall as k^-2 with the jump and as k^-4 without it
    assert smooth[6] / smooth[1] < 0.02 * jump[6] / jump[1]


def test_the_error_is_in_decades() -> None:
    r = np.random.default_rng(0).normal(size=(2, 5, 2, 8, 16))
    p = r * np.sqrt([10, 1e-2]).reshape(2, 1, 1, 1, 1)

    # the floor of 1e-12 of the total moves a bin of a share above 1e-3 by less than 1e-7 decades
    np.testing.assert_allclose(spectrum_error(p, r, periodic=True), [1, 2], rtol=0, atol=1e-7)
    assert (spectrum_error(r, r, periodic=True) == 0).all()


def test_the_error_compares_means_over_time_and_not_phases() -> None:
    r = np.random.default_rng(0).normal(size=(1, 6, 1, 16))

    p = np.roll(r[:, ::-1], 3, axis=-1)

    np.testing.assert_allclose(spectrum_error(p, r, periodic=True), 0, atol=1e-12)


def test_the_mean_flow_and_the_corners_do_not_count() -> None:
    r = np.random.default_rng(0).normal(size=(1, 2, 1, 8, 8))
    checkers = np.indices((8, 8)).sum(0) % 2 * 2.0 - 1

    # wave numbers 0 and 4 sqrt 2, beyond the longest axis's 4
    np.testing.assert_allclose(
        spectrum_error(r + 5 + 5 * checkers, r, periodic=True), 0, atol=1e-12
    )


def test_rounding_is_not_compared_with_rounding() -> None:
    x = 2 * np.pi * np.arange(16) / 16
    r = np.sin(x).reshape(1, 1, 1, 16) * np.ones((1, 2, 1, 1))

    assert spectrum_error(r + 1e-9 * np.sin(5 * x), r, periodic=True).item() < 1e-5


def test_what_has_no_spectrum_is_refused() -> None:
    r = np.ones((1, 2, 1, 8))
    with pytest.raises(ValueError, match="fields must be finite"):
        energy_spectrum(r * math.nan, periodic=True)
    with pytest.raises(ValueError, match=r"got \(1, 2, 8\)"):
        energy_spectrum(r[:, :, 0], periodic=True)
    with pytest.raises(ValueError, match="predicted must be of the reference's shape"):
        spectrum_error(r[..., 1:], r, periodic=True)
    with pytest.raises(ValueError, match="reference must not be zero in a whole simulation"):
        spectrum_error(r, 0 * r, periodic=True)
