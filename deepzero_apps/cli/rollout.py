"""``deepzero-apps rollout``: a simulator with its corrector, or bare, against the reference.

The folder then holds ``errors.png``, ``fields.png``, ``rollout.gif``, all states in ``rollout.npz``
(``reference``, ``coarse``, ``corrected``: (rollouts, steps, channels, *grid)) and ``result.json``.
"""

__all__ = ["RolloutSettings", "run"]

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError
from rich.console import Console

from deepzero_apps.cli.bench import Bench
from deepzero_apps.cli.corrected import USUAL, ProblemSettings, Scene, problem_of, scene
from deepzero_apps.cli.correction_plan import CorrectSettings, deployed
from deepzero_apps.cli.driving import folder_for, opened, write_json
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
from deepzero_apps.cli.imported import refuse_unnamed
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.cli.spreading import WorkersFlags
from deepzero_apps.correction.evaluation import Scores
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.runs import RunFolder

if TYPE_CHECKING:
    from deepzero_apps.workers import Pool


class RolloutSettings(ProblemSettings):
    """Rolls a corrected simulator out and compares it with the reference and with the bare one.

    With --run FOLDER, problem and corrector are those of that ``correct`` run; without, the bare
    coarse simulator of --problem is rolled out.
    """

    problem: str = ""
    """As correct has it; that of --run by default, or wake."""

    run: Anywhere | None = None
    """The folder of a finished correct run; flags that contradict its settings are refused. One of a
    problem of your own, module:function, needs --problem again."""

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
    if settings.run is not None:
        refuse_unnamed("--problem", resolved.problem, settings.problem, settings.run)
    problem = problem_of(resolved)
    simulator = None if trained is None else deployed(trained, settings.run or Path(), problem)
    record = {**resolved.record(), **settings.model_dump(mode="json", include=_OWN)}
    with settings.pool(partial(Bench, trained or resolved)) as pool:
        on = _course(settings, scene(resolved, problem, pool=pool))
        with opened("rollout", folder, settings, resume=settings.resume, record=record) as place:
            states, scores = _rolled(simulator, on, result.get("method", "src"), pool)
            rows = [_row(who, score, result) for who, score in scores.items()]
            _write(on, states, scores, folder)
            place.finish({"rows": rows})
    show(rows, title_of(on, settings.split))
    Console(soft_wrap=True).print(
        f"figures, animation and states in {folder}", markup=False, highlight=False
    )
    write_json(settings.json_file, {"settings": record, "rows": rows})
    return 0


_COUNTS = ("queries", "seconds")
_OWN = {"run", "split", "steps", "starts"}


def _course(settings: RolloutSettings, view: Scene) -> Course:
    trajectories = getattr(view.split, settings.split)
    try:
        return course(view.problem, trajectories, steps=settings.steps, starts=settings.starts)
    except Misuse as error:
        raise Misuse(str(error).replace("--rollout-steps", "--steps")) from error


def _rolled(
    simulator: Simulator | None, on: Course, name: str, pool: "Pool | None"
) -> tuple[dict[str, Array], dict[str, Scores]]:
    """States by what stands in figures, scores by the method's name."""
    bare, bare_scores = judged(on.problem.coarse, on, pool)
    if simulator is None:
        return {"coarse": bare}, {"src": bare_scores}
    states, scores = judged(simulator, on, pool)
    return {"coarse": bare, "corrected": states}, {"src": bare_scores, name: scores}


def _row(who: str, scores: Scores, result: dict[str, Any]) -> dict[str, Any]:
    if who == "src":
        return row(who, [scores], queries=0, seconds=0.0)
    return row(who, [scores], queries=result["queries"], seconds=result["seconds"])


def _write(on: Course, states: dict[str, Array], scores: dict[str, Scores], folder: Path) -> None:
    draw(on, states, {name: [score] for name, score in scores.items()}, folder)
    animate(on, states, folder / "rollout.gif")
    store(on, states, folder / "rollout.npz")


def _trained(
    settings: RolloutSettings,
) -> tuple[CorrectSettings | None, ProblemSettings, dict[str, Any]]:
    """The run's settings, those of the problem, and the run's result."""
    if settings.run is None:
        return None, settings.model_copy(update={"problem": settings.problem or USUAL}), {}
    found = RunFolder(settings.run)
    try:
        trained = CorrectSettings(**{**found.config, "threads": settings.threads})
    except ValidationError as error:
        raise Misuse(f"--run must name a folder of correct, got {settings.run}") from error
    result = found.result()
    if result is None or not all(isinstance(result.get(k), int | float) for k in _COUNTS):
        raise Misuse(
            f"--run must name a finished run, got {settings.run}; finish it with --resume"
        )
    return trained, _as_trained(settings, trained), result


def _refuse_making(settings: RolloutSettings, trained: CorrectSettings) -> None:
    """Refuses to make trajectories in a folder that only a run, perhaps a stranger's, names."""
    if settings.data is not None or trained.data is None:
        return
    if not any((trained.data / p / "trajectories.json").is_file() for p in (".", "reference")):
        raise Misuse(
            f"--data must be given again where the run's trajectories are not there any more, got "
            f"none in {trained.data}"
        )


def _as_trained(settings: RolloutSettings, trained: CorrectSettings) -> ProblemSettings:
    """Takes what describes the problem from the run; refuses other wishes, but for its place."""
    _refuse_making(settings, trained)
    described = ProblemSettings.model_fields.keys() - WorkersFlags.model_fields.keys() - {"data"}
    own = {"seed": trained.seed, "data": settings.data or trained.data}
    return settings.model_copy(update={**own, **settings.agreed(trained, described)})
