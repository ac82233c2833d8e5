"""Cosine of every estimator with exact backpropagation through a twin, against simulator steps.

    python benchmarks/gradient_quality.py --json benchmarks/results/gradient_quality.json

A corrector is trained for a while first (an untrained one has a last layer of zeros, before which all
gradients vanish); then all estimators see the same minibatches, at the same weights. The windows of
`zo-field` learn from the minibatches that they see, as in training; the first eight only warm
them up and are left out of every mean. `simulator_steps` is the cost of one minibatch.
"""

import sys
from pathlib import Path

# This folder holds a file of the name of the package `solvers`.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deepzero_apps.cli.corrected import Scene, Units, problem_of, scene
from deepzero_apps.cli.correction_plan import CorrectSettings, plan
from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.training import Recipe, correction_training, pieces
from deepzero_apps.correction.unrolled import Loop, Objective, Windows, loss_weights

WARM_UP = 8
TRAINED = 150
WINDOWS: tuple[tuple[str, int | None], ...] = (
    ("nog", None),
    ("zo-weights", 16),
    ("zo-weights", 64),
    ("zo-weights-rge", 8),
    ("zo-weights-rge", 32),
    ("zo-field", 2),
    ("zo-field", 8),
    ("zo-field", 16),
    ("zo-field", 32),
    ("zo-field", 64),
)
COLORS: tuple[tuple[str, int | None], ...] = (
    ("nog", None),
    ("zo-weights", 16),
    ("zo-field", None),
)
PROBLEMS: tuple[tuple[str, str | None, bool, tuple[tuple[str, int | None], ...]], ...] = (
    ("wake", None, False, WINDOWS),
    ("wake", None, True, WINDOWS[1:]),
    ("burgers", "16x16", False, COLORS),
    ("burgers", "32x32", False, COLORS),
)


def rows_of(
    settings: CorrectSettings,
    view: Scene,
    units: Units,
    *,
    estimators: tuple[tuple[str, int | None], ...],
    minibatches: int,
) -> Iterator[dict[str, Any]]:
    """Measures all estimators on one problem and loss."""
    exact = plan(settings.model_copy(update={"method": "fo"}), view.problem, units)
    loop, n = exact.loop, settings.unrolled
    objective = Objective(loss_weights(settings.loss, n, every=settings.every), units.field)
    recipe = Recipe(unrolled=n, batch=settings.batch, updates=TRAINED, lr=5e-3, seed=settings.seed)
    fo = exact.correction.method
    for _ in correction_training(loop, fo, objective, view.split.train, recipe=recipe).run(
        TRAINED
    ):
        pass
    batches = [pieces(view.split.train, recipe, TRAINED + i) for i in range(WARM_UP + minibatches)]
    wanted = [gradient(fo, loop, objective, batch, step=0) for batch in batches]
    for name, q in estimators:
        own = settings.model_copy(update={"method": name, "q": q})
        correction = plan(own, view.problem, units).correction
        found = [
            gradient(correction.method, loop, objective, batch, step=i)
            for i, batch in enumerate(batches)
        ]
        pairs = list(zip(found, wanted, strict=True))[WARM_UP:]
        cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs]
        errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
        per_step = correction.queries / n
        yield {
            "estimator": name,
            "problem": view.problem.name,
            "grid": "x".join(map(str, view.problem.coarse.shape[1:])),
            "placement": "inside" if settings.inside else "after",
            "loss": settings.loss,
            "unrolled": n,
            "weights": int(wanted[0].numel()),
            "queries": q if q is not None else round(per_step - 1),
            "simulator_steps": correction.queries * settings.batch,
            "minibatches": len(pairs),
            "cosine": float(np.mean(cosines)),
            "cosine_std": float(np.std(cosines, ddof=1)),
            "relative_error": float(np.mean(errors)),
        }


def gradient(
    method: Method, loop: Loop, objective: Objective, windows: Windows, *, step: int
) -> Tensor:
    """Returns what a method writes, as one vector."""
    parameters = list(loop.corrector.network.parameters())
    for p in parameters:
        p.grad = None
    method(loop, objective, windows, step=step)
    return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])


def main() -> None:
    """Measures all problems and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minibatches", type=int, default=20)
    parser.add_argument("--data", type=Path, default=Path("runs/trajectories"))
    parser.add_argument("--only", choices=["wake", "burgers"])
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    table = Table("problem", "grid", "placement", "loss", "estimator", "queries", "simulator steps",
                  "cosine", "relative error")  # fmt: skip
    for problem, grid, inside, estimators in PROBLEMS:
        if given.only not in (None, problem):
            continue
        name = f"quality-{problem}-{grid or 'default'}"
        for loss in ("every", "terminal"):
            settings = CorrectSettings(
                problem=problem,
                grid=grid,
                inside=inside,
                loss=loss,
                budget=10**9,
                data=given.data / name,
            )
            view = scene(settings, problem_of(settings), coarse=False)
            torch.set_default_dtype(torch.float64 if problem == "burgers" else torch.float32)
            found = rows_of(
                settings,
                view,
                view.units,
                estimators=estimators,
                minibatches=given.minibatches,
            )
            for row in found:
                rows.append(row)
                table.add_row(
                    *(str(row[k]) for k in ("problem", "grid", "placement", "loss", "estimator",
                                            "queries", "simulator_steps")),
                    f"{row['cosine']:.4f} ± {row['cosine_std']:.3f}",
                    f"{row['relative_error']:.1e}",
                )  # fmt: skip
    Console(width=140).print(table)
    if given.json:
        settings_of = {"minibatches": given.minibatches, "warm_up": WARM_UP, "trained": TRAINED}
        given.json.write_text(json.dumps({"settings": settings_of, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
