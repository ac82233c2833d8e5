"""The wake's solver written again in torch, so that autograd can go through a step.

It is the ceiling that zeroth-order methods are measured against, and no part of them. The twin
takes the grid, the masks and the pressure's bases from a solver and repeats its arithmetic in the
same order, face by face: their results differ by rounding. The solver's own documentation has the
equations.

The map is piecewise smooth. Where a point leaves the domain, an interpolation changes its cell or
MacCormack's correction is clipped, the gradient is that of the branch taken.
"""

__all__ = ["WakeSolver", "WakeTwin"]

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_DIAMETER = 20.0


class _Patch(Protocol):
    @property
    def rows(self) -> slice: ...
    @property
    def columns(self) -> slice: ...
    @property
    def cells(self) -> NDArray[np.intp]: ...
    @property
    def response(self) -> Array: ...


class _Poisson(Protocol):
    @property
    def row_basis(self) -> Array: ...
    @property
    def column_basis(self) -> Array: ...
    @property
    def inverse(self) -> Array: ...
    @property
    def patch(self) -> _Patch | None: ...


class WakeSolver(Protocol):
    """What the twin reads from a solver; see ``solvers.navier_stokes.Wake``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(2, rows, columns)."""
        ...

    @property
    def spacing(self) -> tuple[float, float]:
        """Height and width (dy, dx) of a cell."""
        ...

    @property
    def dt(self) -> float:
        """Time step."""
        ...

    @property
    def inflow(self) -> float:
        """Velocity at the left."""
        ...

    @property
    def advection(self) -> str:
        """``linear`` or ``maccormack``."""
        ...

    @property
    def open_faces(self) -> NDArray[np.bool_]:
        """Faces that may carry a velocity, of shape (2, rows, columns)."""
        ...

    @property
    def poisson(self) -> _Poisson:
        """The pressure's bases, in units of dx."""
        ...


