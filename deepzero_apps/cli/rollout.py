"""``deepzero-apps rollout``: a simulator with its corrector, or bare, against the reference.

The folder then holds ``errors.png``, ``fields.png``, ``rollout.gif``, all states in ``rollout.npz``
(``reference``, ``coarse``, ``corrected``: (rollouts, steps, channels, *grid)) and ``result.json``.
"""

__all__ = ["RolloutSettings", "run"]

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from rich.console import Console

from deepzero_apps.cli.correct import CorrectSettings, deployed
from deepzero_apps.cli.corrected import ProblemSettings, problem_of, scene
from deepzero_apps.cli.driving import folder_for, write_json
from deepzero_apps.cli.evaluated import (
    Course,
    animate,
    course,
    draw,
    judged,
    row,
    show,
    store,
    title_of,
)
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.correction.evaluation import Scores
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.runs import RunFolder


class RolloutSettings(ProblemSettings):
    """Rolls a corrected simulator out and compares it with the reference and with the bare one.

    With --run FOLDER, problem and corrector are those of that ``correct`` run; without, the bare
    coarse simulator of --problem is rolled out.
    """

    run: Anywhere | None = None
    """The folder of a finished correct run; flags that contradict its settings are refused."""

    split: Literal["test", "validation", "train"] = "test"
    """Which simulations: test for results, validation for choices."""

    steps: int | None = Field(None, ge=2)
    """Steps of a rollout; 100 by default, or what the frames allow."""

    starts: int = Field(2, ge=1)
    """Frames of each simulation from which rollouts start."""

    out: Path | None = None
    """Where everything goes; runs/rollout-TIME by default, or RUN/rollout-TIME."""

    resume: bool = False
    """Repeat the rollout in --out."""


def run(settings: RolloutSettings) -> int:
    """Rolls out, prints the table and writes figures, animation and states."""
    folder = folder_for("rollout", settings.out, resume=settings.resume)
    if settings.run is not None and settings.out is None:
        folder = settings.run / folder.name
    trained, resolved, result = _trained(settings)
    problem = problem_of(resolved)
    simulator = None if trained is None else deployed(trained, settings.run or Path(), problem)
    view = scene(resolved, problem)
    trajectories = getattr(view.split, settings.split)
    try:
        on = course(problem, trajectories, steps=settings.steps, starts=settings.starts)
    except Misuse as error:
        raise Misuse(str(error).replace("--rollout-steps", "--steps")) from error
    record = {**resolved.record(), **settings.model_dump(mode="json", include=_OWN)}
    with RunFolder.create(folder, record, resume=settings.resume) as run_folder:
        name = result.get("method", "src")
        states, scores = _rolled(problem, simulator, on, name)
        rows = [
            row(
                who,
                [score],
                queries=0 if who == "src" else result["queries"],
                seconds=0.0 if who == "src" else result["seconds"],
            )
            for who, score in scores.items()
        ]
        _write(on, states, scores, folder)
        run_folder.finish({"rows": rows})
    show(rows, title_of(on, settings.split))
    Console(soft_wrap=True).print(
        f"figures, animation and states in {folder}", markup=False, highlight=False
    )
    write_json(settings.json_file, {"settings": record, "rows": rows})
    return 0


_OWN = {"run", "split", "steps", "starts"}


def _rolled(
    problem: Problem, simulator: Simulator | None, on: Course, name: str
) -> tuple[dict[str, Array], dict[str, Scores]]:
    """States by what stands in figures, scores by the method's name."""
    bare, bare_scores = judged(problem.coarse, on)
    if simulator is None:
        return {"coarse": bare}, {"src": bare_scores}
    states, scores = judged(simulator, on)
    return {"coarse": bare, "corrected": states}, {"src": bare_scores, name: scores}


def _write(on: Course, states: dict[str, Array], scores: dict[str, Scores], folder: Path) -> None:
    draw(on, states, {name: [score] for name, score in scores.items()}, folder)
    animate(on, states, folder / "rollout.gif")
    store(on, states, folder / "rollout.npz")


def _trained(
    settings: RolloutSettings,
) -> tuple[CorrectSettings | None, ProblemSettings, dict[str, Any]]:
    """The run's settings, those of the problem, and the run's result."""
    if settings.run is None:
        return None, settings, {}
    found = RunFolder(settings.run)
    try:
        trained = CorrectSettings(**{**found.config, "threads": settings.threads})
    except ValidationError as error:
        raise Misuse(f"--run must name a folder of correct, got {settings.run}") from error
    result = found.result()
    if result is None:
        raise Misuse(
            f"--run must name a finished run, got {settings.run}; finish it with --resume"
        )
    return trained, _as_trained(settings, trained), result


def _as_trained(settings: RolloutSettings, trained: CorrectSettings) -> ProblemSettings:
    """Takes what describes the problem from the run; refuses other wishes, but for its place."""
    update: dict[str, Any] = {"seed": trained.seed, "data": settings.data or trained.data}
    for name in (
        ProblemSettings.model_fields.keys() - CommonSettings.model_fields.keys() - {"data"}
    ):
        default = ProblemSettings.model_fields[name].default
        asked, found = getattr(settings, name), getattr(trained, name)
        if asked not in (default, found):
            flag = name.replace("_", "-")
            raise Misuse(f"--{flag} must be that of --run, {found}, or left out, got {asked}")
        update[name] = found
    return settings.model_copy(update=update)
