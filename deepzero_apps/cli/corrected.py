"""What is corrected: the settings that describe it, its trajectories, its units, its corrector."""

__all__ = [
    "USUAL",
    "CorrectionSettings",
    "ProblemSettings",
    "Scene",
    "Units",
    "corrector_for",
    "problem_of",
    "scene",
]

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from deepzero_apps.cli.problems import Grid, problem_for
from deepzero_apps.cli.recorded import reference_trajectories, store_coarse, usual_folder
from deepzero_apps.cli.rolled import Roller
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import DrivenSettings, Misuse
from deepzero_apps.cli.spreading import WorkersFlags
from deepzero_apps.correction import correctors
from deepzero_apps.correction.correctors import Corrector, NetworkName
from deepzero_apps.correction.probing import Probed, probe
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.simulator import Metered
from deepzero_apps.correction.training import one_step_error
from deepzero_apps.correction.trajectories import Split, Trajectories
from deepzero_apps.correction.trajectory_files import TrajectoryError
from deepzero_apps.correction.unrolled import LossName
from deepzero_apps.zeroth_order.randomness import generator_for

USUAL = "wake"
"""The problem if none is named."""


class ProblemSettings(WorkersFlags):
    """Which simulators, and where their trajectories are."""

    problem: str = USUAL
    """wake, burgers, burgers-1d, phiflow-wake, phiflow-burgers, phiflow-smoke, or your own module:function."""

    grid: str | None = None
    """ROWSxCOLUMNS of the coarse grid, by default the problem's (wake: 20x40)."""

    reference: str | None = None
    """Those of the reference's grid; 32x64 against 128x256 is the setting of Um et al."""

    data: Anywhere | None = None
    """The folder of trajectories, made if absent; below runs/trajectories by default."""

    data_seed: int | None = Field(None, ge=0, lt=2**32)
    """Seed of the trajectories; --seed by default."""

    @field_validator("grid", "reference")
    @classmethod
    def _written_as_grid(cls, grid: str | None) -> str | None:
        if grid is not None and not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", grid):
            raise ValueError(f"must be ROWSxCOLUMNS, such as 20x40, got {grid}")
        return grid

    @field_validator("device")
    @classmethod
    def _usable(cls, device: str) -> str:
        if device != "cpu":
            raise ValueError(
                f"device must be cpu, got {device}; the network is small and waits for a "
                "simulator that runs there"
            )
        return device


