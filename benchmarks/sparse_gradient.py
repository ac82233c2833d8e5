r"""Measures how good a sparse gradient is, by how its coordinates are split over the layers.

    python benchmarks/sparse_gradient.py --json sparse_gradient.json

Every allocation gets the same number Q of queries. What it spends on finding the split is taken
off; the rest are coordinates, S. The sparse estimate is CGE on S, which equals autograd's
gradient g on S up to :math:`O(\mu)`, so autograd's entries are used. Three figures:

- *cosine* of :math:`g_S` to g, whose square is the captured energy :math:`|g_S|^2 / |g|^2`;
- *unbiased cosine*: of :math:`(d_l / k_l) g_S`, whose mean over draws is g where no layer is empty;
- *mean cosine*: of the mean of :math:`g_S` over draws, :math:`(k_l / d_l) g_l` in layer l: what many
  redraws add up to. By size it is 1; a split that neglects layers has less.

Four rows are there to compare with. *size* and *random* need no queries. Neither does *magnitude*,
scores :math:`\theta_i \xi_i` with :math:`\xi_i \sim N(0, 1)`: what ZO-GraSP is when its estimate is
nothing but noise. *grasp* and *exact* need autograd.

The networks see a batch of 128 digits in train mode, at initialization and after 100 steps of SGD.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.vision import adjustable_cnn, digits, resnet
from deepzero_apps.zeroth_order.differences import Evaluation, Sequential
from deepzero_apps.zeroth_order.estimators import Loss
from deepzero_apps.zeroth_order.gradients import network_loss
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import (
    counts_by_energy,
    counts_by_score,
    counts_by_size,
    draw,
    grasp,
    layer_energies,
    zo_grasp,
)
from deepzero_apps.zeroth_order.state import Weights

MU = 1e-3
GRASP_QUERIES = 192
LAYER_QUERIES = 4
BATCH = 128
STEPS = 100
DRAWS = 20
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[float, ...]]] = {
    "resnet20": (partial(resnet, 20), (0.01, 0.1)),
    "cnn3": (partial(adjustable_cnn, 3), (0.1, 0.2)),
}
"""A network, and the budgets Q in parts of its number of weights."""
FIGURES = ("cosine", "unbiased cosine", "mean cosine")

Row = dict[str, float | int | str]
Split = Callable[[int], list[int]]
"""The number of coordinates in all to their number in each layer."""


@dataclass(frozen=True)
class Problem:
    """A network on a batch, and its gradient by autograd.

    Attributes:
        evaluation: The loss around the weights; its meter runs.
        base: The loss at the weights.
        weights: The weights.
        theta: The same as one vector, of shape ``(d,)``.
        gradient: The gradient, of shape ``(d,)``.
        scores: First-order GraSP scores, of shape ``(d,)``.
        seed: The seed of all that is drawn.
    """

    evaluation: Evaluation
    base: float
    weights: Weights
    theta: Tensor
    gradient: Tensor
    scores: Tensor
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description="sparse gradients against autograd")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--seeds", type=int, default=3, help="networks and batches")
    arguments = parser.parse_args(argv)

    start = time.perf_counter()
    torch.set_num_threads(1)
    rows: list[Row] = [
        {**row, "problem": f"{name} {state}", "seed": seed}
        for seed in range(arguments.seeds)
        for name, (_, budgets) in NETWORKS.items()
        for state, problem in problems(name, seed)
        for row in measured(problem, budgets)
    ]
    for figure in (*FIGURES, "correlation"):
        print(f"{figure}\n\n{table(rows, figure)}\n")
    print(f"{time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


def problems(name: str, seed: int) -> Iterator[tuple[str, Problem]]:
    """Yields a network on a batch at initialization and after training by backpropagation."""
    train = digits().train
    network = NETWORKS[name][0](channels=1, generator=generator_for(seed, "weights"))
    rows = torch.randperm(len(train), generator=generator_for(seed, "batch"))[:BATCH]
    yield "initial", _problem(network, train.pixels(rows), train.labels[rows], seed)
    _train(network, train.pixels(), train.labels, seed)
    yield "trained", _problem(network, train.pixels(rows), train.labels[rows], seed)


def _train(network: nn.Module, pixels: Tensor, labels: Tensor, seed: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        rows = torch.randperm(len(labels), generator=generator_for(seed, "train", step))[:BATCH]
        optimizer.zero_grad()
        functional.cross_entropy(network(pixels[rows]), labels[rows]).backward()
        optimizer.step()


def _problem(network: nn.Module, pixels: Tensor, labels: Tensor, seed: int) -> Problem:
    weights = Weights(network)
    loss = functional.cross_entropy(network(pixels), labels)
    gradient = torch.autograd.grad(loss, weights.parameters, retain_graph=True)

    def head(logits: Tensor) -> Tensor:
        k, b = logits.shape[:2]
        losses = functional.cross_entropy(
            logits.flatten(0, 1).double(), labels.repeat(k), reduction="none"
        )
        return losses.view(k, b)

    evaluation = Sequential().prepare(network, pixels, head)
    return Problem(
        evaluation=evaluation,
        base=float(evaluation.base),
        weights=weights,
        theta=_flat(weights.parameters),
        gradient=_flat(gradient),
        scores=grasp(loss, weights.parameters),
        seed=seed,
    )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


def measured(problem: Problem, budgets: Sequence[float]) -> Iterator[Row]:
    """Measures all allocations at all budgets, and what ZO-GraSP and the energies follow."""
    sizes, theta, g = problem.weights.sizes, problem.theta, problem.gradient
    (scores, cost), (again, _) = (grasp_scores(problem, repeat) for repeat in range(2))
    energies, energies_cost = estimated_energies(problem)
    noise = torch.randn(len(theta), generator=generator_for(problem.seed, "noise"))
    exact = torch.stack([(part**2).sum() for part in g.split(sizes)])
    splits: dict[str, tuple[Split, int]] = {
        "zo-grasp": (partial(counts_by_score, scores, sizes), cost),
        "magnitude": (partial(counts_by_score, theta * noise, sizes), 1),
        "size": (partial(counts_by_size, sizes), 1),
        "random": (partial(counts_by_score, noise, sizes), 1),
    }
    for p in (0.5, 1.0, 2.0):
        estimated = partial(counts_by_energy, energies, sizes, exponent=p)
        splits[f"energy^{p:g}"] = estimated, energies_cost
    splits["grasp (autograd)"] = partial(counts_by_score, problem.scores, sizes), 1
    for p in (0.5, 1.0, 2.0):
        oracle = partial(counts_by_energy, exact, sizes, exponent=p)
        splits[f"exact energy^{p:g} (autograd)"] = oracle, 1

    for budget in (round(part * len(theta)) for part in budgets):
        for name, (split, spent) in splits.items():
            row: Row = {"column": f"Q = {budget:,}", "what": name, "spent on it": spent}
            yield row | quality(problem, split(budget - spent))
    kept = round(budgets[0] * len(theta))
    for name, value in correlations(problem, (scores, again), energies, kept).items():
        yield {"column": f"Q = {kept:,}", "what": name, "correlation": value}


def grasp_scores(problem: Problem, repeat: int) -> tuple[Tensor, int]:
    """Estimates ZO-GraSP scores and counts the queries they took."""
    generator = generator_for(problem.seed, "zo-grasp", repeat)
    return _metered(
        problem, lambda loss, x: zo_grasp(loss, x, mu=MU, q=GRASP_QUERIES, generator=generator)
    )


def estimated_energies(problem: Problem) -> tuple[Tensor, int]:
    """Estimates the layers' energies and counts the queries they took."""
    sizes, generator = problem.weights.sizes, generator_for(problem.seed, "energies")
    return _metered(
        problem,
        lambda loss, x: layer_energies(
            loss, x, sizes, mu=MU, q=LAYER_QUERIES, generator=generator
        ),
    )


