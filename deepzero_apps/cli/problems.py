"""Picks the simulators of a correction problem: built in, or the user's own ``module:function``."""

__all__ = ["BUILT_IN", "Grid", "problem_for"]

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepzero_apps.cli.own_problem import own_problem
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.burgers_twin import BurgersTwin
from deepzero_apps.correction.correctors import Free, Streamfunction
from deepzero_apps.correction.problem import Problem, Start
from deepzero_apps.correction.simulator import Array
from deepzero_apps.correction.wake_twin import WakeTwin
from solvers.burgers import Burgers
from solvers.navier_stokes import Wake

Grid = tuple[int, int]
"""Rows and columns."""

_REYNOLDS = tuple(100.0 * 2.0**k for k in range(6))
_REYNOLDS_VALIDATION = (125.0, 500.0, 2000.0)
_REYNOLDS_TEST = tuple(150.0 * 2.0**k for k in range(5))

_VISCOSITIES = tuple(round(0.05 * 4.0 ** (k / 9), 6) for k in range(10))
_VISCOSITIES_VALIDATION = (0.06, 0.1, 0.17)
_VISCOSITIES_TEST = (0.055, 0.08, 0.11, 0.15, 0.19)

_BUOYANCIES = (0.05, 0.08, 0.12, 0.16, 0.2)
_BUOYANCIES_VALIDATION = (0.07, 0.18)
_BUOYANCIES_TEST = (0.06, 0.1, 0.14)


def problem_for(name: str, *, grid: Grid | None, reference: Grid | None) -> Problem:
    """Builds or imports a problem.

    Args:
        name: One of ``BUILT_IN``, or ``module:function`` of your own, which returns a
            `deepzero_apps.correction.Problem`.
        grid: Rows and columns of the coarse grid; the problem's own by default.
        reference: Those of the reference's grid, a multiple of ``grid``.

    Returns:
        The problem.

    Raises:
        Misuse: If the name is unknown, the import fails, or the grids do not fit.
    """
    if ":" in name:
        if grid is not None or reference is not None:
            raise Misuse(
                f"--grid and --reference must be left out for {name}, which has its own grids"
            )
        return own_problem(name)
    if name not in BUILT_IN:
        raise Misuse(
            f"--problem must be one of {', '.join(BUILT_IN)} or module:function, got {name}"
        )
    build, *usual = BUILT_IN[name]
    coarse = grid or usual[0]
    fine = reference or _scaled(coarse, _factor(*usual))
    try:
        return build(coarse, _factor(coarse, fine))
    except (ValueError, TypeError) as error:
        raise Misuse(f"--grid {_words(coarse)}, --reference {_words(fine)}: {error}") from error


def _wake(grid: Grid, factor: int) -> Problem:
    coarse, fine = Wake(*grid, dt=2.0), Wake(*_scaled(grid, factor), dt=2.0)
    return Problem(
        name="wake",
        coarse=coarse,
        reference=fine,
        twin=WakeTwin(coarse),
        start=lambda parameters, seed: (fine.initial(parameters, seed=seed), None),
        cfl=coarse.cfl,
        **_around_disc(coarse, factor),
    )


def _phiflow_wake(grid: Grid, factor: int) -> Problem:
    from solvers.phiflow_wake import PhiFlowWake

    same, fine = Wake(*grid, dt=2.0), Wake(*_scaled(grid, factor), dt=2.0)
    coarse = PhiFlowWake(*grid, dt=2.0, substeps=2, tolerance=1e-9)
    return Problem(
        name="phiflow-wake",
        coarse=coarse,
        reference=fine,
        twin=_phiflow_twin(coarse),
        start=lambda parameters, seed: (fine.initial(parameters, seed=seed), None),
        cfl=same.cfl,
        **_around_disc(same, factor),
    )


def _around_disc(coarse: Wake, factor: int) -> dict[str, Any]:
    """What our wake and PhiFlow's share: layout, Reynolds numbers, what is looked at."""
    rows, columns = coarse.shape[1:]

    def restrict(fields: Array) -> Array:
        return coarse.project(coarse.restrict(fields, factor))

    return {
        "dt": coarse.dt,
        "outputs": {
            "streamfunction": Streamfunction(
                coarse.spacing,
                torch.from_numpy(coarse.free_corners),
                torch.from_numpy(coarse.disc_corners),
            ),
            "free": Free(torch.from_numpy(coarse.open_faces)),
        },
        "train": _REYNOLDS,
        "validation": _REYNOLDS_VALIDATION,
        "test": _REYNOLDS_TEST,
        "periodic": False,
        "settings": {"grid": [rows, columns], "factor": factor, "dt": coarse.dt},
        "warm_up": 250,
        "frames": 250,
        "restrict": restrict,
        "observe": coarse.vorticity,
        "quantity": "vorticity",
        "divergence": coarse.divergence,
        "solid": coarse.solid,
    }


