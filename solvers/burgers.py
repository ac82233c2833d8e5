r"""Forced viscous Burgers flow in a periodic box, one or two dimensions, of reach one.

For a velocity u of D components, viscosity :math:`\nu` and a force f:

.. math::
    \partial_t u + (u \cdot \nabla) u = \nu \nabla^2 u + f                           \tag{1}

Waves steepen into fronts as thin as viscosity allows, and fronts run into each other.
Unknowns are averages over the n cells of width :math:`\Delta x = L / n` along each axis. A
stage of length h is forward Euler, explicit and first-order, so that it carries a change one
cell far and no further. In one dimension it conserves momentum, with the fluxes of Engquist
and Osher through the face between a left and a right cell, :math:`a^+ = \max(a, 0)`:

.. math::
    F = \tfrac12 (u_l^+)^2 + \tfrac12 (u_r^-)^2 - \nu (u_r - u_l) / \Delta x         \tag{2}

In two dimensions advection is upwind, which is a central difference and a viscosity of
:math:`|u_a| \Delta x / 2` along axis a:

.. math::
    \dot u = \sum_a \Big(\frac{|u_a|}{2 \Delta x} + \frac{\nu}{\Delta x^2}\Big)
    (u_{+a} - 2 u + u_{-a}) - \frac{u_a}{2 \Delta x} (u_{+a} - u_{-a}) + f           \tag{3}

A stage is monotone and stable while

.. math::
    h \max \sum_a |u_a| / \Delta x + 2 D h \nu / \Delta x^2 \le 1.                   \tag{4}

**The force** is a sum of 20 sine waves that move (see ``waves``), drawn once a simulation, with
amplitudes uniform in [-.15, .15] for each component, mode numbers of length 4 to 8 and rates in
[-.4, .4]; it holds still during a step. Cells feel their averages of it, so that the forces, and
the initial fields, of a fine and a coarse grid are restrictions of one another. Time and
constants are the state's native part, ``(t, constants of wave 1, of wave 2, ...)``.

References:
    | Solver-in-the-Loop (Um et al., 2020), the forced Burgers scenario
    | https://arxiv.org/abs/2007.00016

    | One-sided difference approximations for nonlinear conservation laws (Engquist & Osher, 1981)
    | https://doi.org/10.1090/S0025-5718-1981-0606500-X
"""

__all__ = ["Burgers"]

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from solvers import waves
from solvers.states import (
    check_fields,
    check_floats,
    check_forcing,
    check_state,
    integer,
    positive,
)

Array = NDArray[np.float64]

_WAVES = 20
_BLOCK = 2**14


