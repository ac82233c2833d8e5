r"""The wake of a disc in a channel: two-dimensional incompressible flow on a staggered grid.

The velocity (u, v) in a channel 100 high and 200 long, around a disc of diameter D = 20 at
(50, 50), enters at the left with u = U = 1:

.. math::
    \partial_t u + (u \cdot \nabla) u = -\nabla p + \nu \nabla^2 u + f, \qquad
    \nabla \cdot u = 0, \qquad \nu = U D / Re                                          \tag{1}

No slip on the disc, free slip on the walls (v = 0, no shear), p = 0 and no gradient of the
velocity at the right. A step is split (each part sees the result of the one before):

1. diffusion, explicit, on the five-point stencil, in as many equal sub-steps m as keep
   :math:`3 \nu \Delta t (\Delta x^{-2} + \Delta y^{-2}) \le m`;
2. semi-Lagrangian advection (``semi_lagrangian.py``), by bilinear interpolation or with
   MacCormack's correction;
3. the forcing, :math:`\Delta t f`;
4. no velocity on the disc's faces, and the exact projection (``pressure.py``).

The splitting's first order in time and the interpolation's viscosity (see there) are what makes a
coarse grid wrong: at dt = 2 the wake of 80 x 160 cells sheds vortices (Strouhal number .2) and that of
20 x 40 dies within one period.

**Choosing a grid.** The staircase of cells should have about the disc's area, 314: on 20 x 40 cells
it has 300, on 32 x 64 312, on 16 x 32 469. Restricted fields of a fine grid do not vanish on the
coarse disc; :meth:`Wake.project` takes them to the nearest that do.

**Cost**, of a state and step, in ms on one core: .04 on 16 x 32, .06 on 20 x 40, .12 on 32 x 64, .5
on 64 x 128, 2.7 on 128 x 256 in batches; 1.6 times that with MacCormack's correction.

References:
    | Solver-in-the-Loop (Um, Brand, Fei, Holl & Thuerey, 2020): the domain and the method
    | https://arxiv.org/abs/2007.00016

    | Stable Fluids (Stam, 1999), https://doi.org/10.1145/311535.311548
"""

__all__ = ["Wake"]

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from solvers.channel import DIAMETER, Channel, check_array
from solvers.pressure import Poisson, outer_faces
from solvers.semi_lagrangian import Advection, Workspace
from solvers.staggered import Array, Layout
from solvers.states import positive

Rows = NDArray[np.intp]

_CHUNK = 20_000
"""Numbers in one component of a chunk of states; about what a core's cache holds 20 times."""

_MOST_SUBSTEPS = 64


