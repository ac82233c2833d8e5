"""A training in the loop that is ready to start, from its settings; the same in every worker."""

__all__ = [
    "UNKNOWN",
    "CorrectSettings",
    "Plan",
    "corrected",
    "deployed",
    "objective",
    "plan",
    "recipe",
    "refuse_early",
    "refuse_short",
]

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from deepzero_apps.cli.corrected import CorrectionSettings, Scene, Units, corrector_for
from deepzero_apps.cli.corrections import TUNED, Correction, MethodName, Tuning, build
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import Misuse, overridden
from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.rollout import Corrected
from deepzero_apps.correction.simulator import Metered
from deepzero_apps.correction.training import Recipe
from deepzero_apps.correction.unrolled import Loop, Objective, loss_weights
from deepzero_apps.vision import load_weights
from deepzero_apps.zeroth_order.oracle import Meter

UNKNOWN = Units(1.0, 1.0, (1.0, 1.0), Probed(0.0, 0.0, 1.0, 0))
"""The units of a corrector whose own come with its weights."""


class CorrectSettings(CorrectionSettings):
    """Trains a corrector in the loop of a coarse simulator, with calls to it alone.

    Methods: non sees pairs of states, nog stops the gradient at the simulator; zo-weights (CGE) and
    zo-weights-rge move the weights, zo-field the fields, and see what the simulator makes of
    it; fo backpropagates through a differentiable twin, where there is one, and is the ceiling.
    """

    out: Path | None = None
    """The run's folder, new or empty; runs/correct-TIME by default."""

    resume: bool = False
    """Continue the run in --out from its last checkpoint, to the same final weights."""

    method: MethodName = "zo-field"
    """How the gradient comes about; see above."""

    budget: int = Field(100_000, ge=1)
    """The most simulator steps (one state, one step) that training may spend."""

    updates: int | None = Field(None, ge=1)
    """The most training steps; the method's tuned number by default."""

    lr: float | None = Field(None, gt=0, lt=float("inf"))
    """Adam's learning rate at the start; the method's tuned one by default."""

    mu: float | None = Field(None, gt=0, lt=float("inf"))
    """Finite-difference step: in units of the weights, or (zo-field) of the field."""

    q: int | None = Field(None, ge=1)
    """Directions (zo-field, from 2), weights moved (zo-weights) or pairs (zo-weights-rge) a step."""

    start: Anywhere | None = None
    """Start from this corrector.safetensors, with its units, instead of a new corrector."""

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.method == "src":
            raise ValueError(
                "--method must train something, got src; rollout shows the bare simulator"
            )
        return self

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result, the tuned ones as numbers."""
        tuned = {name: value or None for name, value in asdict(self.tuning()).items()}
        return {**super().record(), **tuned}

    def tuning(self) -> Tuning:
        """Returns the method's tuned settings with the flags that override them."""
        return overridden(TUNED[self.method], self)


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start.

    Attributes:
        loop: Simulator and corrector.
        correction: The method.
        updates: The number of training steps.
        meter: The meter of the simulator.
    """

    loop: Loop
    correction: Correction
    updates: int
    meter: Meter


def refuse_early(settings: CorrectSettings, problem: Problem) -> None:
    """Refuses, before any trajectory is made, what can be known to be impossible by then.

    Raises:
        Misuse: If the settings cannot be carried out.
    """
    reach = problem.coarse.reach
    probed = Probed(0.0, math.inf if reach is None else reach, 1e-2, 0)
    plan(settings, problem, Units(1.0, 1.0, (min(problem.train), max(problem.train)), probed))


def plan(
    settings: CorrectSettings, problem: Problem, units: Units, *, meter: Meter | None = None
) -> Plan:
    """Sets up a run.

    Args:
        settings: What to train and how.
        problem: The problem.
        units: Its scales.
        meter: Charged for the simulator's steps; one with the settings' budget by default.

    Returns:
        The run.

    Raises:
        Misuse: If the settings cannot be carried out.
    """
    meter = Meter(settings.budget) if meter is None else meter
    simulator = Metered(
        problem.coarse, meter=meter, name=f"the coarse simulator of {problem.name}"
    )
    corrector = corrector_for(settings, problem, units)
    if settings.start is not None:
        _begin_at(settings.start, corrector)
    try:
        loop = Loop(simulator, corrector, inside=settings.inside, dt=problem.dt)
        correction = build(
            settings.method,
            loop,
            problem,
            tuning=settings.tuning(),
            unrolled=settings.unrolled,
            loss=settings.loss,
            probed=units.probed,
            meter=meter,
            seed=settings.seed,
        )
    except ValueError as error:
        raise Misuse(f"--{error}") from error
    return Plan(loop, correction, _updates(settings, correction), meter)


def deployed(settings: CorrectSettings, folder: Path, problem: Problem) -> Corrected:
    """Puts the corrector of a finished run behind its simulator.

    Raises:
        ValueError: If the weights do not fit.
    """
    corrector = corrector_for(settings, problem, UNKNOWN)
    load_weights(corrector, folder / "corrector.safetensors")
    return corrected(settings, problem, corrector)


def corrected(settings: CorrectionSettings, problem: Problem, corrector: Corrector) -> Corrected:
    """Puts a corrector behind the coarse simulator."""
    return Corrected(problem.coarse, corrector, inside=settings.inside, dt=problem.dt)


def _begin_at(start: Path, corrector: Corrector) -> None:
    try:
        load_weights(corrector, start)
    except (OSError, ValueError) as error:
        raise Misuse(f"--start: {error}") from error


def refuse_short(correction: Correction, view: Scene) -> None:
    """Refuses pieces that are longer than the simulations.

    Raises:
        Misuse: If they are.
    """
    frames = view.split.train.fields.shape[1]
    if frames <= correction.unrolled:
        raise Misuse(
            f"--unrolled must be less than the {frames} frames of a simulation, "
            f"got {correction.unrolled}"
        )


def _updates(settings: CorrectSettings, correction: Correction) -> int:
    step = settings.batch * correction.queries
    if settings.budget < step:
        raise Misuse(
            f"--budget must cover one update of {settings.batch} pieces with "
            f"{correction.queries:,} simulator steps each, {step:,} in all, "
            f"got {settings.budget:,}"
        )
    return min(settings.tuning().updates, settings.budget // step)


def objective(settings: CorrectSettings, correction: Correction, units: Units) -> Objective:
    """Returns the loss that is trained on."""
    weights = loss_weights(correction.loss, correction.unrolled, every=settings.every)
    return Objective(weights, units.field)


def recipe(settings: CorrectSettings, ready: Plan) -> Recipe:
    """Returns how pieces are drawn and weights are moved."""
    return Recipe(
        unrolled=ready.correction.unrolled,
        batch=settings.batch,
        updates=ready.updates,
        lr=settings.tuning().lr,
        seed=settings.seed,
    )
