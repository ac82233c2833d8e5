"""``deepzero-apps compare correction``: all methods of the correction table at equal budgets.

Every method and seed is a ``correct`` run of its own, in the subfolder METHOD/SEED; two run at a
time, or as many as --workers or --cluster say. All share the trajectories, and are scored on the test simulations, whose parameters no
training and no tuning has seen. A training that fails (the simulator blows up) counts as a simulation
that has blown up from the start.
"""

__all__ = ["CompareCorrectionSettings", "possible", "run"]

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self

import joblib
import numpy as np
import torch
from pydantic import Field, model_validator
from rich.console import Console

from deepzero_apps.cli.correct import correct, noise_note
from deepzero_apps.cli.corrected import (
    CorrectionSettings,
    Scene,
    problem_of,
    scene,
)
from deepzero_apps.cli.correction_plan import CorrectSettings, deployed, plan, refuse_early
from deepzero_apps.cli.corrections import METHODS, MethodName
from deepzero_apps.cli.driving import folder_for, opened, write_json
from deepzero_apps.cli.evaluated import (
    Course,
    animate,
    course,
    draw,
    failed,
    judged,
    row,
    show,
    title_of,
)
from deepzero_apps.cli.progress import lines, watched
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.cli.spreading import SideBySideFlags, batch_of_runs
from deepzero_apps.correction.evaluation import Scores
from deepzero_apps.correction.metrics import penalized
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.report import plot_spectra
from deepzero_apps.correction.simulator import Array, SimulatorFailure
from deepzero_apps.correction.spectra import energy_spectrum
from deepzero_apps.runs import RunFolder

_ZEROTH_ORDER = ("zo-weights", "zo-weights-rge", "zo-field")


