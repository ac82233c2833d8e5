r"""The wake behind a disc in PhiFlow: the channel of Um et al., 2-D and incompressible.

.. math::
    \partial_t u + (u \cdot \nabla) u = \nu \Delta u - \nabla p + f, \qquad
    \nabla \cdot u = 0, \qquad \nu = U D / \mathrm{Re}

on a channel 100 wide (y) and 200 long (x), disc of diameter D = 20 around (50, 50), inflow U = 1
at x = 0, free slip on the walls y = 0 and 100, and p = 0 with zero-gradient velocity at the outflow.
As in ``solvers.navier_stokes`` a step is explicit diffusion, semi-Lagrangian advection (linear), the
forcing, no velocity on the disc's faces, and the projection, here by conjugate gradients.

Three traps of PhiFlow 3.4 are walked around:

- a ``HardGeometryMask`` of a box that is open on one side covers every row: the inflow is a
  boundary value and no mask;
- ``make_incompressible`` first damps all faces within .7 cells of an obstacle, at every step.
  On 20 x 40 cells that puts velocities beside the disc .5 U off within 12 steps. Its own
  operator, ``masked_laplace``, is solved here with the sharp mask instead;
- with a boundary condition that differs between normal and tangential components (free slip)
  that operator is not symmetric, and conjugate gradients diverge: it sees zero velocity on the
  walls, which is the same to it.

References:
    | Solver-in-the-Loop (Um et al., 2020), https://arxiv.org/abs/2007.00016
"""

__all__ = ["PhiFlowWake"]

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.channel import DIAMETER, HEIGHT, LENGTH, Channel
from solvers.phiflow_fields import (
    AnyArray,
    Array,
    PhiTensor,
    from_faces,
    phi,
    pressure_solve,
    step,
    to_faces,
    to_grid,
    to_vector,
)
from solvers.states import check_state, integer, positive


