"""A correction problem of the user's own: imported, checked, its errors told in one line."""

__all__ = ["own_problem"]

import json
import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deepzero_apps.cli.imported import importing, named
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
    with importing("--problem", "module:function", name):
        found = named(name)
        made = found if isinstance(found, Problem) or not callable(found) else found()
    if not isinstance(made, Problem):
        raise Misuse(
            f"--problem {name} must give a deepzero_apps.correction.Problem, "
            f"got {type(made).__name__}"
        )
    _check_own(made, name)
    return replace(
        made,
        name=name,
        train=tuple(map(float, made.train)),
        validation=tuple(map(float, made.validation)),
        test=tuple(map(float, made.test)),
        coarse=_Own(made.coarse, f"the coarse simulator of {name}"),
        reference=made.reference and _Own(made.reference, f"the reference simulator of {name}"),
        restrict=_told(made.restrict, f"restrict of {name}"),
        start=_told(made.start, f"start of {name}"),
        observe=_told(made.observe, f"observe of {name}"),
        divergence=_told(made.divergence, f"divergence of {name}"),
        cfl=_told(made.cfl, f"cfl of {name}"),
    )


def _check_own(problem: Problem, name: str) -> None:
    """Refuses before any trajectory is made what would only fail, or mislead, after that."""
    try:
        for simulator in filter(None, (problem.coarse, problem.reference)):
            _ = Metered(simulator).reach
        json.dumps(dict(problem.settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Misuse(f"--problem {name}: {error}") from error
    if not problem.outputs:
        raise Misuse(f"--problem {name} must have an output, got none; see correctors.Free")
    if problem.periodic and problem.coarse.shape[-1:] == (1,):
        raise Misuse(f"--problem {name} must have at least 2 columns where periodic, got 1")
    _check_parameters(problem, name)
    _check_outputs(problem, name)


def _check_parameters(problem: Problem, name: str) -> None:
    seen: set[float] = set()
    for part in ("train", "validation", "test"):
        own = getattr(problem, part)
        if not len(own) or not all(isinstance(p, Real) and 0 < float(p) < math.inf for p in own):
            raise Misuse(
                f"--problem {name}: {part} must be positive and finite numbers, at least one, got "
                f"{own}; a corrector sees their logarithm"
            )
        if both := seen & set(own):
            raise Misuse(
                f"--problem {name}: {part} must not share a parameter with another part, got "
                f"{min(both)}; what is tested is never seen in training"
            )
        seen |= set(own)


def _check_outputs(problem: Problem, name: str) -> None:
    shape = tuple(problem.coarse.shape)
    if len(shape) not in (2, 3):
        return  # refused elsewhere, for any problem
    for key, output in problem.outputs.items():
        try:
            found = tuple(output(torch.zeros(1, output.channels, *shape[1:])).shape[1:])
        except Exception as error:  # whatever the user's output raises
            raise Misuse(
                f"--problem {name}: output {key} failed: {type(error).__name__}: {error}"
            ) from error
        if found != shape:
            raise Misuse(
                f"--problem {name}: output {key} must answer corrections of shape {shape}, "
                f"got {found}"
            )


class _Own:
    """A simulator of the user's: whatever it raises or answers wrongly is told in one line.

    It gets copies and its answers are copied, so that one that works in place, or in a buffer that
    it uses again, harms nobody.
    """

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
        pushed = {} if forcing is None else {"forcing": forcing.copy()}
        given = fields.copy(), parameters.copy(), None if native is None else native.copy()
        try:
            after, kept = self._simulator.step(*given, **pushed)
            answer = np.array(after), None if kept is None else np.array(kept)
        except Exception as error:  # whatever the user's simulator raises
            what = f"failed at step {self._steps + 1}: {type(error).__name__}: {error}"
            raise self._failure(what, fields, native) from error
        if wrong := _wrong(*answer, fields):
            raise self._failure(f"{wrong} at step {self._steps + 1}", fields, native)
        self._steps += 1
        return answer

    def _failure(self, what: str, fields: Array, native: NDArray[Any] | None) -> SimulatorFailure:
        return SimulatorFailure(
            f"{self._name} {what}", step=self._steps, fields=fields, native=native
        )


def _wrong(after: Array, kept: NDArray[Any] | None, fields: Array) -> str:
    """What is wrong with an answer; nothing where its numbers alone may be."""
    if after.shape != fields.shape or after.dtype != np.float64:
        wanted = f"float64 fields of shape {fields.shape}"
        return f"must answer {wanted}, got {after.dtype} of {after.shape}"
    if kept is not None and kept.shape[:1] != fields.shape[:1]:
        return f"must answer {len(fields)} native parts, got an array of shape {kept.shape}"
    return ""


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
