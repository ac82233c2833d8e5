"""A correction problem of the user's own: imported, checked, its errors told in one line."""

__all__ = ["own_problem"]

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.simulator import Array, Metered, Simulator, SimulatorFailure

_P = ParamSpec("_P")
_R = TypeVar("_R")


def own_problem(name: str) -> Problem:
    """Imports a problem of the user's.

    Args:
        name: ``module:function``, found from the working directory; a `Problem` or a function
            without arguments that returns one.

    Returns:
        The problem. Whatever its parts raise becomes an error that names the part.

    Raises:
        Misuse: If there is no such problem, or it lacks something.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found: object = getattr(import_module(module), attribute)
        made = found if isinstance(found, Problem) or not callable(found) else found()
    except Exception as error:  # whatever the user's module raises while it is run
        raise Misuse(
            f"--problem must name an importable module:function, got {name}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove("")
    if not isinstance(made, Problem):
        raise Misuse(
            f"--problem {name} must give a deepzero_apps.correction.Problem, "
            f"got {type(made).__name__}"
        )
    _check_own(made, name)
    return replace(
        made,
        name=name,
        coarse=_Own(made.coarse, f"the coarse simulator of {name}"),
        reference=made.reference and _Own(made.reference, f"the reference simulator of {name}"),
        restrict=_told(made.restrict, f"restrict of {name}"),
        start=_told(made.start, f"start of {name}"),
        observe=_told(made.observe, f"observe of {name}"),
        divergence=_told(made.divergence, f"divergence of {name}"),
        cfl=_told(made.cfl, f"cfl of {name}"),
    )


def _check_own(problem: Problem, name: str) -> None:
    try:
        for simulator in filter(None, (problem.coarse, problem.reference)):
            Metered(simulator)
    except TypeError as error:
        raise Misuse(f"--problem {name}: {error}") from error
    if not problem.outputs:
        raise Misuse(f"--problem {name} must have an output, got none; see correctors.Free")


class _Own:
    """A simulator of the user's: whatever it raises or answers wrongly is told in one line."""

    def __init__(self, simulator: Simulator, name: str) -> None:
        self._simulator, self._name, self._steps = simulator, name, 0
        self.shape = tuple(simulator.shape)
        self.reach = simulator.reach
        self.accepts_forcing = simulator.accepts_forcing

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        """Advances b states by one time step; see `Simulator.step`."""
        pushed = {} if forcing is None else {"forcing": forcing}
        try:
            after, kept = self._simulator.step(fields, parameters, native, **pushed)
            answer = np.asarray(after)
        except Exception as error:  # whatever the user's simulator raises
            raise SimulatorFailure(
                f"{self._name} failed at step {self._steps + 1}: {type(error).__name__}: {error}",
                step=self._steps,
                fields=fields,
                native=native,
            ) from error
        self._steps += 1
        return answer, kept


def _told(function: Callable[_P, _R] | None, name: str) -> Callable[_P, _R] | None:
    """A function of the user's: whatever it raises is told in one line."""
    if function is None:
        return None

    def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
        try:
            return function(*arguments, **named)
        except Exception as error:
            raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error

    return call
