"""Is it the method or the network? The defence table's methods from the start of ``zo-ae-ds``.

    deepzero-apps compare defence --classifier cnn --out runs/cnn
    python benchmarks/defence_same_start.py --run runs/cnn --json benchmarks/results/defence_same_start.json

In the table ``zo-ae-ds`` deploys another network than the others: a denoiser *and* an autoencoder, trained
by ``mse``. Here the other methods train that same network from those same weights, with the table's settings,
queries, images and votes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from deepzero_apps.cli.compare_defence import CompareDefenceSettings
from deepzero_apps.cli.defences import TUNED, build
from deepzero_apps.cli.defend import denoiser
from deepzero_apps.cli.scenes import scene
from deepzero_apps.cli.votes import RADII
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.blackbox import Defended
from deepzero_apps.smoothing.certify import certify
from deepzero_apps.smoothing.reporting.tables import summarize
from deepzero_apps.smoothing.training import Recipe, clean_answers, defence_training, steps_within
from deepzero_apps.zeroth_order.oracle import Meter, Oracle

METHODS = ("mse", "zo-ds", "deepzero", "zo-cv")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and certifies, prints a line a method."""
    parser = argparse.ArgumentParser(description="the defence table from the start of zo-ae-ds")
    parser.add_argument("--run", type=Path, required=True, help="a folder of compare defence")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="which methods")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args(argv)
    rows = Parallel(n_jobs=arguments.jobs)(
        delayed(cell)(name, arguments.run) for name in arguments.methods
    )
    for row in rows:
        print(row["method"], f"{row['acr']:.4f}", row["acr_interval"], row["queries"])
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def cell(name: Any, run: Path) -> dict[str, Any]:  # noqa: ANN401 - one of METHODS
    """Trains and certifies one method."""
    torch.set_num_threads(1)
    settings = CompareDefenceSettings(**RunFolder(run).config)
    view = scene(settings)
    train = view.splits.train
    network = denoiser(settings, train.shape, code=True)
    checkpoint = RunFolder(run / "zo-ae-ds" / "start").load_latest()
    if checkpoint is None:
        raise SystemExit(f"--run must hold a finished zo-ae-ds, got {run}")
    network.load_state_dict(checkpoint[1]["network"])

    tuning = TUNED[name]
    meter = Meter(settings.budget)
    oracle = Oracle(view.box.classifier, meter=meter)
    defence = build(
        name,
        network,
        oracle=oracle,
        white_box=view.box.white_box,
        tuning=tuning,
        image_shape=train.shape,
        classes=view.box.classifier.classes,
        seed=settings.seed,
    )
    if defence.queries:
        targets = clean_answers(oracle, train.pixels())
        steps = steps_within(
            settings.budget - meter.spent, batch=tuning.batch, queries=defence.queries
        )
        recipe = Recipe(
            sigma=settings.sigma, steps=steps, batch=tuning.batch, lr=tuning.lr, seed=settings.seed
        )
        training = defence_training(
            network,
            defence.method,
            train.pixels(),
            targets,
            recipe=recipe,
            meter=meter,
            companion=defence.companion,
        )
        for _ in training.run(steps):
            pass
    images = settings.votes.chosen(view)
    certificates = list(
        certify(
            Defended(network, view.box.classifier),
            images.pixels(),
            images.labels,
            settings.votes.settings(settings.sigma, settings.seed),
        )
    )
    row = summarize(name, certificates, radii=RADII, queries=meter.spent, seconds=0.0)
    return {**row, "tuning": asdict(tuning)}


if __name__ == "__main__":
    raise SystemExit(main())
