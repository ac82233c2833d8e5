"""Chooses the settings of the defence table on validation images: average certified radius of a grid.

    python benchmarks/tune_defence.py --out runs/tune-defence --json benchmarks/results/tune_defence.json

Every cell is a ``defend`` run with the queries of the comparison, certified on the *validation* split;
test images are not looked at. Cells run in processes of their own and are kept in ``--out``: the same
command continues where it stopped.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from deepzero_apps.cli.certify import CertifySettings, certify_into, defended
from deepzero_apps.cli.defend import DefendSettings, defend
from deepzero_apps.cli.scenes import scene
from deepzero_apps.cli.votes import Votes
from deepzero_apps.smoothing.certify import average_certified_radius

GRID: list[dict[str, Any]] = [
    {"method": "deepzero", "q": 4, "lr": 1e-3},
    {"method": "deepzero", "q": 16, "batch": 16, "lr": 1e-3},
    {"method": "zo-ds", "q": 4, "lr": 5e-4},
    {"method": "deepzero", "q": 8, "batch": 32, "lr": 1e-3},
    {"method": "zo-ds", "q": 4, "batch": 32, "lr": 5e-4},
    {"method": "zo-ae-ds", "lr": 1e-3},
    {"method": "zo-cv", "q": 1, "lr": 1e-3},
    {"method": "zo-cv", "q": 4, "lr": 1e-3},
    {"method": "fo-ds", "lr": 1e-3, "steps": 8_000},
    {"method": "deepzero", "q": 4, "lr": 5e-4},
    {"method": "zo-ds", "q": 4, "lr": 1e-3},
    {"method": "fo-ds", "lr": 2e-3, "steps": 8_000},
    {"method": "zo-ds", "q": 8, "lr": 1e-3},
    {"method": "zo-ae-ds", "lr": 3e-4},
]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and certifies the grid, prints a line a cell."""
    parser = argparse.ArgumentParser(description="settings of the defence table, by validation")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--classifier", default="cnn", help="what is defended")
    parser.add_argument("--methods", nargs="*", help="only these methods")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args(argv)
    chosen = [c for c in GRID if not arguments.methods or c["method"] in arguments.methods]
    rows = [cell({"method": "mse"}, arguments.classifier, arguments.out)]
    print(rows[0], flush=True)
    work = Parallel(n_jobs=arguments.jobs, return_as="generator")(
        delayed(cell)(changes, arguments.classifier, arguments.out) for changes in chosen
    )
    for row in work:
        print(row, flush=True)
        rows.append(row)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def cell(changes: dict[str, Any], classifier: str, out: Path) -> dict[str, Any]:
    """Trains one cell and certifies validation images."""
    torch.set_num_threads(1)
    own_start = changes["method"] in ("mse", "zo-ae-ds")
    start = None if own_start else out / "mse" / "denoiser.safetensors"
    settings = DefendSettings(classifier=classifier, resume=True, start=start, **changes)
    folder = out / "-".join(f"{value}" for value in changes.values())
    view = scene(settings)
    result = defend(settings, folder, view)
    votes = CertifySettings(
        classifier=classifier, resume=True, votes=Votes(images=0, split="validation", n=1_000)
    )
    certificates, _ = certify_into(
        folder / "validation",
        defended(settings, folder, view),
        view,
        votes,
        title="validation",
    )
    acr = average_certified_radius(certificates)
    return {**changes, "acr": acr, "queries": result["queries"], "seconds": result["seconds"]}


if __name__ == "__main__":
    raise SystemExit(main())
