"""Energy by wave number, and how far two such spectra are apart."""

__all__ = ["energy_spectrum", "spectrum_error"]

import math

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, fftn

from deepzero_apps.correction.metrics import flattened
from deepzero_apps.correction.simulator import Array

_FLOOR = 1e-12


def energy_spectrum(fields: Array, *, periodic: bool) -> Array:
    r"""Kinetic energy by wave number.

    A mode of :math:`n_i` waves along axis i, of :math:`N_i` cells, has the wave number
    :math:`k = [\sum_i (n_i N / N_i)^2]^{1/2}`, with N the cells of the longest axis: waves along
    that axis, for square cells. It belongs to the bin of the nearest whole number. On a periodic grid
    modes are Fourier's. Else they are cosines (DCT-II), whose even continuation has no jump where the
    ends of the grid differ. Both transforms are orthonormal, so that the bins sum to the mean kinetic
    energy of a cell.

    Args:
        fields: Velocities, ``(..., channels, *grid)`` with two leading axes, such as
            ``(simulations, frames, channels, *grid)``.
        periodic: Whether the grid is periodic.

    Returns:
        The energies, ``(simulations, frames, bins)``, in squared units of the fields; bin 0 holds
        the mean flow. Bins beyond N / 2 hold what is left in the corners of the grid's spectrum.

    Raises:
        ValueError: If there is no grid, or a number is not finite.

    Example:
        >>> x = 2 * np.pi * np.arange(8) / 8
        >>> energy_spectrum(2 * np.sin(3 * x).reshape(1, 1, 1, 8), periodic=True).round(12)
        array([[[0., 0., 0., 1., 0.]]])
    """
    flattened(fields)
    grid = fields.shape[3:]
    axes = tuple(range(3, fields.ndim))
    transform = fftn if periodic else dctn
    modes = transform(fields, axes=axes, norm="ortho")
    energies = (np.abs(modes) ** 2).sum(2) / (2 * math.prod(grid))
    bins = _bins(grid, periodic)
    parts = [energies[..., bins == k].sum(-1) for k in range(int(bins.max()) + 1)]
    return np.stack(parts, axis=-1)


def spectrum_error(predicted: Array, reference: Array, *, periodic: bool) -> Array:
    """Distance of the spectra averaged over frames, in decades.

    Both energies of a bin are raised by 1e-12 of the reference's total, below which rounding would be
    compared with rounding.

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``.
        reference: The reference, of that shape.
        periodic: Whether the grid is periodic.

    Returns:
        Mean over bins 1 ... N / 2 of abs(log10(E_p / E_r)), ``(simulations,)``.

    Raises:
        ValueError: If shapes differ, a number is not finite, or a reference is zero.
    """
    flattened(predicted, reference)
    p, r = (energy_spectrum(each, periodic=periodic).mean(1) for each in (predicted, reference))
    floor = _FLOOR * r.sum(-1, keepdims=True)
    if not floor.all():
        raise ValueError("reference must not be zero in a whole simulation, got one")
    ratio = np.log10((p + floor) / (r + floor))[:, 1 : max(reference.shape[3:]) // 2 + 1]
    error: Array = np.abs(ratio).mean(-1)
    return error


def _bins(grid: tuple[int, ...], periodic: bool) -> NDArray[np.intp]:
    squares = np.zeros(grid)
    for axis, cells in enumerate(grid):
        # A cosine mode m makes m / 2 waves; Fourier's modes are numbered from both ends.
        waves = np.fft.fftfreq(cells) * cells if periodic else np.arange(cells) / 2
        place = [1] * len(grid)
        place[axis] = cells
        squares = squares + (waves * max(grid) / cells).reshape(place) ** 2
    # Halves go up: cosine modes lie on them.
    return np.floor(np.sqrt(squares) + 0.5).astype(np.intp)
