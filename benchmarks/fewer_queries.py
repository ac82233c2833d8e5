r"""Accuracy against queries on digits: which options of sparse gradients pay.

    python benchmarks/fewer_queries.py tune          # every option, rates chosen on validation images
    python benchmarks/fewer_queries.py final         # the winners at several budgets, test images
    python benchmarks/fewer_queries.py report        # table and figure from the rows

A *variant* is a way to spend queries; at a budget Q it makes Q / (queries a step) steps with a cosine
rate, so that all variants spend the same. Rows are kept in ``--rows`` as soon as
they are made, and rows that exist are not made again.

To keep this affordable the slopes are autograd's, on the coordinates that the estimate would
move, and the queries those that the estimate would cost. A finite difference differs from them by
:math:`O(\mu)`; ``final`` trains two finalists again with the real one (*measured*), and ``tune``
varies mu and forward or central differences with real ones. Every number is a mean over seeds; tuning
and final seeds differ.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from fewer_queries_variants import FINALISTS, Variant, rates, variants
from matplotlib import pyplot as plt
from torch import Tensor, nn

from deepzero_apps.runs.files import replace as replace_file
from deepzero_apps.vision import Splits, adjustable_cnn, digits, resnet
from deepzero_apps.vision.supports import Sparsity, support_schedule
from deepzero_apps.vision.training import Recipe, accuracy, classifier_training, queries_a_step
from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    WeightGradient,
)
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.stale import Remembered
from deepzero_apps.zeroth_order.training import Observation

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn2": partial(adjustable_cnn, 2),
    "resnet8": partial(resnet, 8),
}
BUDGETS = {"cnn2": (10_000, 30_000, 100_000), "resnet8": (30_000, 100_000, 300_000)}
TUNED_AT = {"cnn2": 30_000, "resnet8": 100_000}
BATCH = 64
MU = 1e-3
SCORE_QUERIES = {"energy": 8, "zo-grasp": 192}
TUNING_SEEDS = {"cnn2": (100, 101, 102), "resnet8": (100, 101)}
RESULTS = Path(__file__).parent / "results"
FINAL_SEEDS = (0, 1, 2, 3, 4)
MEASURED = ("energy, cyclic, hold, sparse .99", "outputs, share 0.1")
"""Finalists that are trained again with real finite differences, at the tuned budget."""

SUFFIX = ", measured"

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run."""

    network: str
    variant: str
    queries: int
    lr: float
    seed: int
    tested: bool = False


@dataclass(frozen=True)
class ByAutograd(FirstOrder):
    """What `Activations` estimates, from autograd: as many outputs and weights, drawn alike."""

    share: float = 1.0
    seed: int = 0

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        generator = generator_for(self.seed, "proxy", step)
        taken: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            output.retain_grad()
            taken[module] = args[0].detach(), output

        with ExitStack() as stack:
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    stack.enter_context(module.register_forward_hook(keep))
            loss = head(network(inputs)[None])[0].mean()
        loss.backward()
        for layer, (x, output) in taken.items():
            own = list(layer.parameters())
            if output[0].numel() < sum(p.numel() for p in own):
                slopes = self._drawn(_slopes(output).flatten(1), generator).view(output.shape)
                found: Sequence[Tensor] = torch.autograd.grad(layer(x), own, slopes)
            else:
                found = [self._drawn(_slopes(p).view(1, -1), generator) for p in own]
            for p, g in zip(own, found, strict=True):
                p.grad = g.view(p.shape)
        return Observation(float(loss.detach()))

    def _drawn(self, slopes: Tensor, generator: torch.Generator) -> Tensor:
        size = slopes.shape[1]
        count = math.ceil(self.share * size)
        chosen = torch.randperm(size, generator=generator)[:count]
        kept = torch.zeros_like(slopes)
        kept[:, chosen] = slopes[:, chosen] * (size / count)
        return kept