class WakeTwin:
    """A differentiable step of the wake.

    Args:
        solver: The solver to repeat.
        device: Where to compute.

    Example:
        ``twin = WakeTwin(Wake(20, 40))``, then ``twin(fields, parameters)[0].sum().backward()``.
    """

    def __init__(self, solver: WakeSolver, *, device: torch.device | str = "cpu") -> None:
        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.tensor(np.asarray(array, np.float64), device=device)

        self._shape, self._corrected = solver.shape, solver.advection == "maccormack"
        self._dt, (dy, dx) = solver.dt, solver.spacing
        self._aspect, self._dx = (dx / dy) ** 2, dx
        self._diffusion_rate = 3 * _DIAMETER * self._dt * (dx**-2 + dy**-2)
        self._inflow = solver.inflow * self._dt / dx
        self._units = tensor(np.array([self._dt / dx, self._dt / dy])).reshape(2, 1, 1)
        self._open = tensor(solver.open_faces)

        poisson, self._patch = solver.poisson, solver.poisson.patch
        self._row_basis, self._column_basis = (
            tensor(poisson.row_basis),
            tensor(poisson.column_basis),
        )
        self._inverse = tensor(poisson.inverse)
        if self._patch is not None:
            self._response = tensor(self._patch.response)
            self._cells = torch.tensor(self._patch.cells, device=device)

        rows, columns = self._shape[1:]
        self._home_y = tensor(np.arange(1, rows + 1))[:, None]
        self._home_x = tensor(np.arange(1, columns + 1))
        self._states = torch.arange(2, device=device)[:, None, None] * (rows + 2) * (columns + 2)

    def __call__(
        self,
        fields: Tensor,
        parameters: Tensor,
        native: Tensor | None = None,
        *,
        forcing: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Steps states, differentiably in fields, parameters and forcing.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns), float64.
            parameters: Reynolds numbers, of shape (b,).
            native: ``None``.
            forcing: Accelerations, of the shape of ``fields``.

        Returns:
            The new velocities, and ``None``.

        Raises:
            ValueError: If the fields have a wrong shape or type, the parameters do not fit them,
                or there is a native part.
        """
        self._check(fields, parameters, native)
        velocity = self._diffuse(fields * self._units, parameters)
        velocity = self._advect(velocity)
        if forcing is not None:
            velocity = velocity + self._dt * self._units * forcing
        return self._project(velocity) / self._units, None

    def _check(self, fields: Tensor, parameters: Tensor, native: Tensor | None) -> None:
        if fields.dtype != torch.float64 or fields.ndim != 4 or fields.shape[1:] != self._shape:
            raise ValueError(
                f"fields must be float64 of shape (b, {', '.join(map(str, self._shape))}), "
                f"got {fields.dtype} of shape {tuple(fields.shape)}"
            )
        if parameters.shape != fields.shape[:1]:
            raise ValueError(
                f"parameters must have shape ({len(fields)},), got {tuple(parameters.shape)}"
            )
        if native is not None:
            raise ValueError(f"native must be None, got shape {tuple(native.shape)}")

    def _padded(self, velocity: Tensor) -> Tensor:
        """The velocity with a ring of ghosts."""
        u, v = velocity.unbind(1)
        u = torch.cat((torch.full_like(u[:, :, :1], self._inflow), u, u[:, :, -1:]), dim=2)
        u = torch.cat((u[:, :1], u, u[:, -1:]), dim=1)
        v = torch.cat((-v[:, :, :1], v, v[:, :, -1:]), dim=2)
        wall = torch.zeros_like(v[:, :1])
        return torch.stack((u, torch.cat((wall, v, wall), dim=1)), dim=1)

    def _diffuse(self, velocity: Tensor, parameters: Tensor) -> Tensor:
        substeps = (self._diffusion_rate / parameters.detach()).ceil().clamp(min=1)
        rate = (_DIAMETER / parameters * self._dt / substeps / self._dx**2)[:, None, None, None]
        rest = 1 - 2 * (1 + self._aspect) * rate
        for done in range(int(substeps.max()) if len(substeps) else 0):
            old = self._padded(velocity)
            new = (old[..., :-2, 1:-1] + old[..., 2:, 1:-1]) * self._aspect
            new = new + old[..., 1:-1, :-2] + old[..., 1:-1, 2:]
            new = (new * rate + velocity * rest) * self._open
            velocity = torch.where((substeps > done)[:, None, None, None], new, velocity)
        return velocity

    def _advect(self, velocity: Tensor) -> Tensor:
        padded = self._padded(velocity)
        move_y, move_x = self._displacements(padded)
        corners, y, x = self._gather(padded, self._home_y - move_y, self._home_x - move_x)
        first = _blend(corners, y, x)
        if not self._corrected:
            return first

        low, high = corners.amin(0), corners.amax(0)
        corners, y, x = self._gather(
            self._padded(first), self._home_y + move_y, self._home_x + move_x
        )
        back = _blend(corners, y, x)
        return torch.clamp((velocity - back) * 0.5 + first, low, high)

    def _displacements(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns that the flow covers in a step, at the faces of u and v."""
        u, v = padded.unbind(1)
        u_at_v = u[:, 1:-1, 1:-1] + u[:, 1:-1, :-2] + u[:, 2:, 1:-1] + u[:, 2:, :-2]
        v_at_u = v[:, 1:-1, 1:-1] + v[:, 1:-1, 2:] + v[:, :-2, 1:-1] + v[:, :-2, 2:]
        across = torch.stack((v_at_u * 0.25, v[:, 1:-1, 1:-1]), dim=1)
        along = torch.stack((u[:, 1:-1, 1:-1], u_at_v * 0.25), dim=1)
        return across, along

    def _gather(self, padded: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The four values around each point, of shape (4, ...), and fractions of a cell."""
        rows, columns = self._shape[1:]
        y = torch.stack((y[:, 0].clamp(0.5, rows + 0.5), y[:, 1].clamp(0, rows)), dim=1)
        x = torch.stack((x[:, 0].clamp(0, columns), x[:, 1].clamp(0.5, columns + 0.5)), dim=1)
        row, column = y.detach().floor(), x.detach().floor()

        width = columns + 2
        index = (row * width + column).long() + self._states
        index = torch.stack([index + shift for shift in (0, 1, width, width + 1)], dim=1)
        corners = padded.flatten(1).gather(1, index.flatten(1)).reshape(index.shape)
        return corners.transpose(0, 1), y - row, x - column

    def _project(self, velocity: Tensor) -> Tensor:
        velocity = velocity * self._open
        u, v = velocity.unbind(1)
        inflow = torch.full_like(u[:, :, :1], self._inflow)
        q = u.diff(dim=2, prepend=inflow) + v.diff(dim=1, prepend=torch.zeros_like(v[:, :1]))
        p = self._pressure(q)
        u = u - p.diff(dim=2, append=-p[:, :, -1:])
        v = v - p.diff(dim=1, append=p[:, -1:]) * self._aspect
        return torch.stack((u, v), dim=1) * self._open

    def _pressure(self, q: Tensor) -> Tensor:
        spectrum = (self._row_basis @ q @ self._column_basis) * self._inverse
        if self._patch is not None:
            spectrum = spectrum + self._answer(spectrum, self._patch)
        pressure: Tensor = self._row_basis.T @ spectrum @ self._column_basis
        return pressure

    def _answer(self, spectrum: Tensor, patch: _Patch) -> Tensor:
        """The cosines of the pressure that the forces on the disc's faces add."""
        rows, columns = self._row_basis[:, patch.rows], self._column_basis[patch.columns]
        near = rows.T @ spectrum @ columns.T
        flat = near.flatten(1)
        sources = flat[:, self._cells] @ self._response.T
        added = torch.zeros_like(flat).index_copy(1, self._cells, sources)
        answer: Tensor = (rows @ added.reshape(near.shape) @ columns) * self._inverse
        return answer


def _blend(corners: Tensor, y: Tensor, x: Tensor) -> Tensor:
    a, b, c, d = corners.unbind(0)
    lower = a + (b - a) * x
    upper = c + (d - c) * x
    return lower + (upper - lower) * y
