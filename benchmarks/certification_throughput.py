"""Votes a second of the library's `certify` against a plain loop, at equal model cost.

    python benchmarks/certification_throughput.py --threads 2 --json throughput.json

The plain loop is written as the reference script of randomized smoothing is: for every image, calls
of 1,000 copies by ``repeat``, noise by ``randn_like``, ``argmax``, labels to numpy, and a count one
by one. Both certify the same images with the same settings; the two take turns, and the median
counts (by the clock; with ``--threads 1`` of the processor). *model* is the network alone on as
many rows: what neither can save.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deepzero_apps.smoothing.blackbox import TorchClassifier
from deepzero_apps.smoothing.bounds import Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.certify import certify
from deepzero_apps.vision import adjustable_cnn, resnet

ROWS, N0 = 1_000, 100


class Row(TypedDict):
    """One network and procedure; votes a second."""

    network: str
    images: str
    n: int
    plain: float
    library: float
    model: float
    ratio: float


def networks() -> dict[str, tuple[nn.Module, tuple[int, int, int], int, int]]:
    """Gives each network with the shape of its images, how many of them, and votes an image."""
    torch.manual_seed(0)
    return {
        "linear": (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), 200, 1_000),
        "linear, n = 100": (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), 500, 100),
        "cnn": (
            adjustable_cnn(depth=1, width=8, channels=1, classes=10),
            (1, 8, 8),
            100,
            1_000,
        ),
        "linear, 32x32": (
            nn.Sequential(nn.Flatten(), nn.Linear(3_072, 10)),
            (3, 32, 32),
            20,
            1_000,
        ),
        "resnet20": (resnet(20, classes=10), (3, 32, 32), 2, 900),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="votes a second of certify and of a plain loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = []
    for name, (network, shape, images, n) in networks().items():
        rows.append(
            measured(name, network.eval(), shape, images=images, n=n, repeats=options.repeats)
        )
    Console(width=160).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


@torch.no_grad()
def measured(
    name: str,
    network: nn.Module,
    shape: tuple[int, int, int],
    *,
    images: int,
    n: int,
    repeats: int,
) -> Row:
    """Times the two loops and the network in turns, after one round that does not count."""
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(images, dtype=torch.int64)
    settings = Settings(sigma=0.5, n0=N0, n=n)
    classifier = TorchClassifier(network, classes=10)
    total = images * (N0 + n)

    def model() -> None:
        rows = torch.rand(ROWS, *shape)
        for done in range(0, total, ROWS):
            network(rows[: total - done])

    loops: list[Callable[[], object]] = [
        lambda: [plain(network, image, settings) for image in x],
        lambda: list(certify(classifier, x, labels, settings, rows=ROWS)),
        model,
    ]
    rounds = [[seconds(loop) for loop in loops] for _ in range(repeats + 1)][1:]
    slow, fast, least = (median(column) for column in zip(*rounds, strict=True))
    return Row(
        network=name,
        images="x".join(map(str, shape)),
        n=n,
        plain=total / slow,
        library=total / fast,
        model=total / least,
        ratio=slow / fast,
    )


def plain(network: nn.Module, image: Tensor, settings: Settings) -> float:
    """Certifies one image in the plain way; gives the radius."""
    selection = plain_counts(network, image, settings.n0, settings.sigma)
    selected = int(selection.argmax())
    estimation = plain_counts(network, image, settings.n, settings.sigma)
    bound = lower_bound(int(estimation[selected]), settings.n, settings.alpha)
    return round_down(radius(bound, settings.sigma))


def plain_counts(network: nn.Module, image: Tensor, votes: int, sigma: float) -> np.ndarray:
    """Counts votes call by call, label by label."""
    counts = np.zeros(10, dtype=np.int64)
    for done in range(0, votes, ROWS):
        batch = image.repeat((min(ROWS, votes - done), 1, 1, 1))
        noise = torch.randn_like(batch) * sigma
        for label in network(batch + noise).argmax(1).cpu().numpy():
            counts[label] += 1
    return counts


def seconds(loop: Callable[[], object]) -> float:
    """Times one round: by the clock, or on one thread by the processor, which others cannot slow."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    loop()
    return clock() - start


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out."""
    shown = Table(box=box.MARKDOWN)
    for name in ("network", "images", "n", "plain", "library", "model alone", "ratio"):
        shown.add_column(name, justify="left" if name in ("network", "images") else "right")
    for row in rows:
        shown.add_row(
            row["network"],
            row["images"],
            f"{row['n']:,}",
            f"{row['plain']:,.0f}",
            f"{row['library']:,.0f}",
            f"{row['model']:,.0f}",
            f"{row['ratio']:.2f}",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
