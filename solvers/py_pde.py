r"""Equations written as text, on periodic grids, by the package py-pde (an optional extra).

For fields u of named components, a parameter p of each state and time t,

.. math::
    \partial_t u = R(u, p, t) + f                                                    \tag{1}

where R is written in py-pde's language: ``laplace(u)``, ``d_dx(u)``, ``gradient_squared(u)``,
products, powers, functions. It is compiled once, the parameter being one more component that does
not change, and then called four times a stage by the classical scheme of Runge and Kutta; f is
held constant during a step.

References:
    | py-pde: A Python package for solving partial differential equations (Zwicker, 2020)
    | https://doi.org/10.21105/joss.02158
"""

__all__ = ["PyPde"]

import importlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.states import check_forcing, check_state, integer, positive

Array = NDArray[np.float64]


class PyPde:
    """An equation of py-pde as a simulator; its native part is the time of each state, (b, 1).

    Args:
        equation: For each component its name and the rate that it changes at, as text. The
            components of a field have the order of this mapping.
        cells: The number of cells along each axis; their count is the number of dimensions.
        length: The length of the periodic box along each axis.
        dt: The time that a step advances by.
        substeps: How many stages of length ``dt / substeps`` a step takes.
        parameter: The name by which the equation calls the parameter of a state.
        reach: How many cells a step carries a change, if known. A stage carries it four times as
            far as the widest stencil of the equation.
        backend: What py-pde compiles with: ``"numba"``, or ``"numpy"`` for none.

    Raises:
        ImportError: If py-pde is not installed.
        ValueError: If an argument is out of its range or py-pde refuses the equation.

    Notes:
        Steps are explicit: with a viscosity nu keep ``nu * dt / substeps / dx**2`` below about
        .7 / (2 dimensions). The first step compiles, which takes seconds.

        Good values: ``PyPde({"u": "nu * laplace(u) - u * d_dx(u)"}, [64], length=64)``.
    """

    accepts_forcing = True

    def __init__(
        self,
        equation: Mapping[str, str],
        cells: Sequence[int],
        *,
        length: float = 32.0,
        dt: float = 0.1,
        substeps: int = 1,
        parameter: str = "nu",
        reach: float | None = None,
        backend: str = "numba",
    ) -> None:
        if not equation or parameter in equation:
            raise ValueError(
                f"equation must name components other than the parameter {parameter!r}, got "
                f"{list(equation)}"
            )
        grid = tuple(integer("cells", count, least=1) for count in cells)
        length = positive("length", length)
        self.shape = (len(equation), *grid)
        self.dt = positive("dt", dt)
        self.substeps = integer("substeps", substeps, least=1)
        self.reach = reach
        self._rate = _compiled({**equation, parameter: "0"}, grid, length, backend)

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: Array | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, Array]:
        """Advances states by ``dt``.

        Args:
            fields: Of shape ``(b, components, *grid)``.
            parameters: The parameter of each state, of shape ``(b,)``.
            native: The time of each state, of shape ``(b, 1)``; zero by default.
            forcing: A further rate, of the shape of ``fields``.

        Returns:
            New fields and times.

        Raises:
            TypeError: If an array is none of float64.
            ValueError: If an argument does not fit.
        """
        check_state(self.shape, fields, parameters, native)
        check_forcing(forcing, fields)
        times = np.zeros((len(fields), 1)) if native is None else native
        if times.shape != (len(fields), 1):
            raise ValueError(f"native must have shape ({len(fields)}, 1), got {times.shape}")
        after = np.empty_like(fields)
        for row, field in enumerate(fields):
            state = np.empty((self.shape[0] + 1, *self.shape[1:]))
            force = np.zeros_like(state)
            state[:-1], state[-1] = field, parameters[row]
            if forcing is not None:
                force[:-1] = forcing[row]
            after[row] = self._advanced(state, float(times[row, 0]), force)[:-1]
        return after, times + self.dt

    def _advanced(self, state: Array, time: float, force: Array) -> Array:
        h = self.dt / self.substeps
        for stage in range(self.substeps):
            t = time + stage * h
            a = self._rate(state, t) + force
            b = self._rate(state + h / 2 * a, t + h / 2) + force
            c = self._rate(state + h / 2 * b, t + h / 2) + force
            d = self._rate(state + h * c, t + h) + force
            state = state + h / 6 * (a + 2 * b + 2 * c + d)
        return state


def _compiled(
    equation: dict[str, str], grid: tuple[int, ...], length: float, backend: str
) -> Callable[[Array, float], Array]:
    try:
        pde = importlib.import_module("pde")
    except ImportError as error:
        raise ImportError("PyPde must find the package py-pde: pip install py-pde") from error
    box = pde.CartesianGrid([[0, length]] * len(grid), grid, periodic=True)
    example = pde.FieldCollection([pde.ScalarField(box) for _ in equation])
    try:
        rate: Callable[[Array, float], Array] = pde.PDE(equation).make_pde_rhs(
            example, backend=backend
        )
        rate(np.zeros((len(equation), *grid)), 0.0)
    except Exception as error:
        raise ValueError(f"equation must be one of py-pde's, got {equation}: {error}") from error
    return rate
