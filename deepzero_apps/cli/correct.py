"""``deepzero-apps correct``: a corrector trained in the loop of a simulator without gradients.

The run's folder then holds ``corrector.safetensors`` (weights and units), ``errors.png`` and
``fields.png`` (validation simulations) and ``result.json`` besides settings, metrics and checkpoints.
Only training is charged to the budget: trajectories, units, the probe and evaluation are not.
"""

__all__ = ["CorrectSettings", "correct", "noise_note", "run"]

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from safetensors.torch import save

from deepzero_apps.cli.bench import Bench, spread
from deepzero_apps.cli.corrected import Scene, problem_of, scene
from deepzero_apps.cli.correction_plan import (
    CorrectSettings,
    Plan,
    corrected,
    objective,
    plan,
    recipe,
    refuse_early,
    refuse_short,
)
from deepzero_apps.cli.driving import drive, folder_for, opened, write_json
from deepzero_apps.cli.evaluated import course, draw, judged, row, show, title_of
from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.training import correction_training
from deepzero_apps.runs.files import replace
from deepzero_apps.zeroth_order.state import Weights

if TYPE_CHECKING:
    from deepzero_apps.workers import Pool


def correct(
    settings: CorrectSettings,
    folder: Path,
    view: Scene,
    *,
    pictures: bool = True,
    pool: "Pool | None" = None,
) -> dict[str, Any]:
    """Trains, or continues, one corrector in a folder.

    Args:
        settings: What to train and how.
        folder: The run's folder.
        view: The problem and its trajectories.
        pictures: Whether to draw figures.
        pool: Who works on pieces and rollouts, each with a `Bench` of these settings; this
            process by default.

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
    refuse_short(ready.correction, view)  # all refuse before anything is written
    with opened("correct", folder, settings, resume=settings.resume) as run_folder:
        done = run_folder.result()
        if done is not None:
            return done
        training = correction_training(
            ready.loop,
            _method(ready, pool, view),
            objective(settings, ready.correction, units),
            view.split.train,
            recipe=recipe(settings, ready),
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
        bare, bare_scores = judged(view.problem.coarse, on, pool)
        states, scores = judged(corrected(settings, view.problem, corrector), on, pool)
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
    console = Console(soft_wrap=True)
    with settings.pool(partial(Bench, settings)) as pool:
        view = scene(settings, problem, pool=pool)
        if note := noise_note(problem, view.units.probed):
            console.print(note, markup=False, highlight=False)
        result = correct(settings, folder, view, pool=pool)
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


def _method(ready: Plan, pool: "Pool | None", view: Scene) -> Method:
    return ready.correction.method if pool is None else spread(ready, pool, view)
