"""Which estimator when: test MAE against simulator steps, by the size of the corrector.

    python benchmarks/correction_crossover.py --out runs/crossover --json crossover.json --png crossover.png

The default problem with the terminal loss, corrections after the step. The two small correctors
take the learning rates that were tuned for one of 2,417 weights; for the large one each method
picks among two on the *validation* simulations, at the smallest budget. The table and the figure
are of the test simulations. A killed run goes on where it stopped.
"""

import sys
from pathlib import Path

# This folder holds a file of the name of the package `solvers`.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import json
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import joblib
import numpy as np
from rich.console import Console
from rich.table import Table

from deepzero_apps.cli.correct import correct
from deepzero_apps.cli.corrected import problem_of, scene
from deepzero_apps.cli.correction_plan import CorrectSettings, deployed
from deepzero_apps.cli.corrections import TUNED, MethodName
from deepzero_apps.cli.evaluated import course, judged
from deepzero_apps.correction.report import plot_crossover
from deepzero_apps.correction.simulator import SimulatorFailure

CORRECTORS: dict[str, tuple[dict[str, Any], int]] = {
    "1k": ({"width": 5}, 3),
    "6k": ({"width": 14}, 3),
    "55k": ({"corrector": "um-small"}, 1),
}
METHODS: tuple[MethodName, ...] = ("zo-weights", "zo-weights-rge", "zo-field")
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "55k": {
        "zo-weights": (2e-3, 1e-2),
        "zo-weights-rge": (5e-4, 2e-3),
        "zo-field": (1e-3, 5e-3),
    }
}
BUDGETS = (4_000, 12_000, 36_000)


def trained(
    corrector: str, method: str, budget: int, seed: int, *, lr: float, out: Path
) -> dict[str, Any]:
    """Trains once; scores on validation and on test simulations."""
    network, _ = CORRECTORS[corrector]
    settings = CorrectSettings(
        **network,
        method=method,
        loss="terminal",
        budget=budget,
        updates=1_000_000,
        seed=seed,
        lr=lr,
        data_seed=0,
        data=out / "data",
        resume=True,
    )
    problem = problem_of(settings)
    view = scene(settings, problem, coarse=False)
    place = out / f"{corrector}-{method}-{budget}-{seed}-{lr:g}"
    row: dict[str, Any] = {
        "corrector": corrector, "method": method, "budget": budget, "seed": seed, "lr": lr
    }  # fmt: skip
    with redirect_stderr(StringIO()):
        try:
            result = correct(settings, place, view, pictures=False)
        except (SimulatorFailure, FloatingPointError):
            return {**row, "validation_mae": float("inf"), "mae": None}
    _, scores = judged(
        deployed(settings, place, problem), course(problem, view.split.test, steps=None, starts=2)
    )
    return {
        **row,
        "weights": result["weights"],
        "updates": result["updates"],
        "simulator_steps": result["queries"],
        "seconds": result["seconds"],
        "validation_mae": result["validation"][1]["mae"],
        "mae": float(scores.mae.mean()),
    }


def main() -> None:
    """Picks rates, runs the grid, prints it and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/crossover"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    first = CorrectSettings(data=given.out / "data", data_seed=0)
    scene(first, problem_of(first), coarse=False)
    work = joblib.Parallel(n_jobs=given.jobs, batch_size=1, verbose=5)
    pairs = [(c, m) for c in CORRECTORS for m in METHODS]
    tried = work(
        joblib.delayed(trained)(c, m, BUDGETS[0], 0, lr=lr, out=given.out)
        for c in RATES
        for m in METHODS
        for lr in RATES[c][m]
    )
    best = {(c, m): TUNED[m].lr for c, m in pairs}
    for row in sorted(tried, key=lambda r: -r["validation_mae"]):  # the last one written stays
        best[row["corrector"], row["method"]] = row["lr"]
    rows = work(
        joblib.delayed(trained)(c, m, budget, seed, lr=best[c, m], out=given.out)
        for c, m in reversed(pairs)
        for budget in reversed(BUDGETS)
        for seed in range(CORRECTORS[c][1])
    )
    report(rows, given.json, given.png)


def report(rows: list[dict[str, Any]], document: Path | None, picture: Path | None) -> None:
    """Prints, stores and draws the grid."""
    table = Table("corrector", "weights", "method", "lr", *(f"{b:,}" for b in BUDGETS))
    panels: dict[str, Any] = {}
    for corrector in CORRECTORS:
        for method in METHODS:
            own = [r for r in rows if (r["corrector"], r["method"]) == (corrector, method)]
            errors = np.array([[r["mae"] for r in own if r["budget"] == b] for b in BUDGETS]).T
            cells = [f"{mean:.4f}" for mean in errors.mean(0)]
            if len(errors) > 1:
                spread = errors.std(0, ddof=1)
                cells = [f"{cell} ± {s:.4f}" for cell, s in zip(cells, spread, strict=True)]
            weights = f"{own[0]['weights']:,}"
            table.add_row(corrector, weights, method, f"{own[0]['lr']:g}", *cells)
            panels.setdefault(f"{weights} weights", {})[method] = (np.array(BUDGETS), errors)
    Console(width=120).print(table)
    if document:
        document.write_text(json.dumps({"budgets": BUDGETS, "rows": rows}, indent=2) + "\n")
    if picture:
        plot_crossover(panels, picture, title="wake, terminal loss, n = 4", error="test MAE")


if __name__ == "__main__":
    main()
