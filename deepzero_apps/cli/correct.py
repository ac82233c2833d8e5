"""``deepzero-apps correct``: a corrector trained in the loop of a simulator without gradients.

The run's folder then holds ``corrector.safetensors`` (weights and units), ``errors.png`` and
``fields.png`` (validation simulations) and ``result.json`` besides settings, metrics and checkpoints.
Only training is charged to the budget: trajectories, units, the probe and evaluation are not.
"""

__all__ = [
    "CorrectSettings",
    "Plan",
    "correct",
    "deployed",
    "noise_note",
    "plan",
    "refuse_early",
    "run",
]

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from rich.console import Console
from safetensors.torch import save

from deepzero_apps.cli.corrected import (
    CorrectionSettings,
    Scene,
    Units,
    corrector_for,
    problem_of,
    scene,
)
from deepzero_apps.cli.corrections import TUNED, Correction, MethodName, Tuning, build
from deepzero_apps.cli.driving import drive, folder_for, write_json
from deepzero_apps.cli.evaluated import course, draw, judged, row, show, title_of
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import Misuse, overridden
from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.rollout import Corrected
from deepzero_apps.correction.simulator import Metered
from deepzero_apps.correction.training import Recipe, correction_training
from deepzero_apps.correction.unrolled import Loop, Objective, loss_weights
from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.files import replace
from deepzero_apps.vision import load_weights
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.state import Weights


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


def plan(settings: CorrectSettings, problem: Problem, units: Units) -> Plan:
    """Sets up a run.

    Raises:
        Misuse: If the settings cannot be carried out.
    """
    meter = Meter(settings.budget)
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


def correct(
    settings: CorrectSettings, folder: Path, view: Scene, *, pictures: bool = True
) -> dict[str, Any]:
    """Trains, or continues, one corrector in a folder.

    Args:
        settings: What to train and how.
        folder: The run's folder.
        view: The problem and its trajectories.
        pictures: Whether to draw figures.

    Returns:
        The result: ``method``, ``queries``, ``updates``, ``seconds``, ``weights``, ``noise``,
            ``reach``, ``mu``, and the scores on validation simulations as ``validation``, one row
            for the bare simulator and one for the corrected.
    """
    units = view.units
    ready = plan(settings, view.problem, units)
    on = course(
        view.problem, view.split.validation, steps=settings.rollout_steps, starts=settings.starts
    )
    _refuse_short(ready.correction, view)  # all refuse before anything is written
    with RunFolder.create(folder, settings.record(), resume=settings.resume) as run_folder:
        done = run_folder.result()
        if done is not None:
            return done
        training = correction_training(
            ready.loop,
            ready.correction.method,
            _objective(settings, ready.correction, units),
            view.split.train,
            recipe=_recipe(settings, ready),
            meter=ready.meter,
            companion=ready.correction.credit,
        )
        title = f"{settings.method}: {ready.updates:,} updates"
        every = settings.checkpoint_every
        drive(training, run_folder, ready.updates, title=title, checkpoint_every=every)
        corrector = ready.loop.corrector
        state = {k: v.detach().contiguous() for k, v in corrector.state_dict().items()}
        replace(folder / "corrector.safetensors", save(state))
        queries, seconds = ready.meter.spent, training.seconds
        bare, bare_scores = judged(view.problem.coarse, on)
        states, scores = judged(_corrected(settings, view.problem, corrector), on)
        if pictures:
            name: str = settings.method
            named = {"src": [bare_scores], name: [scores]}
            draw(on, {"coarse": bare, name: states}, named, folder)
        result = {
            "method": settings.method,
            "queries": queries,
            "updates": training.step,
            "seconds": seconds,
            "weights": Weights(corrector.network).total,
            "noise": units.probed.noise,
            "reach": "global" if math.isinf(units.probed.reach) else int(units.probed.reach),
            "mu": units.probed.mu,
            "validation": [
                row("src", [bare_scores], queries=0, seconds=0.0),
                row(settings.method, [scores], queries=queries, seconds=seconds),
            ],
        }
        run_folder.finish(result)
        return result


def deployed(settings: CorrectSettings, folder: Path, problem: Problem) -> Corrected:
    """Puts the corrector of a finished run behind its simulator.

    Raises:
        ValueError: If the weights do not fit.
    """
    unknown = Units(1.0, 1.0, (1.0, 1.0), Probed(0.0, 0.0, 1.0, 0))  # the file brings its own
    corrector = corrector_for(settings, problem, unknown)
    load_weights(corrector, folder / "corrector.safetensors")
    return _corrected(settings, problem, corrector)


def noise_note(problem: Problem, probed: Probed) -> str:
    """Says what follows for training from a simulator that does not repeat itself, if so."""
    if probed.deterministic:
        return ""
    return (
        f"the coarse simulator of {problem.name} is not deterministic: repeated steps differ by "
        f"{probed.noise:.1e} (root mean square), so that differences of fields take a step of at "
        f"least {probed.mu:.1e}, and a resumed run may end with other bits"
    )


def run(settings: CorrectSettings) -> int:
    """Trains one corrector and says where it is."""
    folder = folder_for("correct", settings.out, resume=settings.resume)
    problem = problem_of(settings)
    refuse_early(settings, problem)
    view = scene(settings, problem)
    console = Console(soft_wrap=True)
    if note := noise_note(problem, view.units.probed):
        console.print(note, markup=False, highlight=False)
    result = correct(settings, folder, view)
    on = course(
        problem, view.split.validation, steps=settings.rollout_steps, starts=settings.starts
    )
    show(result["validation"], title_of(on, "validation"))
    console.print(
        f"{result['method']}: {result['updates']:,} updates, {result['queries']:,} simulator steps, "
        f"{result['seconds']:.0f} s\n"
        f"corrector in {folder / 'corrector.safetensors'}, figures in {folder / 'errors.png'} and "
        f"{folder / 'fields.png'}\n"
        f"next: deepzero-apps rollout --run {folder}",
        markup=False,
        highlight=False,
    )
    write_json(settings.json_file, {"settings": settings.record(), "result": result})
    return 0


def _corrected(settings: CorrectSettings, problem: Problem, corrector: Corrector) -> Corrected:
    return Corrected(problem.coarse, corrector, inside=settings.inside, dt=problem.dt)


def _begin_at(start: Path, corrector: Corrector) -> None:
    try:
        load_weights(corrector, start)
    except (OSError, ValueError) as error:
        raise Misuse(f"--start: {error}") from error


def _refuse_short(correction: Correction, view: Scene) -> None:
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


def _objective(settings: CorrectSettings, correction: Correction, units: Units) -> Objective:
    weights = loss_weights(correction.loss, correction.unrolled, every=settings.every)
    return Objective(weights, units.field)


def _recipe(settings: CorrectSettings, ready: Plan) -> Recipe:
    return Recipe(
        unrolled=ready.correction.unrolled,
        batch=settings.batch,
        updates=ready.updates,
        lr=settings.tuning().lr,
        seed=settings.seed,
    )
