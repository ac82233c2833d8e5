"""Votes a second of certification by one and two workers, against each other and one process.

    python benchmarks/scaling_certification.py --json scaling_certification.json

Each worker has one thread. A ResNet-20 with random weights sees 32x32 images, an SVC the digits.
Everybody draws the same votes of the same images; who does takes turns, and the median round
counts. The start of workers is left out, and a round before the first. *overhead* is what a call
of one worker costs beyond the same call in this process: the packing of calls, Ray, and waiting.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypedDict

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.smoothing.adapters import Adapter, as_one_of
from deepzero_apps.smoothing.blackbox import TorchClassifier
from deepzero_apps.smoothing.booth import Booth
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import certify
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.vision import load, resnet
from deepzero_apps.workers import Pool, Where
from deepzero_apps.workers.where import Connection

N0 = 16


class Row(TypedDict):
    """One classifier and number of rows a call; votes a second, and milliseconds a call."""

    classifier: str
    rows: int
    votes: int
    here: float
    one: float
    two: float
    two_to_one: float
    overhead: float


class Case(TypedDict):
    """What is certified."""

    classifier: Adapter
    images: Tensor
    n: int
    rows: tuple[int, ...]


def cases() -> dict[str, Case]:
    """Gives the classifiers with images, votes an image, and rows a call."""
    torch.manual_seed(0)
    network = TorchClassifier(resnet(20, classes=10).eval(), classes=10)
    digits = load("digits")
    svc = black_box("svc", digits, weights=None, seed=0, device="cpu").classifier
    assert isinstance(svc, Adapter)
    as_one_of(svc, 1, threads=1)
    images = torch.rand(16, 3, 32, 32)
    return {
        "resnet20": Case(classifier=network, images=images, n=112, rows=(16, 64, 256)),
        "svc": Case(
            classifier=svc,
            images=digits.test.pixels(slice(0, 100)),
            n=500 - N0,
            rows=(64, 256, 1024),
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="votes a second of one and two workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    connection = Connection(Where(3))
    make = partial(Booth, str(Path.cwd()))
    with Pool(make, Where(1)) as one, Pool(make, Where(2)) as two:
        rows = [
            measured(name, case, size, (one, two), repeats=options.repeats)
            for name, case in cases().items()
            for size in case["rows"]
        ]
    connection.close()
    Console(width=140).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(name: str, case: Case, rows: int, pools: tuple[Pool, Pool], *, repeats: int) -> Row:
    """Times the three in turns, after a round that does not count."""
    settings = Settings(sigma=0.5, n0=N0, n=case["n"])
    askers = [case["classifier"], *(Spread(case["classifier"], pool) for pool in pools)]
    rounds = [
        [seconds(partial(votes_of, asker, case, settings, rows)) for asker in askers]
        for _ in range(repeats + 1)
    ][1:]
    here, one, two = (median(column) for column in zip(*rounds, strict=True))
    votes = len(case["images"]) * (N0 + case["n"])
    return Row(
        classifier=name,
        rows=rows,
        votes=votes,
        here=votes / here,
        one=votes / one,
        two=votes / two,
        two_to_one=one / two,
        overhead=1000 * (one - here) * rows / votes,
    )


def votes_of(classifier: Adapter, case: Case, settings: Settings, rows: int) -> None:
    """Certifies all images."""
    labels = torch.zeros(len(case["images"]), dtype=torch.int64)
    for _ in certify(classifier, case["images"], labels, settings, rows=rows):
        pass


def seconds(work: Callable[[], object]) -> float:
    """Times one round."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out."""
    shown = Table(box=box.MARKDOWN)
    heads = ("classifier", "rows a call", "one process", "one worker", "two workers")
    for head in (*heads, "two / one", "overhead a call"):
        shown.add_column(head, justify="left" if head == "classifier" else "right")
    for row in rows:
        shown.add_row(
            row["classifier"],
            f"{row['rows']:,}",
            f"{row['here']:,.0f}",
            f"{row['one']:,.0f}",
            f"{row['two']:,.0f}",
            f"{row['two_to_one']:.2f}",
            f"{row['overhead']:.1f} ms",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