class Wake(Channel):
    """Steps the flow around a disc in a channel; satisfies the ``Simulator`` protocol.

    Fields are laid out as in :mod:`solvers.channel`. A state's parameter is its Reynolds number;
    there is no native part. A state's result depends on no other state, to the bit. Threads may
    share an instance.

    Args:
        rows: Cells across the channel, at least 4.
        columns: Cells along it, at least 8.
        dt: Time step. Advection is stable at any; see :meth:`cfl`.
        advection: ``linear`` is bilinear; ``maccormack`` corrects it to second order.
        disc: Whether there is a disc.
        inflow: The velocity U at the left. The Reynolds number stays D / nu.

    Attributes:
        reach: Infinite: the pressure carries every change everywhere.
        accepts_forcing: ``True``.
        dt: The time step.
        advection: ``linear`` or ``maccormack``.
        poisson: The pressure's solver, in units of dx.

    Raises:
        ValueError: If an argument is out of its range, or the grid too coarse for the disc.

    Example:
        >>> wake = Wake(20, 40)
        >>> reynolds = np.array([100.0, 1000.0])
        >>> fields, native = wake.step(wake.initial(reynolds), reynolds)
        >>> fields.shape, bool(abs(wake.divergence(fields)).max() < 1e-12)
        ((2, 2, 20, 40), True)
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        dt: float = 2.0,
        advection: Literal["linear", "maccormack"] = "linear",
        disc: bool = True,
        inflow: float = 1.0,
    ) -> None:
        super().__init__(rows, columns, disc=disc, inflow=inflow)
        dt = positive("dt", dt)
        if advection not in ("linear", "maccormack"):
            raise ValueError(f"advection must be 'linear' or 'maccormack', got {advection!r}")

        self.reach: float | None = math.inf
        self.accepts_forcing = True
        self.dt, self.advection = dt, advection
        dy, dx = self.spacing
        self.poisson = Poisson((dy / dx, 1.0), self.solid)

        self._layout = Layout(rows, columns)
        self._advection = Advection(self._layout, corrected=advection == "maccormack")
        self._units = np.array([dt / dx, dt / dy]).reshape(2, 1, 1)
        self._open = np.zeros((2, self._layout.size))
        self._layout.faces(self._open)[...] = self.open_faces
        self._chunk = max(1, _CHUNK // self._layout.inner)
        self._spare: list[Workspace] = []

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: Array | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, None]:
        """Steps states by ``dt``.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns), float64.
            parameters: Reynolds numbers, of shape (b,).
            native: ``None``.
            forcing: Accelerations on the faces, of the shape of ``fields``.

        Returns:
            The new velocities, free of divergence, and ``None``.

        Raises:
            ValueError: If an argument has a wrong shape or type, is not finite, or a Reynolds
                number is so small that diffusion would need more than 64 sub-steps.
        """
        check_array(fields, "fields", self.shape)
        nu, substeps = self._viscosity(parameters, len(fields))
        if native is not None:
            raise ValueError(f"native must be None, got {type(native).__name__}")
        if forcing is not None:
            check_array(forcing, "forcing", self.shape)
            if len(forcing) != len(fields):
                raise ValueError(f"forcing must have shape {fields.shape}, got {forcing.shape}")

        out = np.empty_like(fields)
        for rows in self._chunks(substeps):
            with self._workspace(len(rows)) as work:
                force = None if forcing is None else forcing[rows]
                self._predict(work, fields[rows], nu[rows], int(substeps[rows[0]]), forcing=force)
                self._project(work)
                out[rows] = self._leave(work)
        return out, None

    def initial(self, parameters: Array, seed: int = 0) -> Array:
        """Makes a flow that has just been set in motion, with eddies behind the disc.

        The eddies are the same on every grid and in every state; they make shedding start soon.

        Args:
            parameters: Reynolds numbers, of shape (b,).
            seed: Where the eddies are and how they turn.

        Returns:
            Velocities, of shape (b, 2, rows, columns), free of divergence.

        Raises:
            ValueError: If the Reynolds numbers are not valid.
        """
        states = len(self._viscosity(parameters, None)[0])
        generator = np.random.default_rng(seed)
        dy, dx = self.spacing
        y, x = dy * np.arange(1, self.shape[1] + 1)[:, None], dx * np.arange(1, self.shape[2] + 1)
        psi = np.zeros((1, *self.shape[1:]))
        for turn in generator.permutation([-1, -1, 1, 1]):
            at_y, at_x = generator.uniform(35, 65), generator.uniform(65, 130)
            strength = turn * generator.uniform(2, 5)
            psi += strength * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * 8**2))

        # Projecting also sets the uniform flow in motion: it is a gradient.
        return self.project(self.velocity_of_streamfunction(psi)).repeat(states, axis=0)

    def project(self, fields: Array) -> Array:
        """Finds the nearest velocities that are free of divergence and vanish on the disc.

        Nearest in the sum of squares over all faces, those of the outflow counting half.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns).

        Returns:
            Velocities of the same shape. Those of a step are left unchanged, to rounding.

        Raises:
            ValueError: If the fields have a wrong shape or type or are not finite.
        """
        check_array(fields, "fields", self.shape)
        out = np.empty_like(fields)
        for rows in self._chunks(np.ones(len(fields), np.intp)):
            with self._workspace(len(rows)) as work:
                np.multiply(fields[rows], self._units, out=self._layout.faces(work.then))
                self._project(work)
                out[rows] = self._leave(work)
        return out

    def cfl(self, fields: Array) -> Array:
        """Computes how many cells the fastest flow crosses in a step.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns).

        Returns:
            The greatest of dt u / dx and dt v / dy, of shape (b,). A step is stable at any;
            beyond about 5 it is inaccurate.

        Raises:
            ValueError: If the fields have a wrong shape or type or are not finite.
        """
        check_array(fields, "fields", self.shape)
        courant: Array = np.abs(fields * self._units).max(axis=(1, 2, 3), initial=0.0)
        return courant

    def pressure_force(self, fields: Array, parameters: Array) -> Array:
        """Computes the force of the next step's pressure on the disc.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns).
            parameters: Reynolds numbers, of shape (b,).

        Returns:
            Drag and lift for a density of 1, of shape (b, 2), without friction. The drag
            coefficient is drag / (U**2 D / 2) = drag / 10.

        Raises:
            ValueError: If an argument is not valid.
        """
        check_array(fields, "fields", self.shape)
        nu, substeps = self._viscosity(parameters, len(fields))
        force = np.empty((len(fields), 2))
        for rows in self._chunks(substeps):
            with self._workspace(len(rows)) as work:
                self._predict(work, fields[rows], nu[rows], int(substeps[rows[0]]))
                self._project(work)
                pressure = self._layout.faces(work.now[:, 1])
                force[rows] = self._push(pressure)
        return force

    def _push(self, pressure: Array) -> Array:
        """The force of a pressure, given in units of (dx / dt)**2, on the disc."""
        dy, dx = self.spacing
        fluid, inside = outer_faces(self.solid)
        at_faces = pressure.reshape(len(pressure), -1)[:, fluid] * (dx / self.dt) ** 2
        ahead = np.sign(inside - fluid)
        across = np.abs(inside - fluid) == 1
        drag = (at_faces * (ahead * across * dy)).sum(axis=1)
        lift = (at_faces * (ahead * ~across * dx)).sum(axis=1)
        return np.stack((drag, lift), axis=1)

    def _viscosity(self, parameters: Array, states: int | None) -> tuple[Array, Rows]:
        """Viscosities, and the sub-steps that diffusion needs."""
        check_array(parameters, "parameters", ())
        if states is not None and len(parameters) != states:
            raise ValueError(f"parameters must have shape ({states},), got {parameters.shape}")
        rate = 3 * DIAMETER * self.dt * (self.spacing[0] ** -2 + self.spacing[1] ** -2)
        least = rate / _MOST_SUBSTEPS
        if not (parameters >= least).all():
            raise ValueError(
                f"parameters must be Reynolds numbers of at least {least:.3g} on this grid at "
                f"dt = {self.dt:g}, got {parameters.min():g}; use a smaller dt"
            )
        substeps = np.maximum(1, np.ceil(rate / parameters)).astype(np.intp)
        return DIAMETER / parameters, substeps

    def _chunks(self, substeps: Rows) -> Iterator[Rows]:
        """Rows with equal numbers of sub-steps, as many as fit the cache."""
        for count in np.unique(substeps):
            rows = np.flatnonzero(substeps == count)
            for start in range(0, len(rows), self._chunk):
                yield rows[start : start + self._chunk]

    @contextmanager
    def _workspace(self, states: int) -> Iterator[Workspace]:
        try:
            whole = self._spare.pop()
        except IndexError:
            corrected = self.advection == "maccormack"
            whole = Workspace.of(self._chunk, self._layout, corrected=corrected)
        # What overflows is reported by whoever sees the result.
        with np.errstate(over="ignore", invalid="ignore"):
            yield whole.first(states)
        self._spare.append(whole)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spare": []}

    def _predict(
        self,
        work: Workspace,
        fields: Array,
        nu: Array,
        substeps: int,
        *,
        forcing: Array | None = None,
    ) -> None:
        """Diffusion, advection and forcing: from ``fields`` to ``work.then``."""
        np.multiply(fields, self._units, out=self._layout.faces(work.now))
        self._diffuse(work, nu, substeps)
        self._advection(work, self._inflow)
        if forcing is not None:
            self._layout.faces(work.then)[...] += self.dt * self._units * forcing

    def _diffuse(self, work: Workspace, nu: Array, substeps: int) -> None:
        """Diffuses ``work.now`` and writes its ghosts."""
        at, (dy, dx) = self._layout, self.spacing
        ratio = (dx / dy) ** 2
        rate = (nu * self.dt / substeps / dx**2)[:, None, None]
        rest = 1 - 2 * (1 + ratio) * rate
        new, kept = work.y, work.x
        for _ in range(substeps):
            old = work.now
            at.fill_ghosts(old, self._inflow)
            np.add(old[..., at.below], old[..., at.above], out=new)
            new *= ratio
            new += old[..., at.left]
            new += old[..., at.right]
            new *= rate
            np.multiply(old[..., at.here], rest, out=kept)
            new += kept
            np.multiply(new, self._open[:, at.here], out=work.then[..., at.here])
            work.now, work.then = work.then, work.now
        at.fill_ghosts(work.now, self._inflow)

    def _project(self, work: Workspace) -> None:
        """Projects ``work.then``; the pressure is left in ``work.now[:, 1]``."""
        at = self._layout
        work.then *= self._open
        at.fill_inflow(work.then, self._inflow)
        u, v = work.then[:, 0], work.then[:, 1]
        q, p, slope = work.now[:, 0], work.now[:, 1], work.x[:, 0]

        balance = np.subtract(u[:, at.here], u[:, at.left], out=q[:, at.here])
        balance += v[:, at.here]
        balance -= v[:, at.below]
        self.poisson.solve(at.faces(q), out=at.faces(p), work=work.transforms)
        at.fill_pressure_ghosts(p)

        u[:, at.here] -= np.subtract(p[:, at.right], p[:, at.here], out=slope)
        np.subtract(p[:, at.above], p[:, at.here], out=slope)
        slope *= (self.spacing[1] / self.spacing[0]) ** 2
        v[:, at.here] -= slope

    def _leave(self, work: Workspace) -> Array:
        """The projected velocities, as fields."""
        velocity: Array = self._layout.faces(work.then) * (self.open_faces / self._units)
        return velocity

    @property
    def _inflow(self) -> float:
        return self.inflow * self.dt / self.spacing[1]
