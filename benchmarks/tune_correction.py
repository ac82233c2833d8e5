"""Tunes every method of the correction table on validation simulations of the default problem.

    python benchmarks/tune_correction.py --out runs/tune --json benchmarks/results/tune_correction.json

Learning rates, and the number of directions or coordinates of a step, at equal simulator steps. The
test simulations are never looked at. A killed run goes on where it stopped.
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
from rich.console import Console
from rich.table import Table

from deepzero_apps.cli.correct import correct
from deepzero_apps.cli.corrected import problem_of, scene
from deepzero_apps.cli.correction_plan import CorrectSettings
from deepzero_apps.correction.simulator import SimulatorFailure

GRID: dict[str, tuple[tuple[str, int | None, tuple[float, ...]], ...]] = {
    "terminal": (
        ("zo-field", 2, (2.5e-3, 5e-3, 1e-2, 2e-2)),
        ("zo-field", 4, (1e-2, 2e-2)),
        ("zo-weights-rge", 8, (5e-3, 1e-2)),
        ("zo-weights", 16, (1e-2, 2e-2)),
        ("nog", None, (2e-3, 5e-3, 1e-2)),
        ("fo", None, (5e-3, 1e-2)),
    ),
    "every": (("non", None, (2e-3, 5e-3, 1e-2)),),
}


def cells() -> list[dict[str, Any]]:
    """Lists all settings to be tried."""
    return [
        {"loss": loss, "method": method, "q": q, "lr": lr}
        for loss, rows in GRID.items()
        for method, q, rates in rows
        for lr in rates
    ]


def tried(cell: dict[str, Any], *, budget: int, seed: int, out: Path) -> dict[str, Any]:
    """Trains once and scores on validation simulations."""
    name = "-".join(str(v) for v in cell.values()) + f"-{seed}"
    settings = CorrectSettings(
        **cell, budget=budget, seed=seed, data_seed=0, data=out / "data", resume=True
    )
    view = scene(settings, problem_of(settings), coarse=False)
    row: dict[str, Any] = {**cell, "seed": seed, "budget": budget, "mae": None}
    with redirect_stderr(StringIO()):
        try:
            result = correct(settings, out / name, view, pictures=False)
        except (SimulatorFailure, FloatingPointError) as error:
            return {**row, "failure": str(error)}
    score = result["validation"][1]
    return {
        **row,
        "mae": score["mae"],
        "updates": result["updates"],
        "simulator_steps": result["queries"],
        "seconds": result["seconds"],
    }


def main() -> None:
    """Runs the grid and prints it, best rate of each row first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tune-correction"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budget", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    first = CorrectSettings(data=given.out / "data", data_seed=0)
    scene(first, problem_of(first), coarse=False)
    work = joblib.Parallel(n_jobs=given.jobs, batch_size=1, verbose=5)(
        joblib.delayed(tried)(cell, budget=given.budget, seed=given.seed, out=given.out)
        for cell in cells()
    )
    rows = [row for row in work if row is not None]
    table = Table("loss", "method", "q", "lr", "validation MAE", "updates", "seconds")
    for row in rows:
        table.add_row(*(str(row.get(k)) for k in ("loss", "method", "q", "lr")),
                      "failed" if row["mae"] is None else f"{row['mae']:.4f}",
                      str(row.get("updates")), f"{row.get('seconds', 0):.0f}")  # fmt: skip
    Console().print(table)
    if given.json:
        given.json.write_text(
            json.dumps({"settings": vars(given), "rows": rows}, indent=2, default=str)
        )


if __name__ == "__main__":
    main()
