r"""Measures how exact finite differences of a ResNet-20 are, against autograd in float64.

    python benchmarks/difference_accuracy.py --weights resnet20.safetensors --images train.npz \
        --json difference_accuracy.json --figure difference_accuracy.png

For some weights of every layer, drawn at random, the estimate :math:`\Delta_i / \mu` is compared with
the derivative :math:`g_i`: relative error :math:`|\Delta / \mu - g| / |g|` over all of them, for steps
:math:`\mu` from 1e-1 down. Six rows: the loss is differenced (whole passes of the network; in float32
also with a float32 loss, as scripts do), or differences are propagated, in float64, float32, and
float32 with bfloat16 convolutions. Batch norm is in train mode.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.vision import load_weights, normalized, resnet
from deepzero_apps.vision.archives import images_from_npz
from deepzero_apps.zeroth_order.differences import Engine, Head, Sequential
from deepzero_apps.zeroth_order.engines import DifferencePropagation
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.state import Weights

matplotlib.use("Agg")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STEPS = [10.0**-k for k in range(1, 9)]

SINGLE, DOUBLE = torch.float32, torch.float64


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, measures, prints, draws."""
    parser = argparse.ArgumentParser(description="errors of finite differences of a ResNet-20")
    parser.add_argument("--weights", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--images", type=Path, required=True, help="an .npz of uint8 images")
    parser.add_argument("--batch", type=int, default=64, help="images in the batch")
    parser.add_argument("--weights-a-layer", type=int, default=4, help="weights a parameter")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    arguments = parser.parse_args(argv)

    images = images_from_npz(arguments.images)
    network = resnet(20, classes=len(images.classes))
    load_weights(network, arguments.weights)
    network = normalized(network, MEAN, STD).train()
    batch = slice(0, arguments.batch)
    inputs, labels = images.pixels(batch), images.labels[batch]
    coordinates = some_weights(Weights(network), arguments.weights_a_layer)
    rows = measured(network, inputs, labels, coordinates)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"steps": STEPS, "rows": rows}, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)
    return 0


def some_weights(weights: Weights, each: int) -> Tensor:
    """Draws weights of every parameter."""
    generator = torch.Generator().manual_seed(0)
    found, start = [], 0
    for size in weights.sizes:
        found.append(start + torch.randperm(size, generator=generator)[:each])
        start += size
    return torch.cat(found)


def measured(
    network: nn.Module, inputs: Tensor, labels: Tensor, coordinates: Tensor
) -> list[dict[str, Any]]:
    """Measures the relative error of every way and step."""
    exact = derivatives(network, inputs, labels, coordinates)
    propagation = DifferencePropagation
    ways: dict[str, tuple[Engine, torch.dtype, Head]] = {
        "differences of losses, float32": (Sequential(), SINGLE, partial(float32_loss, labels)),
        "the same, loss in float64": (Sequential(), SINGLE, CrossEntropy(labels)),
        "propagated, float32": (propagation(), SINGLE, CrossEntropy(labels)),
        "propagated, bfloat16 convolutions": (
            propagation(precision=torch.bfloat16),
            SINGLE,
            CrossEntropy(labels),
        ),
        "differences of losses, float64": (Sequential(), DOUBLE, CrossEntropy(labels)),
        "propagated, float64": (propagation(), DOUBLE, CrossEntropy(labels)),
    }
    rows = []
    for name, (engine, dtype, head) in track(ways.items(), description="measuring"):
        evaluation = engine.prepare(network.to(dtype), inputs.to(dtype), head)
        errors = []
        for mu in STEPS:
            slopes = evaluation.differences(coordinates, mu=mu) / mu
            errors.append(float((slopes - exact).norm() / exact.norm()))
        rows.append({"way": name, "errors": errors})
    network.float()
    return rows


def derivatives(network: nn.Module, inputs: Tensor, labels: Tensor, coordinates: Tensor) -> Tensor:
    """Differentiates by autograd in float64."""
    network.double()
    loss = functional.cross_entropy(network(inputs.double()), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in gradients])[coordinates]


def float32_loss(labels: Tensor, outputs: Tensor) -> Tensor:
    """The usual head: cross-entropy in the type of the logits."""
    k, b = outputs.shape[:2]
    losses = functional.cross_entropy(outputs.flatten(0, 1), labels.repeat(k), reduction="none")
    return losses.view(k, b)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the errors in percent."""
    table = Table(title="relative error of the derivatives, percent")
    table.add_column("way")
    for mu in STEPS:
        table.add_column(f"{mu:.0e}", justify="right")
    for row in rows:
        table.add_row(row["way"], *(f"{100 * error:.2g}" for error in row["errors"]))
    Console(width=120).print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the errors against the step."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for i, row in enumerate(rows):
        style = "-" if row["way"].startswith("propagated") else "--"
        axes.loglog(STEPS, row["errors"], style, marker="o", ms=3, color=f"C{i}", label=row["way"])
    axes.set_xlabel("step µ")
    axes.set_ylabel("relative error of the derivatives")
    axes.set_ylim(1e-8, 10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
