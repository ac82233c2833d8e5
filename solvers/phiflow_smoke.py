r"""Hot smoke rising in a closed box in PhiFlow, 2-D: Boussinesq flow with a source.

.. math::
    \partial_t s + (u \cdot \nabla) s = q, \qquad
    \partial_t u + (u \cdot \nabla) u = \beta \, s \, e_y - \nabla p + f, \qquad \nabla \cdot u = 0

for the smoke density s, a source q of .2 a unit of time in a disc near the floor, and the buoyancy
:math:`\beta`. The box is 100 high, its cells are square, its walls hold the air and let no
smoke through. A step advects the smoke and adds the source, advects the velocity, adds buoyancy
and forcing, and projects. All advection is semi-Lagrangian (linear).

The corrected field is the velocity alone and the density travels in the native part: a correction
is then an acceleration or a streamfunction, as for the wake, smoke is neither made nor destroyed by
a network, and a restart needs more than the field, which the protocol is there for.
"""

__all__ = ["PhiFlowSmoke"]

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.channel import face_means, outflow
from solvers.phiflow_fields import (
    AnyArray,
    Array,
    from_faces,
    from_grid,
    phi,
    pressure_solve,
    step,
    to_faces,
    to_grid,
    to_vector,
)
from solvers.states import integer, positive

HEIGHT = 100.0
SOURCE_HEIGHT, SOURCE_RADIUS, SOURCE_RATE = 15.0, 10.0, 0.2


class PhiFlowSmoke:
    """A `Simulator`: velocity ``(2, rows, columns)``; the parameter is the buoyancy.

    Channel 0 is u on the right face of each cell (the last column is the wall, zero), channel 1 is
    v on the top face (the last row is the ceiling, zero). The native part is the smoke density,
    ``(rows, columns)`` for each state.

    Args:
        rows: The number of cells from floor to ceiling, at least 4.
        columns: The number of cells across, at least 4.
        dt: The time step.
        tolerance: Of the pressure solve's residual, relative and absolute.

    Attributes:
        shape: ``(2, rows, columns)``.
        reach: Infinite, by the pressure.
        accepts_forcing: True: an acceleration, added before the projection.
        spacing: Height and width (dy, dx) of a cell.

    Raises:
        ValueError: If a count is no integer or too small, or ``dt`` or ``tolerance`` not positive.
    """

    reach: float | None = math.inf
    accepts_forcing: bool = True

    def __init__(
        self, rows: int, columns: int, *, dt: float = 1.0, tolerance: float = 1e-12
    ) -> None:
        integer("rows", rows, least=4)
        integer("columns", columns, least=4)
        positive("dt", dt)
        positive("tolerance", tolerance)
        cell = HEIGHT / rows
        self.shape: tuple[int, ...] = (2, rows, columns)
        self.spacing = (cell, cell)
        self.dt = dt
        self.tolerance = tolerance
        with phi.math.NUMPY, phi.math.precision(64):
            bounds = phi.geom.Box(y=HEIGHT, x=cell * columns)
            cells = phi.math.spatial(y=rows, x=columns)
            self._rest = phi.field.StaggeredGrid(0.0, 0.0, bounds=bounds, resolution=cells)
            self._clear = phi.field.CenteredGrid(
                0.0, phi.math.extrapolation.ZERO_GRADIENT, bounds=bounds, resolution=cells
            )
            vent = phi.geom.Sphere(y=SOURCE_HEIGHT, x=cell * columns / 2, radius=SOURCE_RADIUS)
            self._source = SOURCE_RATE * phi.field.resample(vent, self._clear, soft=True).values

    def initial(self, parameters: Array, *, seed: int = 0) -> tuple[Array, Array]:
        """Air at rest, with smoke in a slightly ragged layer around the source.

        Args:
            parameters: The buoyancies, ``(b,)``; their number counts.
            seed: Of the smoke; row i is the same whatever the other rows.

        Returns:
            Fields of zeros ``(b, 2, rows, columns)`` and densities ``(b, rows, columns)``.

        Raises:
            ValueError: If ``seed`` is negative.
        """
        integer("seed", seed, least=0)
        b, rows, columns = len(parameters), *self.shape[1:]
        x = np.linspace(-1, 1, columns)
        y = (np.arange(rows)[:, None] + 0.5) * self.spacing[0] - SOURCE_HEIGHT
        draws = [np.random.default_rng((seed, row)) for row in range(b)]
        centers = np.array([draw.uniform(-0.3, 0.3) for draw in draws])[:, None, None]
        smoke: Array = np.exp(-((y / SOURCE_RADIUS) ** 2) - ((x - centers) / 0.3) ** 2)
        return np.zeros((b, *self.shape)), smoke

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Advances b states by one time step.

        Args:
            fields: Velocities ``(b, 2, rows, columns)``; never changed.
            parameters: Buoyancies ``(b,)``, at least zero.
            native: Smoke densities ``(b, rows, columns)``.
            forcing: An acceleration, of the shape of ``fields``, or None.

        Returns:
            New velocities and densities.

        Raises:
            TypeError: If an argument is no array of float64.
            ValueError: If an argument has another shape or is not finite, or a buoyancy is
                negative.
            FloatingPointError: If the pressure solve does not converge.
        """
        return step(
            self.advance,
            self.shape,
            fields=fields,
            parameters=parameters,
            native=native,
            forcing=forcing,
            native_shape=self.shape[1:],
        )

    def restrict(self, fields: Array, factor: int) -> Array:
        """Takes velocities of a box ``factor`` times finer to this one and keeps every flux.

        Args:
            fields: Velocities, of shape ``(b, 2, factor * rows, factor * columns)``.
            factor: How many fine cells a coarse one is wide and high.

        Returns:
            Velocities of shape ``(b, 2, rows, columns)``.
        """
        return face_means(fields, factor)

    def restrict_native(self, native: Array, factor: int) -> Array:
        """Takes smoke densities of a box ``factor`` times finer to this one, ``(b, rows, columns)``."""
        _, rows, columns = self.shape
        means: Array = native.reshape(-1, rows, factor, columns, factor).mean((2, 4))
        return means

    def divergence(self, fields: Array) -> Array:
        """Computes the net outflow of each cell over its area, of shape ``(b, rows, columns)``."""
        return outflow(fields, self.spacing)

    def vorticity(self, fields: Array) -> Array:
        """Computes dv/dx - du/dy at the top right corners, of shape ``(b, rows, columns)``."""
        dy, dx = self.spacing
        u, v = fields[:, 0], fields[:, 1]
        turning: Array = np.diff(v, axis=2, append=0) / dx - np.diff(u, axis=1, append=0) / dy
        return turning

    def advance(
        self, fields: AnyArray, parameters: AnyArray, native: AnyArray, forcing: AnyArray
    ) -> tuple[AnyArray, AnyArray]:
        """The step for arrays of any library; see `step` for their shapes. Nothing is checked."""
        velocity = to_faces(fields, self._rest)
        smoke = self._clear.with_values(to_grid(native))
        smoke = phi.physics.advect.semi_lagrangian(smoke, velocity, self.dt)
        smoke += self.dt * self._source
        up = phi.math.vec(y=to_vector(parameters), x=0.0)
        velocity = phi.physics.advect.semi_lagrangian(velocity, velocity, self.dt)
        velocity += self.dt * phi.field.resample(smoke * up, velocity)
        if forcing is not None:
            velocity += self.dt * to_faces(forcing, self._rest).values
        solve = pressure_solve(self.tolerance)
        free, _ = phi.physics.fluid.make_incompressible(velocity, (), solve)
        return from_faces(free), from_grid(smoke.values)
