"""The trajectories of a problem on disk: made once, continued after a crash, shared by runs.

Their folder holds two sets: ``reference``, and ``coarse``, what the coarse simulator makes of the
reference's first frames by itself.
"""

__all__ = ["reference_trajectories", "simulated", "store_coarse", "usual_folder"]

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deepzero_apps.cli.progress import watched
from deepzero_apps.cli.rolled import Roller, rolled
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.problem import Problem, Start
from deepzero_apps.correction.rollout import Started
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.trajectories import Trajectories, make
from deepzero_apps.correction.trajectory_files import TrajectoryError, TrajectoryFolder, load

_LOGGER = logging.getLogger(__name__)

_GROUP = 4
"""Reference simulations that are made side by side: few enough that little is lost by a kill."""


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


def reference_trajectories(
    problem: Problem, folder: Path, seed: int, *, pool: Roller | None = None
) -> Trajectories:
    """Reads the reference's trajectories, and makes those that are missing first.

    Args:
        problem: What they are of.
        folder: The folder of both sets, or of the reference's alone.
        seed: The seed of the starts.
        pool: Workers that make a simulation a call, to the same bits; this process by default.

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
    _refuse_unmade(problem)
    _LOGGER.info("reference trajectories of %s are made in %s", problem.name, path)
    with TrajectoryFolder(path, settings, problem.parameters) as place:
        if pool is None:
            _make_missing(problem, place, seed)
        else:
            _ask_for_missing(problem, place, seed, pool)
        return place.load()


def store_coarse(
    problem: Problem, path: Path, reference: Trajectories, *, pool: Roller | None = None
) -> None:
    """Stores the coarse simulator's own trajectories, where they are missing.

    Args:
        problem: What they are of.
        path: Their folder.
        reference: The reference's trajectories, whose first frames they start from.
        pool: Workers that make them; this process by default.

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
            runs = _coarse_runs(problem, reference[missing], pool)
            for index, fields in zip(missing, runs, strict=True):
                parameters = reference.parameters[index : index + 1]
                if np.isfinite(fields).all():
                    place.save(index, Trajectories(fields[None], parameters))
                else:
                    _warn_of_blow_up(fields, parameters[0])


def simulated(
    problem: Problem,
    parameters: Sequence[float],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Makes reference simulations, which depend on nothing but parameter and seed.

    Args:
        problem: What they are of.
        parameters: The parameter of each.
        seed: The seed of the starts.
        progress: Told the number of steps done and to do, after each step.

    Returns:
        The trajectories, on the coarse grid.

    Raises:
        Misuse: If the problem lacks what makes them.
        SimulatorFailure: If the reference blows up.
    """
    reference, start, restrict = _refuse_unmade(problem)
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


def _refuse_unmade(problem: Problem) -> tuple[Simulator, Start, Callable[[Array], Array]]:
    """What makes the trajectories of a problem, all of it."""
    reference, start, restrict = problem.reference, problem.start, problem.restrict
    if reference is None or start is None or restrict is None:
        raise Misuse(
            f"--problem {problem.name} must have start and restrict beside its reference "
            "simulator, got none"
        )
    return reference, start, restrict


def _with_coarse_native(made: Trajectories, problem: Problem) -> Trajectories:
    """Turns the reference's native parts into those of the coarse simulator."""
    if made.native is None or problem.restrict_native is None:
        return made
    shape = made.native.shape
    coarse = problem.restrict_native(made.native.reshape(-1, *shape[2:]))
    return replace(made, native=coarse.reshape(*shape[:2], *coarse.shape[1:]))


def _make_missing(problem: Problem, place: TrajectoryFolder, seed: int) -> None:
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
            parameters = [place.parameters[index] for index in group]
            made = simulated(problem, parameters, seed, progress)
            for k, index in enumerate(group):
                place.save(index, made[k])


def _ask_for_missing(problem: Problem, place: TrajectoryFolder, seed: int, pool: Roller) -> None:
    missing = place.missing()
    calls = [([place.parameters[index]], seed) for index in missing]
    done = 0
    title = f"{problem.name}: reference simulations"
    with watched(lambda: done, title, total=len(missing)):
        for which, made in pool.ask("reference", calls):
            place.save(missing[which], made)
            done += 1


def _coarse_runs(problem: Problem, reference: Trajectories, pool: Roller | None) -> Array:
    first = reference.fields[:, :1]
    native = None if reference.native is None else reference.native[:, 0]
    steps = reference.fields.shape[1] - 1
    started = Started(first[:, 0], reference.parameters, reference.fields[:, 1:], native)
    after = rolled(problem.coarse, started, steps=steps, pool=pool)
    return np.concatenate((first, after), 1)


def _warn_of_blow_up(fields: Array, parameter: float) -> None:
    good = np.isfinite(fields).all(tuple(range(1, fields.ndim)))
    warnings.warn(
        f"the coarse simulator blows up by itself at parameter {parameter:g}, after "
        f"{int(good.sum()) - 1} steps; that trajectory is not stored",
        stacklevel=2,
    )
