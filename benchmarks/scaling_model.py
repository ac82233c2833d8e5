r"""Where a gradient by many workers stops scaling: a model, fitted to what was measured, and stragglers.

    python benchmarks/scaling_model.py --measured benchmarks/results/scaling_gradient.json

A step of W workers, each asked c times, takes

.. math::
    T(W, c) = t_0 + t_b + a + \frac{C}{W} S(W, c) + l c + o c W + \frac{B}{b} (M - 1)       \tag{1}

- :math:`t_0`: snapshot, sharing and assembly in the driver; :math:`t_b`: the base pass, of the
  driver and all workers side by side;
- a: what a step with workers takes however few calls it has (weights are loaded, results wait for the last);
- C: the time of all queries on one worker;
- l: the wait of a worker between two calls; o: the driver's own work for a call, one after the other;
- B: bytes of the weights, once to each of M machines besides the driver's, one after the other (Ray spreads
  them along a tree, so this is the worst case) at b = 1 GB/s;
- S: how much later than C/W the last worker ends. It has no formula; it is simulated: calls from one
  queue, workers of unequal speed. One worker alone has S = 1.09 already, for C is measured where nobody
  is slow.

A call has one pass at least: where there are fewer passes than c W, there are as many calls as passes.
:math:`t_0, t_b, C` are measured. So is o, the processor time that a call without work takes of the driver's
thread. a and l are fitted by nonnegative least squares to the steps of the small network, in which calls show.
The steps of the other one then tell how far the model is off (``worst``, of the time of a step).
The simulation gives each worker a constant speed (log-normal, sigma .1; one in twenty at half speed) and one call in
a hundred takes five times as long (another tenant, a page fault storm, a retry after a death).
"""

import argparse
import json
from collections.abc import Sequence
from heapq import heapify, heapreplace
from pathlib import Path
from statistics import mean, median
from typing import Any, TypedDict

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

mpl.use("Agg")
import matplotlib.pyplot as plt

Measured = dict[str, Any]
"""What scaling_gradient.py has written."""

SMALL = "small-cnn"
WORKERS = (8, 64, 512)
WORKERS_A_MACHINE = 16
BANDWIDTH = 1e9
STEPS_SIMULATED = 200
QUERIES = {"resnet20 99 % sparse": 2697, "resnet20 dense": 269722}
"""What is extrapolated: queries a step; times a query are those of the measured gradient."""

PASSES = {"resnet20 99 % sparse": 795, "resnet20 dense": 79000}
"""The passes that they come in: a call has one at least."""


class Fit(TypedDict):
    """The constants of (1), in seconds."""

    fixed: float
    base: float
    opening: float
    query: float
    latency: float
    driver: float
    state_bytes: float
    worst: float


class Row(TypedDict):
    """One job, number of workers and calls a worker."""

    job: str
    workers: int
    calls: int
    seconds: float
    speedup: float
    efficiency: float
    straggling: float
    driver_share: float
    megabytes: float


