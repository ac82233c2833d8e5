"""Chooses learning rates and mu of ``deepzero-apps compare estimators`` on validation images.

    python benchmarks/tune_estimators.py --json benchmarks/results/tune_estimators.json

Two parts. *Rates*: every estimator is trained with each rate of a small grid; the best mean validation
accuracy counts (test accuracy is not looked at). *Mu*: at the starting weights and after training,
the relative error |estimate - reference| / |reference| of a float32 estimate, where the reference is
the float64 gradient by autograd for CGE, and for RGE the average of (g.u) u with that gradient over
the same directions. Forward differences are off by mu H / 2 above the best mu, by rounding below it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from deepzero_apps.cli.compare_estimators import Cell, Estimator, Optimizer, train_cell
from deepzero_apps.vision import adjustable_cnn, digits
from deepzero_apps.vision.training import Recipe, classifier_training
from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    Randomized,
    WeightGradient,
)
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.stacked import StackedRandomized

STEPS = {1: 400, 2: 100, 3: 70}
GRID: dict[Estimator, list[tuple[Optimizer, float]]] = {
    "fo": [("adam", lr) for lr in (0.03, 0.06, 0.1, 0.2)] + [("sgd", lr) for lr in (0.1, 0.3)],
    "cge": [("adam", 0.06)],
    "rge": [("adam", lr) for lr in (0.03, 0.06, 0.1)],
}
MU: dict[Estimator, float] = {"fo": 1e-3, "cge": 1e-3, "rge": 1e-4}
DEPTHS: dict[Estimator, tuple[int, ...]] = {"fo": (1, 2, 3), "cge": (1, 2), "rge": (2, 1)}
SEEDS: dict[Estimator, tuple[int, ...]] = {"fo": (100, 101, 102), "cge": (100,), "rge": (100,)}
MUS = (1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description="rates and mu, chosen on validation images")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args(argv)
    result = {"mu": mu_study(), "rates": rates(arguments.jobs)}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def rates(jobs: int) -> list[dict[str, Any]]:
    """Trains the grid."""
    cells = [
        Cell(
            estimator,
            depth,
            18,
            STEPS[depth],
            batch=32,
            mu=MU[estimator],
            lr=lr,
            optimizer=optimizer,
            seed=seed,
        )
        for estimator, settings in GRID.items()
        for optimizer, lr in settings
        for depth in DEPTHS[estimator]
        for seed in SEEDS[estimator]
    ]
    trained = Parallel(n_jobs=jobs)(delayed(_validated)(cell) for cell in cells)
    keys = dict.fromkeys((r["estimator"], r["optimizer"], r["lr"], r["depth"]) for r in trained)
    rows = []
    for key in keys:
        found = [
            r for r in trained if (r["estimator"], r["optimizer"], r["lr"], r["depth"]) == key
        ]
        mean = sum(r["validation_accuracy"] for r in found) / len(found)
        rows.append(
            dict(zip(("estimator", "optimizer", "lr", "depth"), key, strict=True))
            | {"seeds": len(found), "validation_accuracy": round(mean, 2)}
        )
    return rows


def _validated(cell: Cell) -> dict[str, Any]:
    row = train_cell(cell)
    row = {k: row[k] for k in ("estimator", "depth", "validation_accuracy")}
    row |= {"optimizer": cell.optimizer, "lr": cell.lr}
    print(row, flush=True)
    return row


def mu_study(depth: int = 2, q: int = 64) -> list[dict[str, Any]]:
    """Measures errors of float32 estimates around their float64 references."""
    torch.set_num_threads(1)
    train = digits(seed=0).train
    network = adjustable_cnn(depth, channels=1, generator=generator_for(0, "initial weights"))
    inputs, head = train.pixels(slice(0, 32)), CrossEntropy(train.labels[:32])
    rows = _errors(network, inputs, head, q=q, when="at the start")
    recipe = Recipe(steps=120, batch=32, optimizer="adam", lr=0.1, weight_decay=0.0, warmup=12)
    for _ in classifier_training(network, train, FirstOrder(), recipe).run(120):
        pass
    return rows + _errors(network, inputs, head, q=q, when="after training")


def _errors(
    network: nn.Module, inputs: Tensor, head: Head, *, q: int, when: str
) -> list[dict[str, Any]]:
    network.train()
    exact = _gradient(network.double(), FirstOrder(), inputs.double(), head)
    network.float()
    generator = generator_for(0, "directions", 0)
    u = torch.stack([torch.empty(len(exact)).normal_(generator=generator) for _ in range(q)])
    along = (u.double() @ exact) @ u.double() / q
    rows = []
    for mu in MUS:
        cge = _gradient(network, Coordinates(mu=mu), inputs, head)
        rge = _gradient(network, StackedRandomized(Randomized(mu=mu, q=q)), inputs, head)
        rows.append(
            {
                "when": when,
                "mu": mu,
                "cge_error": float((cge - exact).norm() / exact.norm()),
                "rge_error": float((rge - along).norm() / along.norm()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _gradient(network: nn.Module, gradient: WeightGradient, inputs: Tensor, head: Head) -> Tensor:
    network.zero_grad()
    gradient(network, inputs, head, step=0)
    return torch.cat(
        [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    ).double()


if __name__ == "__main__":
    raise SystemExit(main())