def _burgers(grid: Grid, factor: int, *, dimensions: int) -> Problem:
    cells = _square(grid, dimensions)
    coarse = Burgers(cells, dimensions=dimensions)
    fine = Burgers(cells * factor, dimensions=dimensions, substeps=-(-3 * factor // 2))
    return Problem(
        name="burgers" if dimensions == 2 else "burgers-1d",
        coarse=coarse,
        reference=fine,
        warm_up=50,
        frames=200,
        start=_each(lambda parameters, seed: fine.initial(parameters, seed=seed)),
        twin=BurgersTwin(cells, dimensions=dimensions),
        cfl=coarse.cfl,
        **_in_periodic_box(coarse, factor),
    )


def _phiflow_burgers(grid: Grid, factor: int) -> Problem:
    from solvers.phiflow_burgers import PhiFlowBurgers

    same = Burgers(_square(grid, 2))
    coarse, fine = (PhiFlowBurgers(same.cells * k, dt=same.dt) for k in (1, factor))
    return Problem(
        name="phiflow-burgers",
        coarse=coarse,
        reference=fine,
        frames=60,
        start=_each(lambda parameters, seed: (fine.initial(parameters, seed=seed), None)),
        twin=_phiflow_twin(coarse),
        **_in_periodic_box(same, factor),
    )


def _in_periodic_box(coarse: Burgers, factor: int) -> dict[str, Any]:
    """What our Burgers flow and PhiFlow's share: cells, viscosities, what is looked at."""
    fine = Burgers(coarse.cells * factor, dimensions=coarse.dimensions)
    return {
        "dt": coarse.dt,
        "outputs": {"free": Free(torch.ones(coarse.shape))},
        "train": _VISCOSITIES,
        "validation": _VISCOSITIES_VALIDATION,
        "test": _VISCOSITIES_TEST,
        "periodic": True,
        "settings": {"cells": coarse.cells, "factor": factor, "dt": coarse.dt},
        "restrict": lambda fields: fine.restrict(fields, factor),
        "observe": lambda fields: fields[:, 0],
        "quantity": "velocity",
    }


def _phiflow_smoke(grid: Grid, factor: int) -> Problem:
    from solvers.phiflow_smoke import PhiFlowSmoke

    coarse, fine = PhiFlowSmoke(*grid), PhiFlowSmoke(*_scaled(grid, factor))
    inner = np.ones(grid, dtype=np.bool_)
    inner[-1] = inner[:, -1] = False  # ceiling and right wall
    movable = np.ones(coarse.shape)
    movable[0, :, -1] = movable[1, -1] = 0

    return Problem(
        name="phiflow-smoke",
        coarse=coarse,
        dt=coarse.dt,
        outputs={
            "streamfunction": Streamfunction(
                coarse.spacing, torch.from_numpy(inner), torch.zeros(grid, dtype=torch.bool)
            ),
            "free": Free(torch.from_numpy(movable)),
        },
        train=_BUOYANCIES,
        validation=_BUOYANCIES_VALIDATION,
        test=_BUOYANCIES_TEST,
        periodic=False,
        settings={"grid": list(grid), "factor": factor, "dt": coarse.dt},
        reference=fine,
        warm_up=5,
        frames=40,
        restrict=lambda fields: coarse.restrict(fields, factor),
        restrict_native=lambda native: coarse.restrict_native(native, factor),
        start=_each(lambda parameters, seed: fine.initial(parameters, seed=seed)),
        twin=_phiflow_twin(coarse),
        observe=coarse.vorticity,
        quantity="vorticity",
        divergence=coarse.divergence,
    )


def _phiflow_twin(simulator: Any) -> Any:  # noqa: ANN401 - PhiFlow has no types
    """PhiFlow takes seconds to import, which other problems need not pay."""
    from deepzero_apps.correction.phiflow_twin import PhiFlowTwin

    return PhiFlowTwin(simulator)


def _each(draw: Start) -> Start:
    """Draws every simulation by a seed of its own: they are to differ, whatever the group."""

    def start(parameters: Array, seed: int) -> tuple[Array, NDArray[Any] | None]:
        seeds = [_seed_of(seed, p) for p in parameters]
        drawn = [draw(parameters[i : i + 1], own) for i, own in enumerate(seeds)]
        natives = [native for _, native in drawn if native is not None]
        fields = np.concatenate([fields for fields, _ in drawn])
        return fields, np.concatenate(natives) if natives else None

    return start


def _seed_of(seed: int, parameter: float) -> int:
    """A seed of its own for a parameter, the same in any group and process."""
    return int(
        np.random.SeedSequence([seed, *np.float64(parameter).tobytes()]).generate_state(1)[0]
    )


def _factor(coarse: Grid, fine: Grid) -> int:
    """The ratio of two grids; a line of cells has one axis.

    Raises:
        Misuse: If it is no whole number, or not the same along both axes.
    """
    lines = coarse[0] == fine[0] == 1
    factors = {f / c for f, c in zip(fine[lines:], coarse[lines:], strict=True)}
    factor = factors.pop()
    if factors or factor != math.floor(factor) or factor < 2:
        raise Misuse(
            "--reference must be --grid times the same whole number, at least 2, along both "
            f"axes, got {_words(fine)} for {_words(coarse)}"
        )
    return int(factor)


def _scaled(grid: Grid, factor: int) -> Grid:
    return grid[0] if grid[0] == 1 else grid[0] * factor, grid[1] * factor


def _square(grid: Grid, dimensions: int) -> int:
    rows, columns = grid
    if dimensions == 2 and rows != columns:
        raise Misuse(f"--grid must be square for this problem, got {_words(grid)}")
    if dimensions == 1 and rows != 1:
        raise Misuse(f"--grid must be 1xCOLUMNS for this problem, got {_words(grid)}")
    return columns


def _words(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


_Build = Callable[[Grid, int], Problem]

BUILT_IN: dict[str, tuple[_Build, Grid, Grid]] = {
    "wake": (_wake, (20, 40), (80, 160)),
    "burgers": (partial(_burgers, dimensions=2), (32, 32), (128, 128)),
    "burgers-1d": (partial(_burgers, dimensions=1), (1, 64), (1, 256)),
    "phiflow-wake": (_phiflow_wake, (20, 40), (80, 160)),
    "phiflow-burgers": (_phiflow_burgers, (32, 32), (64, 64)),
    "phiflow-smoke": (_phiflow_smoke, (16, 16), (32, 32)),
}
"""Problems by name: how they are built, their coarse grid, their reference's grid."""
