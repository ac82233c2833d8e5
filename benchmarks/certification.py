"""Queries and certified accuracy of every procedure, on probabilities of a real black box.

    OMP_NUM_THREADS=1 python benchmarks/certification.py --cache runs/certification --json rows.json
    OMP_NUM_THREADS=1 python benchmarks/certification.py --counts VOTES.npz --json rows.json

The probabilities are those of digits behind an mse denoiser at sigma .5, 10,000 votes an image, or
of any npz with ``counts`` (images, classes) and ``labels``. Votes are then drawn from them; every
procedure sees every image ``--repeats`` times. Rows: ``procedure``, ``radii`` (those it decides),
``mean_queries`` (selection votes included), ``certified_accuracy`` by radius, ``acr``.

``certification_throughput.py`` measures votes a second.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
from certification_baselines import iss, kt
from certification_counts import Votes, made, read
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri

from deepzero_apps.smoothing.bounds import Procedure as ProcedureName
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.rules import rule_of
from deepzero_apps.smoothing.simulation import Outcomes, simulate

N0, ALPHA = 100, 0.001
REFERENCE, LIMIT = 100_000, 200_000
CURVE = (0.25, 0.5, 0.75)
MEASURED = (0.0, *CURVE)


class Row(TypedDict):
    """One procedure."""

    procedure: str
    radii: list[float]
    mean_queries: float
    certified_accuracy: dict[str, float]
    acr: float


Procedure = Callable[[np.random.Generator], Outcomes]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes rows."""
    options = arguments(argv)
    votes = (
        read(options.counts)
        if options.counts
        else made(
            options.cache, classifier=options.classifier, split=options.split, votes=options.votes
        )
    )
    rows = measured(votes, sigma=options.sigma, repeats=options.repeats)
    Console(width=200, stderr=str(options.json) == "-").print(table(rows))
    if options.json is not None:
        text = json.dumps(rows, indent=1) + "\n"
        if str(options.json) == "-":
            sys.stdout.write(text)
        else:
            options.json.write_text(text, encoding="utf-8")
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="queries and certified accuracy by procedure")
    parser.add_argument("--cache", type=Path, default=Path("runs/certification"))
    parser.add_argument("--counts", type=Path, help="an npz of counts and labels to use instead")
    parser.add_argument("--classifier", default="svc", help="svc, forest or cnn")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--votes", type=int, default=10_000, help="votes an image to count")
    parser.add_argument("--sigma", type=float, default=0.5, help="that of --counts")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each image")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="a file, or stdout")
    return parser.parse_args(argv)


def measured(votes: Votes, *, sigma: float, repeats: int) -> list[Row]:
    """Runs every procedure."""
    images = Votes(
        np.repeat(votes.probabilities, repeats, axis=0), np.repeat(votes.labels, repeats)
    )
    rows = []
    for name, radii, procedure in procedures(images, sigma):
        rows.append(row(name, radii, procedure(np.random.default_rng(0)), images, sigma=sigma))
    equal = next(r for r in rows if r["procedure"] == "decide" and r["radii"] == list(CURVE))
    same = round(equal["mean_queries"]) - N0
    outcomes = ours(images, sigma, "fixed", n=same)(np.random.default_rng(0))
    rows.insert(1, row(f"fixed, n = {same:,}", (), outcomes, images, sigma=sigma))
    return rows


def procedures(images: Votes, sigma: float) -> list[tuple[str, tuple[float, ...], Procedure]]:
    """Names every procedure, what it decides, and how it runs."""
    decided = (CURVE, *((r,) for r in CURVE))
    run = partial(ours, images, sigma)
    sized = settings_of(sigma, "fixed", n=REFERENCE)
    return [
        (f"fixed, n = {REFERENCE:,}", (), run("fixed", n=REFERENCE)),
        ("ISS-like sizes", (), partial(iss, images.probabilities, sized)),
        ("adaptive", CURVE, run("adaptive", n=REFERENCE, radii=CURVE)),
        *(
            (
                "KT, two-sided",
                radii,
                partial(
                    kt,
                    images.probabilities,
                    settings_of(sigma, "decide", n=REFERENCE, radii=radii),
                ),
            )
            for radii in decided
        ),
        *(("decide", radii, run("decide", n=LIMIT, radii=radii)) for radii in decided),
        *((f"anytime, n = {n:,}", (), run("anytime", n=n)) for n in (2_000, 10_000)),
    ]


def ours(
    images: Votes,
    sigma: float,
    procedure: ProcedureName,
    *,
    n: int,
    radii: tuple[float, ...] = (),
) -> Procedure:
    """Gives a procedure of the library."""
    settings = settings_of(sigma, procedure, n=n, radii=radii)
    return lambda generator: simulate(rule_of(settings), images.probabilities, generator=generator)


def settings_of(
    sigma: float, procedure: ProcedureName, *, n: int, radii: tuple[float, ...] = ()
) -> Settings:
    """Gives settings that differ in the procedure alone."""
    return Settings(sigma=sigma, n0=N0, n=n, alpha=ALPHA, procedure=procedure, radii=radii)


def row(
    name: str, radii: Sequence[float], outcomes: Outcomes, images: Votes, *, sigma: float
) -> Row:
    """Counts what was certified rightly."""
    majority = outcomes.p_lower > 0.5
    # as certificates carry it: four decimals, rounded down
    exact = sigma * ndtri(np.where(majority, outcomes.p_lower, 0.5))
    radius = np.floor(exact * (1 - 1e-9) * 1e4) / 1e4
    right = majority & (outcomes.selected == images.labels)
    return Row(
        procedure=name,
        radii=list(radii),
        mean_queries=float(N0 + outcomes.drawn.mean()),
        certified_accuracy={str(r): float((right & (radius >= r)).mean()) for r in MEASURED},
        acr=float((radius * right).mean()),
    )


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out; certified accuracy in percent."""
    shown = Table(box=box.MARKDOWN)
    for name in ("procedure", "decides", "queries", *(f"r = {r:g}" for r in MEASURED), "ACR"):
        shown.add_column(name, justify="left" if name in ("procedure", "decides") else "right")
    for one in rows:
        shown.add_row(
            one["procedure"],
            ", ".join(f"{r:g}" for r in one["radii"]),
            f"{one['mean_queries']:,.0f}",
            *(f"{100 * share:.2f}" for share in one["certified_accuracy"].values()),
            f"{one['acr']:.4f}",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