def main(argv: Sequence[str] | None = None) -> int:
    """Fits, extrapolates, prints and draws."""
    parser = argparse.ArgumentParser(description="where a gradient by many workers stops scaling")
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--figure", type=Path, help="where to draw the efficiency")
    options = parser.parse_args(argv)
    measured = json.loads(options.measured.read_text(encoding="utf-8"))
    fits = fitted(measured)
    rows = [
        predicted(fits["resnet20"], job, workers, calls)
        for job in QUERIES
        for workers in WORKERS
        for calls in (1, 4, 16)
    ]
    console = Console(width=130)
    console.print({name: {k: f"{v:.2e}" for k, v in fit.items()} for name, fit in fits.items()})
    console.print(table(rows))
    if options.json:
        document = {"fits": fits, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(fits["resnet20"], measured, options.figure)
    return 0


def fitted(measured: Measured) -> dict[str, Fit]:
    """Fits the two constants of (1) that are not measured by themselves, and judges the fit."""
    opening, latency, driver = _of_calls(measured)
    fits = {}
    for name, parts in measured["parts"].items():
        known, unknown, times, work = _rest(measured, name)
        off = np.array(known) - np.array(unknown) @ np.array([opening, latency, driver])
        fits[name] = Fit(
            fixed=parts["snapshot"] + parts["share"] + parts["assembly"],
            base=parts["base_pass"],
            opening=opening,
            query=work / _steps(measured, name)[0]["queries"],
            latency=latency,
            driver=driver,
            state_bytes=parts["state_bytes"],
            worst=float(np.abs(off / np.array(times)).max()),
        )
    return fits


def _of_calls(measured: Measured) -> tuple[float, float, float]:
    """Gives a, l and o of (1)."""
    driver: float = measured["parts"][SMALL]["call_work"]
    known, factors, _, _ = _rest(measured, SMALL)
    unknown = np.array(factors)
    (opening, latency), _ = nnls(unknown[:, :2], np.array(known) - driver * unknown[:, 2])
    return float(opening), float(latency), driver


def _rest(
    measured: Measured, name: str
) -> tuple[list[float], list[list[float]], list[float], float]:
    """What steps took beyond what is known, the factors of a, l and o in it, the times, and C."""
    parts, steps = measured["parts"][name], _steps(measured, name)
    fixed = parts["snapshot"] + parts["share"] + parts["assembly"]
    work = median(row["here"] for row in steps) - parts["base_pass"] - parts["assembly"]
    known, unknown, times = [], [], []
    for row in steps:
        for workers, key in ((1, "one"), (2, "two")):
            times.append(row[key])
            known.append(row[key] - fixed - parts["base_pass"] - work / workers)
            unknown.append([1, row["calls"], row["calls"] * workers])
    return known, unknown, times, work


def _steps(measured: Measured, name: str) -> list[dict[str, float]]:
    return [row for row in measured["steps"] if row["network"] == name]


def predicted(fit: Fit, job: str, workers: int, calls: int) -> Row:
    """Evaluates (1), with a simulated S."""
    work = fit["query"] * QUERIES[job]
    machines = -(-workers // WORKERS_A_MACHINE)
    all_calls = min(calls * workers, PASSES[job])
    straggling = simulated(workers, all_calls, seed=0)
    driver = fit["fixed"] + fit["base"] + fit["opening"] + fit["driver"] * all_calls
    moved = fit["state_bytes"] * (machines - 1)
    waits = fit["latency"] * -(-all_calls // workers)
    total = driver + work / workers * straggling + waits + moved / BANDWIDTH
    alone = fit["base"] + work
    return Row(
        job=job,
        workers=workers,
        calls=calls,
        seconds=total,
        speedup=alone / total,
        efficiency=alone / total / workers,
        straggling=straggling,
        driver_share=driver / total,
        megabytes=moved / 1e6,
    )


def simulated(workers: int, calls: int, *, seed: int) -> float:
    """How much later than equal workers would the last one ends; the mean over steps."""
    generator = np.random.default_rng(seed)
    return mean(_one_step(workers, calls, generator) for _ in range(STEPS_SIMULATED))


def _one_step(workers: int, calls: int, generator: np.random.Generator) -> float:
    pace = generator.lognormal(0.0, 0.1, workers)
    pace[generator.random(workers) < 0.05] *= 2
    cost = np.where(generator.random(calls) < 0.01, 5.0, 1.0) * workers / calls
    return float(_last(pace, cost))


def _last(pace: NDArray[np.float64], cost: NDArray[np.float64]) -> float:
    """When the last of the calls ends: each goes to the worker that is free first."""
    free = [(0.0, worker) for worker in range(len(pace))]
    heapify(free)
    for seconds in cost:
        when, worker = free[0]
        heapreplace(free, (when + seconds * pace[worker], worker))
    return max(free)[0]


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out."""
    columns = (
        "job",
        "workers",
        "calls",
        "s a step",
        "speedup",
        "efficiency",
        "straggling",
        "driver",
        "MB sent",
    )
    laid = Table(*columns, box=box.SIMPLE)
    for row in rows:
        laid.add_row(
            row["job"],
            str(row["workers"]),
            str(row["calls"]),
            f"{row['seconds']:.3f}",
            f"{row['speedup']:.1f}",
            f"{100 * row['efficiency']:.0f} %",
            f"{row['straggling']:.2f}",
            f"{100 * row['driver_share']:.0f} %",
            f"{row['megabytes']:.1f}",
        )
    return laid


def draw(fit: Fit, measured: Measured, path: Path) -> None:
    """Draws efficiency against workers, and what was measured."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    for job, color in zip(QUERIES, ("C0", "C1"), strict=True):
        for calls, style in ((1, ":"), (4, "-"), (16, "--")):
            shares = [100 * predicted(fit, job, n, calls)["efficiency"] for n in counts]
            label = f"{job}, {calls} call{'s' if calls > 1 else ''} a worker"
            axes.plot(counts, shares, style, color=color, label=label)
    steps = _steps(measured, "resnet20")
    for workers, key in ((1, "one"), (2, "two")):
        points = [100 * row["here"] / row[key] / workers for row in steps]
        label = f"measured (resnet20, {steps[0]['queries']} queries)" if workers == 1 else None
        axes.plot([workers] * len(points), points, "k.", label=label)
    axes.set(xscale="log", xlabel="workers", ylabel="efficiency (%)", ylim=(0, 110))
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