class PhiFlowWake(Channel):
    """A `Simulator` of velocities ``(2, rows, columns)``; the parameter is the Reynolds number.

    Fields are laid out as in `solvers.channel`, whose restriction, vorticity and so on it has.

    Args:
        rows: The number of cells across the channel, at least 4.
        columns: The number of cells along it, at least 8.
        dt: The time step; a free-stream parcel moves ``dt`` lengths.
        substeps: How many explicit diffusion steps a time step is cut into.
        tolerance: Of the pressure solve's residual, relative and absolute.

    Attributes:
        reach: Infinite, by the pressure.
        accepts_forcing: True: an acceleration, added before the projection.

    Raises:
        ValueError: If a count is no integer or too small, the grid too coarse for the disc, or
            ``dt`` or ``tolerance`` not positive.
    """

    reach: float | None = math.inf
    accepts_forcing: bool = True

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        dt: float = 2.0,
        substeps: int = 1,
        tolerance: float = 1e-12,
    ) -> None:
        super().__init__(rows, columns)
        self.dt = positive("dt", dt)
        self.substeps = integer("substeps", substeps, least=1)
        self.tolerance = positive("tolerance", tolerance)
        slip = phi.math.extrapolation.combine_by_direction(
            normal=phi.math.extrapolation.ZERO, tangential=phi.math.extrapolation.ZERO_GRADIENT
        )
        self._walled = _boundary(self.inflow, phi.math.extrapolation.ZERO)
        box = {
            "bounds": phi.geom.Box(y=HEIGHT, x=LENGTH),
            "resolution": phi.math.spatial(y=rows, x=columns),
        }
        with phi.math.NUMPY, phi.math.precision(64):
            self._rest = phi.field.StaggeredGrid(0.0, _boundary(self.inflow, slip), **box)
            self._still = phi.field.CenteredGrid(0.0, _PRESSURE, **box)
            self._open = to_faces(1.0 * self.open_faces[None], self._rest).values.states[0]
            self._fluid = to_grid(1.0 - self.solid[None]).states[0]
            self._laplace = self._laplace_matrix()

    def initial(self, parameters: Array, *, seed: int = 0) -> Array:
        """A uniform flow with a kick across it, after one step around the disc.

        Args:
            parameters: The Reynolds numbers, ``(b,)``.
            seed: Of the kick's side and strength; row i is the same whatever the other rows.

        Returns:
            Fields of shape ``(b, 2, rows, columns)``, free of divergence.

        Raises:
            ValueError: If ``seed`` is negative, or as `step`.
        """
        integer("seed", seed, least=0)
        draws = [np.random.default_rng((seed, row)) for row in range(len(parameters))]
        kicks = [draw.uniform(0.1, 0.3) * draw.choice([-1.0, 1.0]) for draw in draws]
        fields = np.zeros((len(kicks), *self.shape))
        fields[:, 0] = self.inflow
        y = np.arange(1, self.shape[1] + 1) / self.shape[1]
        fields[:, 1] = np.multiply.outer(kicks, np.sin(np.pi * y) ** 2)[..., None]
        return self.step(fields, parameters)[0]

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
            fields: Velocities ``(b, 2, rows, columns)``; never changed.
            parameters: Reynolds numbers ``(b,)``, positive.
            native: None; there is no other state.
            forcing: An acceleration, of the shape of ``fields``, or None.

        Returns:
            New velocities, and None.

        Raises:
            TypeError: If an argument is no array of float64.
            ValueError: If an argument has another shape or is not finite, or a Reynolds number is
                so small that explicit diffusion would be unstable.
            FloatingPointError: If the pressure solve does not converge.
        """
        check_state(self.shape, fields, parameters, native)
        self._check_diffusion(parameters)
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
        viscosity = DIAMETER / to_vector(parameters)
        velocity = phi.physics.diffuse.explicit(
            to_faces(fields, self._rest), viscosity, self.dt, substeps=self.substeps
        )
        velocity = velocity.with_values(velocity.values * self._open)
        velocity = phi.physics.advect.semi_lagrangian(velocity, velocity, self.dt)
        if forcing is not None:
            velocity += self.dt * to_faces(forcing, self._rest).values
        return from_faces(self._free(velocity)), native

    def _free(self, velocity: PhiTensor) -> PhiTensor:
        """What ``make_incompressible`` computes, without the soft mask."""
        velocity = velocity.with_values(velocity.values * self._open).with_boundary(self._walled)
        balance = phi.field.divergence(velocity).values * self._fluid
        pressure = phi.math.solve_linear(
            self._laplace, balance, pressure_solve(self.tolerance, start=0 * balance)
        )
        slope = phi.field.spatial_gradient(
            self._still.with_values(pressure), velocity.boundary, at="face"
        )
        return velocity - slope * self._open

    def _laplace_matrix(self) -> PhiTensor:
        """PhiFlow's own operator, as a matrix."""
        fluid = self._still.with_values(self._fluid)
        faces = self._rest.with_values(self._open).with_boundary(self._walled)

        def laplace(pressure: PhiTensor) -> PhiTensor:
            field = phi.physics.fluid.masked_laplace(
                self._still.with_values(pressure), faces.boundary, faces, fluid
            )
            return field.values

        matrix, _ = phi.math.matrix_from_function(laplace, self._still.values)
        return matrix

    def _check_diffusion(self, parameters: Array) -> None:
        dy, dx = self.spacing
        stable = 2 * DIAMETER * (1 / dy**2 + 1 / dx**2) * self.dt / self.substeps
        if not (parameters >= stable).all():
            raise ValueError(
                f"parameters must be at least {stable:.3g} for explicit diffusion on this grid, "
                f"got {parameters.min()}; raise substeps"
            )


_PRESSURE = {
    "x-": phi.math.extrapolation.ZERO_GRADIENT,
    "x+": phi.math.extrapolation.ZERO,
    "y": phi.math.extrapolation.ZERO_GRADIENT,
}


def _boundary(inflow: float, walls: PhiTensor) -> dict[str, PhiTensor]:
    out = phi.math.extrapolation.ZERO_GRADIENT
    return {"x-": phi.math.vec(y=0.0, x=inflow), "x+": out, "y": walls}
