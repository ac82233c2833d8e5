r"""Burgers flow in a periodic box in PhiFlow, one or two dimensions.

.. math::
    \partial_t u + (u \cdot \nabla) u = \nu \nabla^2 u + f

on n cells along each axis of length L, values at cell centers. A step is semi-Lagrangian advection
(linear), diffusion that is exact in frequency space, and ``dt`` times the forcing: the order of
Um et al., stable for every time step and viscosity, and dissipative where gradients are steep. The
exact diffusion makes the reach infinite.

Diffusion is written out because PhiFlow 3.4's ``diffuse.fourier`` forgets the size of a cell: it
is right on cells of width 1 alone.

References:
    | Solver-in-the-Loop (Um et al., 2020), https://arxiv.org/abs/2007.00016
"""

__all__ = ["PhiFlowBurgers"]

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.phiflow_fields import (
    AnyArray,
    Array,
    PhiTensor,
    from_grid,
    phi,
    step,
    to_grid,
    to_vector,
)
from solvers.states import integer, positive

_WAVES = 20


class PhiFlowBurgers:
    """A `Simulator`: velocity ``(dimensions, *grid)``, the parameter is the viscosity.

    Channel a is the velocity along axis a of the grid.

    Args:
        cells: The number of cells along each axis, at least 4.
        dimensions: 1 or 2.
        length: The length of the box along each axis.
        dt: The time step.

    Attributes:
        shape: ``(dimensions, *grid)``.
        reach: Infinite: diffusion is exact.
        accepts_forcing: True: an acceleration, added at the end of the step.
        spacing: The width of a cell.

    Raises:
        ValueError: If a count is no integer or out of its range, or ``length`` or ``dt`` is not
            positive.
    """

    reach: float | None = math.inf
    accepts_forcing: bool = True

    def __init__(
        self, cells: int, *, dimensions: int = 2, length: float = 32.0, dt: float = 0.1
    ) -> None:
        integer("cells", cells, least=4)
        integer("dimensions", dimensions, least=1)
        if dimensions > 2:
            raise ValueError(f"dimensions must be 1 or 2, got {dimensions}")
        positive("length", length)
        positive("dt", dt)
        self.shape: tuple[int, ...] = (dimensions, *(cells,) * dimensions)
        self.spacing = length / cells
        self.dt = dt
        # PhiML cannot interpolate on torch in one dimension: a line of cells is a grid of one row.
        rows = cells if dimensions == 2 else 1
        with phi.math.NUMPY, phi.math.precision(64):
            self._rest = phi.field.CenteredGrid(
                0.0,
                phi.math.extrapolation.PERIODIC,
                bounds=phi.geom.Box(y=rows * self.spacing, x=length),
                resolution=phi.math.spatial(y=rows, x=cells),
            )
            waves = phi.math.fftfreq(self._rest.resolution, self.spacing)
            self._decay = -((2 * math.pi) ** 2) * phi.math.sum(waves**2, "vector")

    def initial(self, parameters: Array, *, seed: int = 0) -> Array:
        """Draws sums of 20 plane waves of one to three wavelengths a box, of standard deviation 1.

        Args:
            parameters: The viscosities, ``(b,)``; their number counts.
            seed: Of the waves; row i is the same whatever the other rows.

        Returns:
            Fields of shape ``(b, dimensions, *grid)``.

        Raises:
            ValueError: If ``seed`` is negative.
        """
        integer("seed", seed, least=0)
        draws = [np.random.default_rng((seed, row)) for row in range(len(parameters))]
        return np.stack([self._waves(draw) for draw in draws])

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, None]:
        """Advances b states by one time step.

        Args:
            fields: Velocities ``(b, dimensions, *grid)``; never changed.
            parameters: Viscosities ``(b,)``, at least zero.
            native: None; there is no other state.
            forcing: An acceleration, of the shape of ``fields``, or None.

        Returns:
            New velocities, and None.

        Raises:
            TypeError: If an argument is no array of float64.
            ValueError: If an argument has another shape or is not finite, or a viscosity is
                negative.
        """
        after, _ = step(
            self.advance,
            self.shape,
            fields=fields,
            parameters=parameters,
            native=native,
            forcing=forcing,
        )
        return after, None

    def advance(
        self, fields: AnyArray, parameters: AnyArray, native: AnyArray, forcing: AnyArray
    ) -> tuple[AnyArray, AnyArray]:
        """The step for arrays of any library; see `step` for their shapes. Nothing is checked."""
        velocity = self._rest.with_values(self._vectors(fields))
        velocity = phi.physics.advect.semi_lagrangian(velocity, velocity, self.dt)
        kept = phi.math.exp(self._decay * to_vector(parameters) * self.dt)
        after = phi.math.real(phi.math.ifft(kept * phi.math.fft(velocity.values)))
        if forcing is not None:
            after += self.dt * self._vectors(forcing)
        return self._arrays(after), native

    def _vectors(self, array: AnyArray) -> PhiTensor:
        line = self.shape[0] == 1
        along = to_grid(array if line else array[:, 1])
        across = 0 * along if line else to_grid(array[:, 0])
        return phi.math.stack({"y": across, "x": along}, phi.math.channel("vector"))

    def _arrays(self, vectors: PhiTensor) -> AnyArray:
        if self.shape[0] == 1:
            return from_grid(vectors.vector["x"])
        return vectors.native(["states", "vector", "y", "x"])

    def _waves(self, draw: np.random.Generator) -> Array:
        dimensions, cells = self.shape[0], self.shape[1]
        centers = np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * dimensions, indexing="ij")
        modes = draw.integers(1, 4, (_WAVES, dimensions)) * draw.choice(
            [-1, 1], (_WAVES, dimensions)
        )
        phases = draw.uniform(0, 2 * np.pi, (_WAVES, dimensions))
        angles = 2 * np.pi * np.tensordot(modes, np.stack(centers), axes=1)
        shifts = phases.reshape(_WAVES, dimensions, *(1,) * dimensions)
        waves: Array = np.sin(angles[:, None] + shifts).sum(0) / math.sqrt(_WAVES / 2)
        return waves