class CompareCorrectionSettings(SideBySideFlags, CorrectionSettings):
    """Compares ways to train a corrector at equal simulator steps.

    Methods: src is the bare coarse simulator; non sees pairs of states, nog stops the gradient at
    the simulator; zo-weights (CGE), zo-weights-rge and zo-field ask it, for --budget steps at
    most; fo backpropagates through a differentiable twin, where there is one, and is the ceiling.
    """

    out: Path | None = None
    """Where all runs go; runs/compare-correction-TIME by default."""

    resume: bool = False
    """Continue the comparison in --out."""

    methods: tuple[MethodName, ...] = METHODS
    """Which methods; fo is left out where there is no twin, non and nog with --inside."""

    seeds: int = Field(5, ge=1, le=1000)
    """Trainings of each method, which differ in all that is drawn but the trajectories."""

    budget: int = Field(100_000, ge=1)
    """The most simulator steps (one state, one step) that each training may spend."""

    updates: int | None = Field(None, ge=1)
    """The most training steps of each training; the methods' tuned numbers by default."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"--methods must name each method once, got {self.methods}")
        return self


@dataclass(frozen=True)
class _Cell:
    """One training: its scores on test simulations, their spectrum, what it took."""

    method: MethodName
    seed: int
    scores: Scores
    spectrum: Array
    queries: int
    seconds: float
    failure: str = ""


def run(settings: CompareCorrectionSettings) -> int:
    """Trains and scores all methods, prints the table and writes figures and animation."""
    folder = folder_for("compare-correction", settings.out, resume=settings.resume).absolute()
    console = Console(soft_wrap=True)
    problem, methods, left_out = possible(settings)
    view = scene(settings, problem)
    for note in filter(None, (left_out, noise_note(problem, view.units.probed))):
        console.print(note, markup=False, highlight=False)
    on = _course(settings, view)
    updates = {m: _updates(settings, view, m) for m in _trained(methods)}
    shared = settings.model_copy(update={"data": view.folder})
    with opened("compare correction", folder, settings, resume=settings.resume) as run_folder:
        cells = _cells(shared, folder, updates)
        coarse, scores = judged(problem.coarse, on)
        if "src" in methods:
            cells.append(_Cell("src", 0, scores, _spectrum(coarse, on), 0, 0.0))
        ordered = {m: [c for c in cells if c.method == m] for m in methods}
        rows = [_row(own) for own in ordered.values()]
        _draw(shared, folder, on, ordered, coarse=coarse)
        run_folder.finish({"rows": rows})
    show(rows, f"{title_of(on, 'test')}, loss {settings.loss}, n = {settings.unrolled}")
    for line in (*_failures(cells), _closed(rows, "src"), _closed(rows, "non")):
        if line:
            console.print(line, markup=False, highlight=False)
    console.print(f"runs, figures and rollout.gif in {folder}", markup=False, highlight=False)
    write_json(settings.json_file, {"settings": settings.record(), "rows": rows})
    return 0


def possible(
    settings: CompareCorrectionSettings,
) -> tuple[Problem, list[MethodName], str]:
    """Finds out what can be compared, before anything is made.

    Returns:
        The problem, the methods that it allows, and a line for each method that it does not.

    Raises:
        Misuse: If the settings cannot be carried out.
    """
    problem = problem_of(settings)
    methods, left_out = _methods(settings, problem)
    for method in _trained(methods):
        refuse_early(_settings(settings, method, settings.seed), problem)
    return problem, methods, left_out


def _methods(
    settings: CompareCorrectionSettings, problem: Problem
) -> tuple[list[MethodName], str]:
    """The methods that this problem allows, and a line on those that it does not."""
    reasons: dict[str, str] = {}
    if problem.twin is None:
        reasons["fo"] = f"{problem.name} has no differentiable twin"
    if settings.inside:
        blind = "its gradient stops at the simulator, inside of which corrections act"
        reasons |= {"non": blind, "nog": blind}
    kept = [m for m in settings.methods if m not in reasons]
    if not kept:
        asked = ", ".join(settings.methods)
        raise Misuse(f"--methods must name one that fits {problem.name}, got {asked}")
    lines = [f"{m} is left out: {reasons[m]}" for m in settings.methods if m in reasons]
    return kept, "\n".join(lines)


def _trained(methods: Sequence[MethodName]) -> list[MethodName]:
    return [m for m in methods if m != "src"]


def _updates(settings: CompareCorrectionSettings, view: Scene, method: MethodName) -> int:
    return plan(_settings(settings, method, settings.seed), view.problem, view.units).updates


def _settings(
    settings: CompareCorrectionSettings, method: MethodName, seed: int
) -> CorrectSettings:
    data_seed = settings.seed if settings.data_seed is None else settings.data_seed
    own = {"seed": seed, "data_seed": data_seed}
    return CorrectSettings(
        **{**settings.fields_of(CorrectionSettings), **own},
        method=method,
        budget=settings.budget,
        updates=settings.updates,
        resume=True,
    )


def _course(settings: CompareCorrectionSettings, view: Scene) -> Course:
    return course(
        view.problem, view.split.test, steps=settings.rollout_steps, starts=settings.starts
    )


def _cells(
    settings: CompareCorrectionSettings, folder: Path, updates: Mapping[MethodName, int]
) -> list[_Cell]:
    seeds = [settings.seed + k for k in range(settings.seeds)]
    # The long ones first, so that no core waits at the end; fo's steps are slow ones.
    methods = sorted(updates, key=lambda m: (m == "fo", m in _ZEROTH_ORDER), reverse=True)
    alone = settings.model_copy(update={"workers": None, "cluster": None})
    todo = [(method, seed) for method in methods for seed in seeds]
    files = [folder / m / str(seed) / "metrics.jsonl" for m, seed in todo]
    total = len(seeds) * sum(updates.values())
    with (
        watched(lambda: lines(files), f"{len(todo)} trainings", total=total),
        batch_of_runs(settings) as runs,
    ):
        work = runs(joblib.delayed(_cell)(alone, *one, folder) for one in todo)
    return list(work)


def _cell(
    settings: CompareCorrectionSettings, method: MethodName, seed: int, folder: Path
) -> _Cell:
    """Trains and scores one; runs in a process of its own, without bars."""
    torch.set_num_threads(settings.threads)
    wanted, place = _settings(settings, method, seed), folder / method / str(seed)
    with redirect_stderr(StringIO()):
        view = scene(wanted, problem_of(wanted), coarse=False)
        on = _course(settings, view)
        try:
            result = correct(wanted, place, view, pictures=False)
        except (SimulatorFailure, FloatingPointError) as error:
            last = RunFolder(place).metrics()[-1:] or [{"queries": 0, "seconds": 0.0}]
            spectrum = _spectrum(np.full_like(on.started.references, np.nan), on)
            took = int(last[0]["queries"]), float(last[0]["seconds"])
            return _Cell(method, seed, failed(on), spectrum, *took, failure=str(error))
        states, scores = judged(deployed(wanted, place, view.problem), on)
    spent, seconds = result["queries"], result["seconds"]
    return _Cell(method, seed, scores, _spectrum(states, on), spent, seconds)


def _spectrum(states: Array, on: Course) -> Array:
    """The mean spectrum of all rollouts, ``(bins,)``, blow-ups as in the table."""
    settled = penalized(states, on.started.references)
    mean: Array = energy_spectrum(settled, periodic=on.problem.periodic).mean((0, 1))
    return mean


def _row(cells: Sequence[_Cell]) -> dict[str, Any]:
    return row(
        cells[0].method,
        [c.scores for c in cells],
        queries=max(c.queries for c in cells),
        seconds=float(np.mean([c.seconds for c in cells])),
    )


def _draw(
    settings: CompareCorrectionSettings,
    folder: Path,
    on: Course,
    cells: Mapping[MethodName, Sequence[_Cell]],
    *,
    coarse: Array,
) -> None:
    spectra = {"reference": _spectrum(on.started.references, on)[None]}
    spectra |= {m: np.stack([c.spectrum for c in own]) for m, own in cells.items()}
    longest = max(on.problem.coarse.shape[1:])
    plot_spectra(spectra, folder / "spectra.png", title=on.problem.name, cells=longest)
    states = {"coarse": coarse}
    shown = _shown(cells)
    if shown is not None:
        wanted = _settings(settings, shown.method, shown.seed)
        place = folder / shown.method / str(shown.seed)
        states[shown.method], _ = judged(deployed(wanted, place, on.problem), on)
    draw(on, states, {m: [c.scores for c in own] for m, own in cells.items()}, folder)
    animate(on, states, folder / "rollout.gif")


def _shown(cells: Mapping[MethodName, Sequence[_Cell]]) -> _Cell | None:
    """The median seed of the best zeroth-order method, or of the best if there is none."""
    whole = {m: [c for c in own if not c.failure] for m, own in cells.items() if m != "src"}
    asking = {m: own for m, own in whole.items() if own and m in _ZEROTH_ORDER}
    known = asking or {m: own for m, own in whole.items() if own}
    if not known:
        return None
    best = min(known.values(), key=lambda own: np.mean([_mae(c) for c in own]))
    return sorted(best, key=_mae)[len(best) // 2]


def _mae(cell: _Cell) -> float:
    return float(cell.scores.mae.mean())


def _failures(cells: Sequence[_Cell]) -> list[str]:
    return [
        f"{c.method}, seed {c.seed}: training failed, counted as blown up from the start: {c.failure}"
        for c in cells
        if c.failure
    ]


def _closed(rows: Sequence[Mapping[str, Any]], start: str) -> str:
    """Says how much of the gap from a method to fo each method closes."""
    mae = {row["method"]: row["mae"] for row in rows}
    if not {start, "fo"} <= mae.keys() or mae["fo"] >= mae[start]:
        return ""
    gap = mae[start] - mae["fo"]
    shares = [
        f"{name} {100 * (mae[start] - value) / gap:.0f} %"
        for name, value in mae.items()
        if name not in ("src", start, "fo")
    ]
    if not shares:
        return ""
    return f"share of the gap in MAE from {start} to fo that is closed: {', '.join(shares)}"