class Burgers:
    """Forced Burgers flow on a periodic grid, eqs. (1) to (4): a simulator of known reach.

    States are fields ``(b, dimensions, *grid)``, a viscosity for each of shape ``(b,)``, and the
    native part described above, ``(b, 1 + 20 (2 dimensions + 2))``. Row i of every result
    depends on row i alone, to the bit.

    Args:
        cells: The number of cells n along each axis, at least 3.
        dimensions: The number D of axes and of velocity components, 1 or 2.
        length: The length L of the box along each axis.
        dt: The time that a step advances by.
        substeps: How many stages of length ``dt / substeps`` a step takes.
        forced: Adds the force; without it there is no native part.

    Raises:
        ValueError: If an argument is out of its range.

    Notes:
        Fronts thinner than a cell are smeared by the scheme's own viscosity: that is the error
        of a coarse grid. A grid k times finer needs k times as many stages, or more where
        viscosity limits.

        Good values: 32 cells, and ``Burgers(128, substeps=4)`` as its reference, viscosity .1.

    Example:
        >>> flow = Burgers(32)
        >>> fields, native = flow.initial(np.array([0.1]), seed=0)
        >>> fields, native = flow.step(fields, np.array([0.1]), native)
        >>> fields.shape, flow.reach, float(native[0, 0])
        ((1, 2, 32, 32), 1, 0.1)
    """

    accepts_forcing = True

    def __init__(
        self,
        cells: int,
        *,
        dimensions: int = 2,
        length: float = 32.0,
        dt: float = 0.1,
        substeps: int = 1,
        forced: bool = True,
    ) -> None:
        self.cells = integer("cells", cells, least=3)
        self.dimensions = integer("dimensions", dimensions, least=1)
        if self.dimensions > 2:
            raise ValueError(f"dimensions must be 1 or 2, got {dimensions}")
        self.length = positive("length", length)
        self.dt = positive("dt", dt)
        self.substeps = integer("substeps", substeps, least=1)
        self.forced = bool(forced)
        self.shape = (self.dimensions, *(self.cells,) * self.dimensions)
        self.reach: float | None = self.substeps
        self._dx, self._stage = self.length / self.cells, self.dt / self.substeps
        self._native = 1 + _WAVES * (2 * self.dimensions + 2)
        self._warned = False

    def initial(self, parameters: Array, *, seed: int) -> tuple[Array, Array | None]:
        """Draws initial states: 20 waves of long wavelength and the constants of the force.

        Args:
            parameters: Viscosities of shape ``(b,)``.
            seed: Decides, with the row, all that is random; the grid has no part in it.

        Returns:
            Fields ``(b, dimensions, *grid)``, cell averages with a standard deviation near .9,
            and the native part, or ``None`` without a force.

        Raises:
            ValueError: If ``seed`` is negative or a viscosity refused; see :meth:`step`.
        """
        seed = integer("seed", seed, least=0)
        check_floats("parameters", parameters)
        if parameters.ndim != 1:
            raise ValueError(f"parameters must have shape (b,), got {parameters.shape}")
        self._check_viscosities(parameters)
        generators = [np.random.default_rng((seed, row)) for row in range(len(parameters))]
        start = self._draw(generators, modes=(1, 3), amplitude=0.5)
        fields = waves.averages(start, np.zeros(len(parameters)), self.cells)
        if not self.forced:
            return fields, None
        constants = self._draw(generators, modes=(4, 8), amplitude=0.15)
        return fields, np.pad(
            constants.reshape(len(constants), self._native - 1), ((0, 0), (1, 0))
        )

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: Array | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Advances states by ``dt``.

        Args:
            fields: Velocities of shape ``(b, dimensions, *grid)``, float64.
            parameters: Viscosities of shape ``(b,)``.
            native: Time and force of each state, as :meth:`initial` and this method return it.
            forcing: A further force, of the shape of ``fields``, constant during the step.

        Returns:
            New fields and new native part.

        Raises:
            TypeError: If an array is none of float64.
            ValueError: If a shape is wrong, ``native`` is missing or unwanted, or diffusion is
                unstable for a viscosity.

        Warns:
            UserWarning: If the fields leave the limit (4), once for each object.
        """
        check_state(self.shape, fields, parameters, native)
        check_forcing(forcing, fields)
        self._check_viscosities(parameters)
        self._check_native(native, len(fields))
        # What blows up is inf or NaN, and whoever counts the steps names the one it happens in.
        with np.errstate(over="ignore", invalid="ignore"):
            self._warn_if_unstable(fields, parameters)
            forces = self._forces(native, forcing)
            moved = np.empty(fields.shape)
            for part in self._parts(len(fields)):
                force = None if forces is None else self._stage * forces[part]
                moved[part] = self._stages(fields[part], parameters[part], force)
        if native is not None:
            native = native.copy()
            native[:, 0] += self.dt
        return moved, native

    def cfl(self, fields: Array, parameters: Array | None = None) -> Array:
        """Computes how much of the stability limit (4) states use; 1 is the limit.

        Args:
            fields: Velocities of shape ``(b, dimensions, *grid)``.
            parameters: Viscosities of shape ``(b,)``; without them advection alone counts.

        Returns:
            Numbers of shape ``(b,)``.

        Raises:
            TypeError: If an array is none of float64.
            ValueError: If a shape or a viscosity is refused.
        """
        check_fields("fields", fields, self.shape)
        speed = np.abs(fields).sum(1).reshape(len(fields), -1).max(1)
        numbers: Array = speed * (self._stage / self._dx)
        if parameters is not None:
            check_state(self.shape, fields, parameters, None)
            self._check_viscosities(parameters)
            numbers = numbers + self._diffusion(parameters)
        return numbers

    def driving_force(self, native: Array) -> Array:
        """Computes the force that acts on states, at their times.

        Args:
            native: The native part of b states.

        Returns:
            Cell averages of the force, of shape ``(b, dimensions, *grid)``.

        Raises:
            TypeError: If ``native`` is none of float64.
            ValueError: If ``native`` has another shape, or this flow is not forced.
        """
        self._check_native(native, len(native))
        return self._averages(native)

    def restrict(self, fields: Array, factor: int) -> Array:
        """Averages fields over blocks of cells, which conserves momentum.

        Args:
            fields: Fields on this grid, of shape ``(b, dimensions, *grid)``.
            factor: How many cells along each axis become one.

        Returns:
            Fields on the coarser grid, ``(b, dimensions, cells / factor, ...)``.

        Raises:
            TypeError: If ``fields`` is none of float64.
            ValueError: If ``factor`` does not divide the number of cells.
        """
        check_fields("fields", fields, self.shape)
        factor = integer("factor", factor, least=1)
        if self.cells % factor:
            raise ValueError(f"factor must divide the {self.cells} cells, got {factor}")
        split = (self.cells // factor, factor) * self.dimensions
        blocks = fields.reshape(*fields.shape[:2], *split)
        averages: Array = blocks.mean(axis=tuple(range(3, blocks.ndim, 2)))
        return averages

    def _draw(
        self, generators: list[np.random.Generator], *, modes: tuple[int, int], amplitude: float
    ) -> Array:
        constants = np.empty((len(generators), _WAVES, 2 * self.dimensions + 2))
        for row, generator in zip(constants, generators, strict=True):
            row[:] = waves.draw(
                generator, _WAVES, dimensions=self.dimensions, modes=modes, amplitude=amplitude
            )
        return constants

    def _averages(self, native: Array) -> Array:
        constants = native[:, 1:].reshape(len(native), _WAVES, 2 * self.dimensions + 2)
        return waves.averages(constants, native[:, 0], self.cells)

    def _forces(self, native: Array | None, forcing: Array | None) -> Array | None:
        if native is None:
            return forcing
        force = self._averages(native)
        return force if forcing is None else force + forcing

    def _parts(self, rows: int) -> list[slice]:
        """Cuts a batch so that what a stage works on stays in the cache."""
        size = max(1, _BLOCK // math.prod(self.shape))
        return [slice(start, start + size) for start in range(0, rows, size)]

    def _stages(self, u: Array, parameters: Array, force: Array | None) -> Array:
        nu = parameters.reshape(-1, *(1,) * (u.ndim - 1))
        for _ in range(self.substeps):
            u = u + (self._flux_change(u, nu) if self.dimensions == 1 else self._change(u, nu))
            if force is not None:
                u += force
        return u

    def _flux_change(self, u: Array, nu: Array) -> Array:
        """What eq. (2) adds in a stage."""
        left, right = _faces(u, 2)
        flux = 0.5 * (np.maximum(left, 0) ** 2 + np.minimum(right, 0) ** 2)
        flux -= nu / self._dx * (right - left)
        change: Array = self._stage / self._dx * (flux[..., :-1] - flux[..., 1:])
        return change

    def _change(self, u: Array, nu: Array) -> Array:
        """What eq. (3) adds in a stage, without the force."""
        change = [self._change_along(u, nu, axis) for axis in range(self.dimensions)]
        return change[0] + change[1]

    def _change_along(self, u: Array, nu: Array, axis: int) -> Array:
        left, right = _faces(u, axis + 2)
        jump = right - left
        here, there = (_along(jump, part, axis + 2) for part in (slice(-1), slice(1, None)))
        wind = u[:, axis : axis + 1] * (0.5 * self._stage / self._dx)
        bend, drift = there - here, there + here
        bend *= np.abs(wind) + nu * (self._stage / self._dx**2)
        drift *= wind
        bend -= drift
        return bend

    def _diffusion(self, parameters: Array) -> Array:
        numbers: Array = parameters * (2 * self.dimensions * self._stage / self._dx**2)
        return numbers

    def _warn_if_unstable(self, fields: Array, parameters: Array) -> None:
        if self._warned or not len(fields):
            return
        worst = float(self.cfl(fields, parameters).max())
        if worst > 1:
            self._warned = True
            warnings.warn(
                f"fields leave the stability limit of a stage: CFL number {worst:.3g}, not 1 or "
                f"less; pass substeps={math.ceil(min(worst, 1e6) * self.substeps)} or more",
                stacklevel=3,
            )

    def _check_viscosities(self, parameters: Array) -> None:
        wrong = parameters[~((parameters >= 0) & np.isfinite(parameters))]
        if wrong.size:
            raise ValueError(f"parameters must be finite and not negative, got {wrong[0]}")
        diffusion = self._diffusion(parameters)
        if diffusion.size and diffusion.max() > 1:
            stages = math.ceil(diffusion.max() * self.substeps)
            raise ValueError(
                f"parameters must be at most {parameters.max() / diffusion.max():.6g} for "
                f"diffusion to be stable, got {parameters.max()}; pass substeps={stages} or more"
            )

    def _check_native(self, native: Array | None, rows: int) -> None:
        if not self.forced:
            if native is not None:
                raise ValueError("native must be None without a force, got an array")
            return
        if native is None:
            raise ValueError(
                "native must be time and constants of the force, got None; take it from "
                "initial(), or pass forced=False to Burgers"
            )
        check_floats("native", native)
        if native.shape != (rows, self._native):
            raise ValueError(f"native must have shape {(rows, self._native)}, got {native.shape}")


def _faces(u: Array, axis: int) -> tuple[Array, Array]:
    """The cells to the left and to the right of each of the n + 1 faces along an axis."""
    first, last = _along(u, slice(1), axis), _along(u, slice(-1, None), axis)
    wrapped = np.concatenate((last, u, first), axis)
    return _along(wrapped, slice(-1), axis), _along(wrapped, slice(1, None), axis)


def _along(u: Array, part: slice, axis: int) -> Array:
    view: Array = u[(slice(None),) * axis + (part,)]
    return view
