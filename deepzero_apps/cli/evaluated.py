"""Rollouts from frames of given simulations: made, scored, drawn, stored."""

__all__ = [
    "Course",
    "animate",
    "course",
    "draw",
    "failed",
    "finite",
    "judged",
    "row",
    "show",
    "store",
    "title_of",
]

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deepzero_apps.cli.rolled import Roller, rolled
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.evaluation import Scores, evaluate
from deepzero_apps.correction.pictures import animate_fields, plot_fields
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.report import Row, plot_errors, summarize, table
from deepzero_apps.correction.rollout import Started, started_at
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.runs.files import replace
from deepzero_apps.runs.records import plain

_USUAL_STEPS = 100
_SHOWN = 4
_ANIMATED = 50


@dataclass(frozen=True)
class Course:
    """Where rollouts start, and what they should become.

    Attributes:
        problem: The problem.
        started: The starts, simulation by simulation.
        starts: The number of starts of each simulation.
        times: The time of each frame since the start, ``(steps,)``.
    """

    problem: Problem
    started: Started
    starts: int
    times: Array

    @property
    def shown(self) -> int:
        """The rollout that is drawn: the first of the middle simulation."""
        return len(self.started.fields) // self.starts // 2 * self.starts


def course(
    problem: Problem, trajectories: Trajectories, *, steps: int | None, starts: int
) -> Course:
    """Picks the starts, evenly spread over the frames.

    Args:
        problem: The problem.
        trajectories: The simulations.
        steps: How many steps a rollout makes; 100 by default, or what the frames allow.
        starts: How many rollouts start in each simulation.

    Returns:
        The course.

    Raises:
        Misuse: If the simulations have too few frames.
    """
    frames = trajectories.fields.shape[1]
    most = frames - starts
    if most < 2:
        raise Misuse(
            f"--starts must leave 2 of the {frames} frames of a simulation for a rollout, "
            f"got {starts}"
        )
    wanted = min(_USUAL_STEPS, most) if steps is None else steps
    if not 2 <= wanted <= most:
        raise Misuse(
            f"--rollout-steps must lie in [2, {most}] for {starts} starts in the {frames} frames "
            f"of a simulation, got {wanted}"
        )
    first = np.linspace(0, frames - 1 - wanted, starts).round().astype(int)
    started = started_at(trajectories, tuple(first.tolist()), wanted)
    return Course(problem, started, starts, problem.dt * np.arange(1, wanted + 1))


def judged(simulator: Simulator, on: Course, pool: Roller | None = None) -> tuple[Array, Scores]:
    """Rolls a simulator out.

    Args:
        simulator: The coarse simulator of the course's problem, or it with a corrector.
        on: The course.
        pool: Workers that know the simulator; this process by default.

    Returns:
        The states ``(b, steps, c, *grid)``, NaN after a blow-up, and their scores.
    """
    states = rolled(simulator, on.started, steps=len(on.times), pool=pool)
    return states, _scores(states, on)


def failed(on: Course) -> Scores:
    """The scores of a simulation that could not even be trained: blown up from the start."""
    return _scores(np.full_like(on.started.references, np.nan), on)


def row(name: str, scores: Sequence[Scores], *, queries: int, seconds: float) -> dict[str, Any]:
    """Returns a row of the table, of JSON's types."""
    summary = summarize(name, scores, simulator_steps=queries, seconds=seconds)
    return finite(dict(summary))


def finite(document: dict[str, Any]) -> dict[str, Any]:
    """Replaces what strict JSON cannot hold by None."""
    cleaned: dict[str, Any] = plain(document, "document")
    return cleaned


def draw(
    on: Course, states: Mapping[str, Array], scores: Mapping[str, Sequence[Scores]], folder: Path
) -> None:
    """Draws ``errors.png`` and ``fields.png``.

    Args:
        on: The course.
        states: The states by what made them; drawn below the reference.
        scores: The scores of each seed by what made them.
        folder: Where the pictures go.
    """
    curves = {name: np.stack([s.mae for s in own]) for name, own in scores.items()}
    plot_errors(on.times, curves, folder / "errors.png", title=_subject(on))
    picked = np.linspace(0, len(on.times) - 1, min(_SHOWN, len(on.times))).round().astype(int)
    rows = {name: shown[picked] for name, shown in _observed(on, states).items()}
    plot_fields(rows, folder / "fields.png", times=on.times[picked], **_look(on, rows))


def animate(on: Course, states: Mapping[str, Array], path: Path) -> None:
    """Writes a GIF of reference and rollouts."""
    every = -(-len(on.times) // _ANIMATED)
    rows = {name: shown[::every] for name, shown in _observed(on, states).items()}
    animate_fields(rows, path, times=on.times[::every], **_look(on, rows))


def store(on: Course, states: Mapping[str, Array], path: Path) -> None:
    """Writes all states to an npz file, in single precision, that holds no objects."""
    stream = io.BytesIO()
    every = {"reference": on.started.references, **states}
    arrays = {name: fields.astype(np.float32) for name, fields in every.items()}
    np.savez(
        stream, allow_pickle=False, times=on.times, parameters=on.started.parameters, **arrays
    )
    replace(path, stream.getvalue())


def show(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Prints the table at its own width: a narrow terminal wraps lines, but no number is cut."""
    laid_out = table([Row(**each) for each in rows], title=title)  # type: ignore[typeddict-item]
    width = Console(width=1_000).measure(laid_out).maximum
    Console(width=max(Console().width, width)).print(laid_out)


def title_of(on: Course, split: str) -> str:
    """Says what a table is of."""
    rollouts, steps = len(on.started.fields), len(on.times)
    return f"{rollouts} rollouts of {steps} steps, {split} simulations of {_subject(on)}"


def _subject(on: Course) -> str:
    return f"{on.problem.name} on {' x '.join(map(str, on.problem.coarse.shape[1:]))} cells"


def _scores(states: Array, on: Course) -> Scores:
    return evaluate(
        states,
        on.started.references,
        times=on.times,
        periodic=on.problem.periodic,
        observe=on.problem.observe,
        divergence=on.problem.divergence,
    )


def _observed(on: Course, states: Mapping[str, Array]) -> dict[str, Array]:
    """What is drawn of the shown rollout, ``(steps, rows, columns)``, the reference first."""
    every = {"reference": on.started.references, **states}
    return {name: _quantity(on.problem, fields[on.shown]) for name, fields in every.items()}


def _quantity(problem: Problem, fields: Array) -> Array:
    """The quantity of each frame; NaN where the simulation has blown up."""
    good = np.isfinite(fields).all(tuple(range(1, fields.ndim)))
    seen = np.full((len(fields), *fields.shape[2:]), np.nan)
    if good.any():
        seen[good] = (
            fields[good][:, 0] if problem.observe is None else problem.observe(fields[good])
        )
    return seen if seen.ndim == 3 else seen[:, None]


def _look(on: Course, rows: Mapping[str, Array]) -> dict[str, Any]:
    height, width = next(iter(rows.values())).shape[1:]
    parameter = on.started.parameters[on.shown]
    return {
        "solid": on.problem.solid,
        "extent": (0.3 * width, width) if height == 1 else None,  # a line of cells as a strip
        "title": f"{on.problem.name}, parameter {parameter:g}",
        "label": on.problem.quantity,
    }
