r"""Sums of sine waves that move through a periodic box: forces and initial fields.

For D components, on D axes of length L, with whole mode numbers m:

.. math::
    f(x, t) = \sum_i A_i \sin(2 \pi \, m_i \cdot x / L + \omega_i t + \varphi_i)     \tag{1}

Its average over a cell of width L / n is the wave at the center of the cell times
:math:`\prod_a \mathrm{sinc}(m_{ia} / n)`. So averages over a coarse grid are exactly the means of
those over a fine one, waves that a grid cannot show included.

Constants of W waves are rows :math:`(A_1 ... A_D, m_1 ... m_D, \omega, \varphi)`: an array
``(W, 2 D + 2)`` that knows nothing of a grid or a length.

References:
    | Solver-in-the-Loop (Um et al., 2020), the forced Burgers scenario
    | https://arxiv.org/abs/2007.00016
"""

__all__ = ["averages", "draw"]

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def draw(
    generator: np.random.Generator,
    count: int,
    *,
    dimensions: int,
    modes: tuple[float, float],
    amplitude: float,
) -> Array:
    """Draws constants of waves, all directions and phases alike.

    Args:
        generator: The source of randomness.
        count: How many waves.
        dimensions: The number D of axes and components, 1 or 2.
        modes: Between which the length of m lies, before its components are rounded.
        amplitude: The largest size of a component of A.

    Returns:
        Constants of shape ``(count, 2 D + 2)``; the rates omega lie in [-.4, .4].
    """
    amplitudes = generator.uniform(-amplitude, amplitude, (count, dimensions))
    angle = generator.uniform(0, math.pi, count) if dimensions == 2 else np.zeros(count)
    direction = np.stack((np.cos(angle), np.sin(angle)), 1)[:, :dimensions]
    vectors = np.rint(generator.uniform(*modes, (count, 1)) * direction)
    rates = generator.uniform(-0.4, 0.4, (count, 1))
    phases = generator.uniform(0, 2 * math.pi, (count, 1))
    return np.concatenate((amplitudes, vectors, rates, phases), 1)


def averages(constants: Array, time: Array, cells: int) -> Array:
    """Computes cell averages of sums of waves, eq. (1).

    Args:
        constants: Constants of b sums, of shape ``(b, W, 2 D + 2)``.
        time: The time t of each, of shape ``(b,)``.
        cells: The number n of cells along each axis.

    Returns:
        Averages of shape ``(b, D, *grid)``.
    """
    d = constants.shape[-1] // 2 - 1
    modes, rates, phases = constants[..., d : 2 * d], constants[..., -2], constants[..., -1]
    weights = constants[..., :d] * np.sinc(modes / cells).prod(-1, keepdims=True)
    centers = (np.arange(cells) + 0.5) * (2 * math.pi / cells)
    x = modes[..., :1] * centers + (rates * time[:, None] + phases)[..., None]
    if d == 1:
        line: Array = weights.swapaxes(1, 2) @ np.sin(x)
        return line
    # sin(x + y) = sin x cos y + cos x sin y: a product of two matrices for each sum.
    y = modes[..., 1:] * centers
    weights = np.concatenate((weights, weights), 1).swapaxes(1, 2)[:, :, None]
    rows = np.concatenate((np.sin(x), np.cos(x)), 1).swapaxes(1, 2)[:, None]
    columns = np.concatenate((np.cos(y), np.sin(y)), 1)[:, None]
    plane: Array = (weights * rows) @ columns
    return plane