class CorrectionSettings(ProblemSettings, DrivenSettings):
    """What is corrected, with what kind of corrector, by which loss."""

    corrector: NetworkName = "cnn"
    """The network: cnn (three 5x5 convolutions), or one of the two of Um et al."""

    width: int = Field(8, ge=1, le=1024)
    """Channels of cnn."""

    output: str | None = None
    """How corrections come out: streamfunction (free of divergence) or free; see the problem."""

    inside: bool = False
    """Correct inside of the simulator's step, as a forcing, instead of after it."""

    loss: LossName = "every"
    """Where a piece is compared with the reference: at every step, every k-th, or its last."""

    every: int = Field(2, ge=1)
    """The k of --loss every-k."""

    unrolled: int = Field(4, ge=1)
    """Steps n of a piece; non takes one."""

    batch: int = Field(3, ge=1)
    """Pieces a training step."""

    rollout_steps: int | None = Field(None, ge=2)
    """Steps of the rollouts that are scored; 100 by default, or what the frames allow."""

    starts: int = Field(2, ge=1)
    """Frames of each simulation from which rollouts start."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss == "every-k" and self.every > self.unrolled:
            raise ValueError(
                f"--every must be at most --unrolled, {self.unrolled}, got {self.every}; "
                "that would be --loss terminal"
            )
        return self


@dataclass(frozen=True)
class Scene:
    """A problem and its trajectories.

    Attributes:
        problem: The problem.
        split: Its reference trajectories, divided by parameter.
        folder: Where they are.
    """

    problem: Problem
    split: Split
    folder: Path

    @cached_property
    def units(self) -> "Units":
        """The scales of the problem, measured once; charged to no budget.

        Raises:
            ValueError: If nothing moves, or the coarse simulator makes no error.
        """
        return _measured(self.problem, self.split.train)


@dataclass(frozen=True)
class Units:
    """The scales of a problem, from its training trajectories.

    Attributes:
        field: The standard deviation of the fluctuations about each simulation's mean.
        error: The root mean square error of the coarse simulator in one step.
        parameters: The smallest and largest parameter.
        probed: What was found out about the coarse simulator.
    """

    field: float
    error: float
    parameters: tuple[float, float]
    probed: Probed


def problem_of(settings: ProblemSettings) -> Problem:
    """Builds or imports the problem.

    Raises:
        Misuse: If it cannot be had.
    """
    grid, reference = (_parsed(text) for text in (settings.grid, settings.reference))
    problem = problem_for(settings.problem, grid=grid, reference=reference)
    axes = len(problem.coarse.shape) - 1
    if axes not in (1, 2):
        raise Misuse(
            f"--problem must have a grid of one or two axes, got {axes} for {problem.name}"
        )
    return problem


def scene(
    settings: ProblemSettings,
    problem: Problem,
    *,
    coarse: bool = True,
    pool: Roller | None = None,
) -> Scene:
    """Reads the trajectories, or makes them first.

    Args:
        settings: Where they are, and their seed.
        problem: What they are of.
        coarse: Whether the coarse simulator's own ones are to be there too.
        pool: Workers that make what is missing; this process by default.

    Returns:
        The problem and its trajectories.

    Raises:
        Misuse: If there are none and no simulator to make them.
        TrajectoryError: If they are of another problem, damaged or in use.

    Warns:
        UserWarning: If the flow crosses more than a cell in a coarse step.
    """
    seed = settings.seed if settings.data_seed is None else settings.data_seed
    folder = settings.data or usual_folder(problem, seed)
    reference = reference_trajectories(problem, folder, seed, pool=pool)
    shape = tuple(problem.coarse.shape)
    if reference.fields.shape[2:] != shape:
        raise TrajectoryError(
            f"{folder} must hold fields of shape {shape}, that of the coarse simulator, "
            f"got {reference.fields.shape[2:]}; choose another folder"
        )
    if coarse:
        store_coarse(problem, folder / "coarse", reference, pool=pool)
    split = reference.split(train=problem.train, validation=problem.validation, test=problem.test)
    _warn_of_courant(problem, split.train)
    return Scene(problem, split, folder)


def _measured(problem: Problem, train: Trajectories) -> Units:
    unit = float((train.fields - train.fields.mean(1, keepdims=True)).std())
    if not unit > 0:
        raise ValueError(
            f"trajectories of {problem.name} must change in time, got none that does; "
            "shorten the warm-up or drive the flow"
        )
    simulator = Metered(problem.coarse, name=f"the coarse simulator of {problem.name}")
    error = one_step_error(simulator, train)
    if not error > 0:
        raise ValueError(
            f"the coarse simulator of {problem.name} must differ from the reference, got equal "
            "steps; there is nothing to correct"
        )
    native = None if train.native is None else train.native[:1, 0]
    probed = probe(simulator, train.fields[:1, 0], train.parameters[:1], native, unit=unit)
    low, high = float(train.parameters.min()), float(train.parameters.max())
    return Units(unit, error, (low, high), probed)


def corrector_for(settings: CorrectionSettings, problem: Problem, units: Units) -> Corrector:
    """Builds the untrained corrector.

    Raises:
        Misuse: If the problem has no such output.
    """
    name = settings.output or next(iter(problem.outputs))
    if name not in problem.outputs:
        raise Misuse(
            f"--output must be one of {', '.join(problem.outputs)} for {problem.name}, got {name}"
        )
    output = problem.outputs[name]
    channels, *grid = problem.coarse.shape
    network = correctors.build(
        settings.corrector,
        channels + 1,
        output.channels,
        rows=grid[0] if len(grid) == 2 else 1,
        periodic=problem.periodic,
        width=settings.width,
        generator=generator_for(settings.seed, "corrector"),
    )
    return Corrector(
        network, output, field_scale=units.field, parameters=units.parameters, scale=units.error
    )


def _parsed(grid: str | None) -> Grid | None:
    if grid is None:
        return None
    rows, columns = map(int, grid.split("x"))
    return rows, columns


def _warn_of_courant(problem: Problem, train: Trajectories) -> None:
    if problem.cfl is None:
        return
    largest = max(float(problem.cfl(fields).max()) for fields in train.fields)
    if largest > 1:
        warnings.warn(
            f"the flow of {problem.name} crosses {largest:.1f} cells in a coarse step (CFL number; "
            "more than 1 is inaccurate and may blow up); choose a coarser --grid",
            stacklevel=2,
        )