def _metered(problem: Problem, estimate: Callable[[Loss, Tensor], Tensor]) -> tuple[Tensor, int]:
    before = problem.evaluation.queries
    estimated = estimate(network_loss(problem.evaluation, problem.weights), problem.theta)
    return estimated, problem.evaluation.queries - before


def quality(problem: Problem, counts: Sequence[int]) -> Row:
    """Compares sparse gradients with autograd's, on average over draws."""
    g, sizes = problem.gradient.double(), problem.weights.sizes
    ratios = torch.cat([torch.full((d,), k / d) for k, d in zip(counts, sizes, strict=True)])
    cosines, unbiased = [], []
    for i in range(DRAWS):
        support = draw(counts, sizes, generator=generator_for(problem.seed, "draw", i))
        entries = g[support]
        weighted = entries / ratios[support]
        cosines.append(float(entries.norm() / g.norm()))
        unbiased.append(float(weighted @ entries / (weighted.norm() * g.norm())))
    mean_cosine = float(functional.cosine_similarity(ratios * g, g, dim=0))
    figures = (mean(cosines), mean(unbiased), mean_cosine)
    return {"coordinates": sum(counts), **dict(zip(FIGURES, figures, strict=True))}


def correlations(
    problem: Problem, scores: tuple[Tensor, Tensor], energies: Tensor, kept: int
) -> dict[str, float]:
    """Correlates ZO-GraSP and the energies with what they should and what they may follow."""
    sizes = torch.tensor(problem.weights.sizes)
    counts, again = (torch.tensor(counts_by_score(s, sizes.tolist(), kept)) for s in scores)
    slope, magnitude = (
        torch.stack([(p**2).mean() for p in v.split(sizes.tolist())])
        for v in (problem.gradient, problem.theta)
    )
    return {
        "ZO-GraSP scores: two seeds": _pearson(*scores),
        "ZO-GraSP scores: autograd's": _pearson(scores[0], problem.scores),
        "ZO-GraSP counts k: two seeds": _pearson(counts, again),
        "ZO-GraSP counts k: layer sizes d": _pearson(counts, sizes),
        "ZO-GraSP ratios k/d: mean theta^2 (rank)": _rank(counts / sizes, magnitude),
        "ZO-GraSP ratios k/d: mean g^2 (rank)": _rank(counts / sizes, slope),
        "estimated energies / d: mean g^2 (rank)": _rank(energies / sizes, slope),
    }


def _pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])


def _rank(a: Tensor, b: Tensor) -> float:
    return float(spearmanr(a, b).statistic)


def table(rows: Sequence[Row], figure: str) -> str:
    """Renders one figure, averaged over seeds with its range, as a Markdown table."""
    cells: defaultdict[str, defaultdict[str, list[float]]]
    cells = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if figure in row:
            column = f"{row['problem']}, {row['column']}"
            cells[str(row["what"])][column].append(float(row[figure]))
    columns = list(next(iter(cells.values())))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    for what, found in cells.items():
        lines.append([what, *(_with_range(found[column]) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_range(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f}...{max(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