def _slopes(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad


def trained(cell: Cell, splits: Splits) -> Row:
    """Trains one network and returns what it reached."""
    name = cell.variant.removesuffix(SUFFIX)
    variant, started = variants(cell.network)[name], time.process_time()
    if name != cell.variant:
        variant = replace(variant, mu=MU)
    network = NETWORKS[cell.network](
        channels=1, generator=generator_for(cell.seed, "initial weights")
    )
    spent, estimate, stand_in = _gradients(network, splits, variant, cell.seed)
    batch = splits.train.pixels(slice(0, BATCH))
    cost = queries_a_step(estimate, network.train(), batch)
    steps = (cell.queries - spent) // cost
    recipe = Recipe(
        steps=steps,
        batch=BATCH,
        optimizer=variant.optimizer,
        lr=cell.lr,
        momentum=variant.momentum,
        weight_decay=0.0,
        warmup=steps // 10,
        hold_unselected=variant.hold,
        forget_at_redraw=variant.forget,
        seed=cell.seed,
    )
    gradient = estimate if variant.mu else stand_in
    training = classifier_training(network, splits.train, gradient, recipe)
    try:
        loss = mean([metrics["loss"] for metrics in training.run(steps)][-10:])
    except FloatingPointError:
        loss = 1e9
    row = asdict(cell) | {
        "steps": steps,
        "queries_a_step": cost,
        "loss": round(loss, 4),
        "validation_accuracy": round(accuracy(network, splits.validation), 3),
        "cpu_seconds": round(time.process_time() - started, 2),
    }
    return row | ({"accuracy": accuracy(network, splits.test)} if cell.tested else {})


def _gradients(
    network: nn.Module, splits: Splits, variant: Variant, seed: int
) -> tuple[int, WeightGradient, WeightGradient]:
    """The queries already spent on scores, the estimate, and autograd's stand-in for it."""
    if variant.kind == "outputs":
        share = 1 - variant.sparsity
        measured = Activations(mu=variant.mu or MU, share=share, seed=seed)
        return 0, measured, ByAutograd(share=share, seed=seed)
    sparsity = Sparsity(
        variant.sparsity,
        allocation=variant.allocation,
        interval=variant.interval,
        order=variant.order,
        q=SCORE_QUERIES.get(variant.allocation, 1),
    )
    meter, recipe = Meter(), Recipe(steps=1, batch=BATCH, seed=seed)
    schedule = support_schedule(network, splits.train, sparsity, recipe, mu=MU, meter=meter)
    plain = Coordinates(mu=variant.mu or MU, schedule=schedule, central=variant.central)
    stand_in = FirstOrder(schedule)
    if variant.decay is None:
        return meter.spent, plain, stand_in
    return meter.spent, Remembered(plain, variant.decay), Remembered(stand_in, variant.decay)


def tuning_cells(network: str) -> Iterator[Cell]:
    """All variants at one budget and the finalists at the others; all rates."""
    for name, variant in variants(network).items():
        budgets = BUDGETS[network] if name in FINALISTS else (TUNED_AT[network],)
        for queries in budgets:
            for lr in rates(variant):
                for seed in TUNING_SEEDS[network]:
                    yield Cell(network, name, queries, lr, seed)


def final_cells(rows: Sequence[Row], network: str) -> Iterator[Cell]:
    """The finalists at all budgets with the rates of the best validation accuracy."""
    best = best_rates(rows)
    for name in FINALISTS:
        for queries in BUDGETS[network]:
            if (network, name, queries) in best:
                lr = best[network, name, queries]
                for seed in FINAL_SEEDS:
                    yield Cell(network, name, queries, lr, seed, tested=True)
    for name in MEASURED:
        queries = TUNED_AT[network]
        for seed in FINAL_SEEDS[:2]:
            lr = best[network, name, queries]
            yield Cell(network, name + SUFFIX, queries, lr, seed, tested=True)


def best_rates(rows: Sequence[Row]) -> dict[tuple[str, str, int], float]:
    """Finds the rate of the best mean validation accuracy, by network, variant and budget."""
    found: defaultdict[tuple[str, str, int], dict[float, float]] = defaultdict(dict)
    for (network, name, queries, lr), runs in grouped(rows, tested=False).items():
        found[network, name, queries][lr] = mean(row["validation_accuracy"] for row in runs)
    return {key: max(means.items(), key=itemgetter(1))[0] for key, means in found.items()}


def grouped(rows: Sequence[Row], *, tested: bool) -> dict[tuple[str, str, int, float], list[Row]]:
    """Groups rows that differ by their seeds alone."""
    groups: defaultdict[tuple[str, str, int, float], list[Row]] = defaultdict(list)
    for row in rows:
        if row["tested"] is tested:
            groups[row["network"], row["variant"], row["queries"], row["lr"]].append(row)
    return dict(groups)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, trains what is missing, reports."""
    parser = argparse.ArgumentParser(description="accuracy against queries")
    parser.add_argument("what", choices=("tune", "final", "report"))
    parser.add_argument("--network", choices=sorted(NETWORKS), action="append")
    parser.add_argument("--rows", type=Path, default=RESULTS / "fewer_queries.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = _read(arguments.rows)
    if arguments.what == "report":
        report(rows, arguments.rows)
        return 0
    cells = tuning_cells if arguments.what == "tune" else partial(final_cells, rows)
    wanted = [c for network in arguments.network or sorted(NETWORKS) for c in cells(network)]
    _train_missing(wanted, rows, arguments.rows, seconds=arguments.seconds)
    return 0


def _train_missing(cells: Sequence[Cell], rows: list[Row], file: Path, *, seconds: float) -> None:
    splits, deadline = digits(seed=0), time.monotonic() + seconds
    known = {_key(row) for row in rows}
    missing = [cell for cell in cells if _key(asdict(cell)) not in known]
    for i, cell in enumerate(missing):
        if time.monotonic() > deadline:
            print(f"{len(missing) - i} cells are left; run the command again")
            return
        rows.append(trained(cell, splits))
        lines = ",\n".join(json.dumps(row) for row in rows)
        replace_file(file, f"[\n{lines}\n]\n".encode())


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in Cell.__dataclass_fields__)


def _read(file: Path) -> list[Row]:
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return rows


def report(rows: Sequence[Row], file: Path) -> None:
    """Prints the tables and draws the figure beside the rows."""
    print(tuning_table(rows), final_table(rows), sep="\n\n")
    draw(rows, file.with_suffix(".png"))


def tuning_table(rows: Sequence[Row]) -> str:
    """Mean validation accuracy of each variant at its best rate."""
    best, groups = best_rates(rows), grouped(rows, tested=False)
    lines = [
        "| network | variant | steps | queries a step | rate | accuracy, % |",
        "|---" * 6 + "|",
    ]
    for (network, name, queries), lr in best.items():
        if queries == TUNED_AT[network]:
            runs = groups[network, name, queries, lr]
            accuracies = [row["validation_accuracy"] for row in runs]
            lines.append(
                f"| {network} | {name} | {runs[0]['steps']} | {runs[0]['queries_a_step']:,} "
                f"| {lr:g} | {mean(accuracies):.1f} ({min(accuracies):.1f}) |"
            )
    return "\n".join(lines)


def final_table(rows: Sequence[Row]) -> str:
    """Test accuracy of the finalists, mean and standard deviation over seeds."""
    lines = ["| network | variant | queries | steps | accuracy, % |", "|---" * 5 + "|"]
    for (network, name, queries, _), runs in grouped(rows, tested=True).items():
        accuracies = [row["accuracy"] for row in runs]
        spread = f" +- {stdev(accuracies):.1f}" if len(runs) > 1 else ""
        lines.append(
            f"| {network} | {name} | {queries:,} | {runs[0]['steps']} "
            f"| {mean(accuracies):.1f}{spread} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draws test error against queries, one panel a network."""
    figure, panels = plt.subplots(
        1, len(NETWORKS), figsize=(9.5, 4.4), sharey=True, layout="constrained"
    )
    groups = grouped(rows, tested=True)
    for panel, network in zip(panels, sorted(NETWORKS), strict=True):
        for color, name in enumerate(FINALISTS):
            found = sorted(
                (queries, 100 - mean(row["accuracy"] for row in runs))
                for (n, v, queries, _), runs in groups.items()
                if (n, v) == (network, name)
            )
            if found:
                x, y = zip(*found, strict=True)
                panel.plot(x, y, marker="o", color=f"C{color}", label=name)
        panel.set(xscale="log", yscale="log", title=network)
        panel.set_xlabel(f"queries: networks on a batch of {BATCH}")
        panel.set_xticks(BUDGETS[network], [f"{queries:,}" for queries in BUDGETS[network]])
        panel.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test error, %")
    named = panels[-1].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
