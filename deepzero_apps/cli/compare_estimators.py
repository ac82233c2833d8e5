"""``deepzero-apps compare estimators``: first order, CGE and RGE on networks of growing size.

The counterpart on digits of DeepZero's table (adjustable CNN on CIFAR-10, q = d). Every cell, one
estimator on one network from one seed, sees the same starting weights, batches and number of
steps. RGE has as many directions as the network has weights, so that it costs what dense CGE does.
Accuracy is that of the last step on the test images; nothing is chosen by it.

The defaults of steps, mu and learning rates come from ``benchmarks/tune_estimators.py``, by
accuracy on the *validation* images.
"""

__all__ = ["Cell", "CompareEstimatorsSettings", "Estimator", "Optimizer", "run", "train_cell"]

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import joblib
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from deepzero_apps.cli.answers import write_json
from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.cli.spreading import SideBySideFlags, batch_of_runs

Estimator = Literal["fo", "cge", "rge"]
Optimizer = Literal["sgd", "adam"]

LABELS = {"fo": "first order", "cge": "CGE", "rge": "RGE, q = d"}

Row = dict[str, Any]


class CompareEstimatorsSettings(SideBySideFlags):
    """First order, CGE and RGE at q = d: accuracy, queries and seconds on scikit-learn's digits."""

    estimators: tuple[Estimator, ...] = ("fo", "cge", "rge")
    """What is compared: backpropagation (fo), coordinates (cge), random directions (rge)."""

    depths: tuple[int, ...] = (1, 2, 3)
    """Blocks of the networks, one network each; at width 18: 406, 3,376 and 6,346 weights."""

    width: int = Field(18, ge=1)
    """Channels of every block."""

    steps: tuple[int, ...] = (400, 100, 70)
    """Training steps: one number for all networks, or one for each depth."""

    seeds: int = Field(3, ge=1)
    """Runs of each estimator and network; the first has the seed of --seed."""

    batch: int = Field(32, ge=2, le=1_000)
    """Images a step."""

    mu_cge: float = Field(1e-3, gt=0, lt=float("inf"))
    """Finite-difference step of CGE, in the units of the weights."""

    mu_rge: float = Field(1e-4, gt=0, lt=float("inf"))
    """Smoothing radius of RGE. A direction moves all d weights, so a step has length mu sqrt(d)."""

    lr_fo: float = Field(0.06, gt=0, lt=float("inf"))
    """Learning rate (Adam) of first order."""

    lr_cge: float = Field(0.06, gt=0, lt=float("inf"))
    """Learning rate (Adam) of CGE."""

    lr_rge: float = Field(0.06, gt=0, lt=float("inf"))
    """Learning rate (Adam) of RGE."""

    out: Path | None = None
    """Make this new or empty folder a run's: settings, the table result.json, estimators.png."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("estimators", "depths"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} must be one or more different values, got {values}")
        if min(self.depths) < 1 or max(self.depths) > 3:
            raise ValueError(
                f"--depths must lie in 1...3, since 8x8 images can be halved 3 times, "
                f"got {self.depths}"
            )
        if len(self.steps) not in (1, len(self.depths)) or min(self.steps) < 1:
            raise ValueError(
                f"--steps must be one number from 1, or one for each of the {len(self.depths)} "
                f"depths, got {self.steps}"
            )
        return self


@dataclass(frozen=True)
class Cell:
    """One estimator on one network from one seed.

    Args:
        estimator: The kind of gradient.
        depth: Blocks of the network.
        width: Channels of the network.
        steps: The number of steps.
        batch: Images a step.
        mu: The finite-difference step, in the units of the weights.
        lr: The peak learning rate.
        optimizer: What uses the gradient.
        seed: The seed of starting weights, batches and directions.
        data_seed: The seed of the division into training, validation and test.
        device: Where the network runs.
    """

    estimator: Estimator
    depth: int
    width: int
    steps: int
    batch: int
    mu: float
    lr: float
    optimizer: Optimizer = "adam"
    seed: int = 0
    data_seed: int = 0
    device: str = "cpu"


def train_cell(cell: Cell) -> Row:
    """Trains one network from scratch.

    Args:
        cell: What is trained, and how.

    Returns:
        ``parameters``, ``accuracy`` and ``validation_accuracy`` in percent after the last step,
        ``queries``, ``seconds`` and ``cpu_seconds`` of training (the latter do not count other
        programs on the machine), and the fields that identify the cell.
    """
    import torch

    from deepzero_apps.vision import adjustable_cnn, digits
    from deepzero_apps.vision.training import Recipe, accuracy, classifier_training
    from deepzero_apps.zeroth_order.randomness import generator_for

    torch.set_num_threads(1)
    splits = digits(seed=cell.data_seed)
    network = adjustable_cnn(
        cell.depth,
        width=cell.width,
        channels=1,
        generator=generator_for(cell.seed, "initial weights"),
    ).to(cell.device)
    recipe = Recipe(
        steps=cell.steps,
        batch=cell.batch,
        optimizer=cell.optimizer,
        lr=cell.lr,
        weight_decay=0.0,
        warmup=cell.steps // 10,
        seed=cell.seed,
    )
    total = sum(p.numel() for p in network.parameters())
    train = splits.train.to(cell.device)
    training = classifier_training(network, train, _gradient(cell, total), recipe)
    started, worked = time.perf_counter(), time.process_time()
    losses = [metrics["loss"] for metrics in training.run(cell.steps)]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    return {
        "estimator": cell.estimator,
        "depth": cell.depth,
        "parameters": total,
        "seed": cell.seed,
        "accuracy": accuracy(network, splits.test.to(cell.device)),
        "validation_accuracy": accuracy(network, splits.validation.to(cell.device)),
        "loss": statistics.fmean(losses[-10:]),
        "queries": training.meter.spent,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def run(settings: CompareEstimatorsSettings) -> int:
    """Trains all cells, prints the table and writes what was asked for.

    Args:
        settings: What to compare.

    Returns:
        The exit code.
    """
    _refuse_unwritable(settings.out)
    started = time.perf_counter()
    cells = _cells(settings)
    with batch_of_runs(settings, ordered=False) as batch:
        trained = batch(joblib.delayed(train_cell)(cell) for cell in cells)
        rows = list(tracked(trained, "training", total=len(cells), note=_note))
    rows = _averaged(sorted(rows, key=lambda row: (row["parameters"], row["seed"])), settings)
    result = {
        "settings": settings.record(),
        "rows": rows,
        "wall_seconds": time.perf_counter() - started,
    }
    Console().print(_table(rows, settings))
    _write(result, settings)
    return 0


def _gradient(cell: Cell, total: int) -> Any:  # noqa: ANN401 - torch is imported inside
    from deepzero_apps.zeroth_order.gradients import Coordinates, FirstOrder, Randomized
    from deepzero_apps.zeroth_order.stacked import StackedRandomized

    if cell.estimator == "fo":
        return FirstOrder()
    if cell.estimator == "cge":
        return Coordinates(mu=cell.mu)
    return StackedRandomized(Randomized(mu=cell.mu, q=total, seed=cell.seed))


def _cells(settings: CompareEstimatorsSettings) -> list[Cell]:
    """All cells, the longest first, so that no process ends up with a long one alone."""
    steps = settings.steps * (len(settings.depths) if len(settings.steps) == 1 else 1)
    order = {"rge": 0, "cge": 1, "fo": 2}
    cells = [
        Cell(
            estimator,
            depth,
            settings.width,
            count,
            batch=settings.batch,
            mu=settings.mu_rge if estimator == "rge" else settings.mu_cge,
            lr=getattr(settings, f"lr_{estimator}"),
            seed=settings.seed + seed,
            data_seed=settings.seed,
            device=settings.device,
        )
        for estimator in settings.estimators
        for depth, count in zip(settings.depths, steps, strict=True)
        for seed in range(settings.seeds)
    ]
    return sorted(cells, key=lambda c: (order[c.estimator], -c.depth))


def _note(row: Row) -> str:
    return (
        f"{LABELS[row['estimator']]}, {row['parameters']:,} weights: {row['accuracy']:.1f} % "
        f"in {row['seconds']:.0f} s"
    )


def _averaged(cells: Sequence[Row], settings: CompareEstimatorsSettings) -> list[Row]:
    rows = []
    for depth in settings.depths:
        for estimator in settings.estimators:
            runs = [c for c in cells if (c["depth"], c["estimator"]) == (depth, estimator)]
            accuracies = [c["accuracy"] for c in runs]
            rows.append(
                {
                    "estimator": estimator,
                    "parameters": runs[0]["parameters"],
                    "depth": depth,
                    "accuracy": statistics.fmean(accuracies),
                    "accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
                    "accuracies": accuracies,
                    "loss": statistics.fmean(c["loss"] for c in runs),
                    "queries": runs[0]["queries"],
                    "seconds": statistics.fmean(c["seconds"] for c in runs),
                    "cpu_seconds": statistics.fmean(c["cpu_seconds"] for c in runs),
                }
            )
    return rows


def _table(rows: Sequence[Row], settings: CompareEstimatorsSettings) -> Table:
    table = Table(
        title=f"digits: test accuracy in %, {settings.seeds} seeds; the price of one run"
    )
    table.add_column("weights", justify="right")
    table.add_column("estimator")
    for name in ("accuracy", "std", "loss", "queries", "seconds", "CPU s"):
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        std = row["accuracy_std"]
        table.add_row(
            f"{row['parameters']:,}",
            LABELS[row["estimator"]],
            f"{row['accuracy']:.2f}",
            "-" if std is None else f"{std:.2f}",
            f"{row['loss']:.3f}",
            f"{row['queries']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            end_section=(i + 1) % len(settings.estimators) == 0,
        )
    return table


def _refuse_unwritable(out: Path | None) -> None:
    """Finds out before minutes of work that the result could not be written."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Misuse(f"--out must be a new or an empty folder, got {out}")


def _write(result: dict[str, Any], settings: CompareEstimatorsSettings) -> None:
    if settings.out is not None:
        from deepzero_apps.cli.driving import opened
        from deepzero_apps.cli.training_figures import accuracy_bars

        with opened("compare estimators", settings.out, settings, resume=False) as run_folder:
            accuracy_bars(result["rows"], LABELS, settings.out / "estimators.png")
            run_folder.finish(result)
    write_json(settings.json_file, result)
