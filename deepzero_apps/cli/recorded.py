"""The trajectories of a problem on disk: made once, continued after a crash, shared by runs.

Their folder holds two sets: ``reference``, and ``coarse``, what the coarse simulator makes of the
reference's first frames by itself.
"""

__all__ = ["reference_trajectories", "store_coarse", "usual_folder"]

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deepzero_apps.cli.progress import watched
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.rollout import rollout
from deepzero_apps.correction.simulator import Array
from deepzero_apps.correction.trajectories import Trajectories, make
from deepzero_apps.correction.trajectory_files import TrajectoryError, TrajectoryFolder, load

_GROUP = 4
"""Reference simulations that are made side by side: few enough that little is lost by a kill."""

Making = Callable[[Sequence[float], Callable[[int, int], None]], Trajectories]
"""Parameters, and what is told of each step, to simulations."""


def usual_folder(problem: Problem, seed: int) -> Path:
    """Returns where trajectories go if no folder is named.

    Raises:
        Misuse: If there is no simulator to make them.
    """
    if problem.reference is None:
        raise Misuse(
            f"--data must name the folder of trajectories of {problem.name}, which has no "
            "reference simulator, got none"
        )
    grids = ["x".join(map(str, s.shape[1:])) for s in (problem.coarse, problem.reference)]
    name = re.sub(r"[^\w.-]", "-", problem.name)
    return Path("runs", "trajectories", f"{name}-{grids[0]}-{grids[1]}-seed{seed}").absolute()


def reference_trajectories(problem: Problem, folder: Path, seed: int) -> Trajectories:
    """Reads the reference's trajectories, and makes those that are missing first.

    Args:
        problem: What they are of.
        folder: The folder of both sets, or of the reference's alone.
        seed: The seed of the starts.

    Returns:
        The trajectories of all parameters.

    Raises:
        Misuse: If the problem lacks what makes them.
        TrajectoryError: If they are of another problem, damaged or in use.
    """
    path = folder if (folder / "trajectories.json").exists() else folder / "reference"
    settings = {"problem": problem.name, **problem.settings}
    if problem.reference is None:
        return load(path, settings)
    settings |= {"warm_up": problem.warm_up, "every": problem.every, "frames": problem.frames}
    settings |= {"seed": seed}
    try:
        found = load(path, settings)
        if tuple(found.parameters) == problem.parameters:
            return found
    except TrajectoryError:  # absent or unfinished; anything else is refused again below
        pass
    making = _making(problem, seed)
    with TrajectoryFolder(path, settings, problem.parameters) as place:
        _make_missing(problem, place, making)
        return place.load()


def store_coarse(problem: Problem, path: Path, reference: Trajectories) -> None:
    """Stores the coarse simulator's own trajectories, where they are missing.

    Args:
        problem: What they are of.
        path: Their folder.
        reference: The reference's trajectories, whose first frames they start from.

    Raises:
        TrajectoryError: If the folder holds something else or is in use.

    Warns:
        UserWarning: If the simulator blows up: such a trajectory cannot be stored.
    """
    settings = {**reference.meta, "source": "coarse"}
    try:
        load(path, settings)
    except TrajectoryError:  # absent or unfinished; anything else is refused again below
        with TrajectoryFolder(path, settings, reference.parameters.tolist()) as place:
            missing = place.missing()
            if not missing:
                place.load()  # whole by now, or damaged
                return
            runs = _coarse_runs(problem, reference[missing])
            for index, fields in zip(missing, runs, strict=True):
                parameters = reference.parameters[index : index + 1]
                if np.isfinite(fields).all():
                    place.save(index, Trajectories(fields[None], parameters))
                else:
                    _warn_of_blow_up(fields, parameters[0])


def _making(problem: Problem, seed: int) -> Making:
    reference, start, restrict = problem.reference, problem.start, problem.restrict
    if reference is None or start is None or restrict is None:
        raise Misuse(
            f"--problem {problem.name} must have start and restrict beside its reference "
            "simulator, got none"
        )

    def made(parameters: Sequence[float], progress: Callable[[int, int], None]) -> Trajectories:
        numbers = np.array(parameters)
        fields, native = start(numbers, seed)
        fine = make(
            reference,
            fields,
            numbers,
            restrict=restrict,
            frames=problem.frames,
            warm_up=problem.warm_up,
            every=problem.every,
            native=native,
            progress=progress,
        )
        return _with_coarse_native(fine, problem)

    return made


def _with_coarse_native(made: Trajectories, problem: Problem) -> Trajectories:
    """Turns the reference's native parts into those of the coarse simulator."""
    if made.native is None or problem.restrict_native is None:
        return made
    shape = made.native.shape
    coarse = problem.restrict_native(made.native.reshape(-1, *shape[2:]))
    return replace(made, native=coarse.reshape(*shape[:2], *coarse.shape[1:]))


def _make_missing(problem: Problem, place: TrajectoryFolder, making: Making) -> None:
    missing = place.missing()
    groups = [missing[i : i + _GROUP] for i in range(0, len(missing), _GROUP)]
    steps = problem.warm_up + (problem.frames - 1) * problem.every
    done = 0

    def progress(step: int, _: int) -> None:
        nonlocal done
        done = before + step * len(group)

    title = f"{problem.name}: {len(missing)} reference simulations"
    with watched(lambda: done, title, total=steps * len(missing)):
        for group in groups:
            before = done
            made = making([place.parameters[index] for index in group], progress)
            for k, index in enumerate(group):
                place.save(index, made[k])


def _coarse_runs(problem: Problem, reference: Trajectories) -> Array:
    first = reference.fields[:, :1]
    native = None if reference.native is None else reference.native[:, 0]
    steps = reference.fields.shape[1] - 1
    after = rollout(problem.coarse, first[:, 0], reference.parameters, native, steps=steps)
    return np.concatenate((first, after), 1)


def _warn_of_blow_up(fields: Array, parameter: float) -> None:
    good = np.isfinite(fields).all(tuple(range(1, fields.ndim)))
    warnings.warn(
        f"the coarse simulator blows up by itself at parameter {parameter:g}, after "
        f"{int(good.sum()) - 1} steps; that trajectory is not stored",
        stacklevel=2,
    )
