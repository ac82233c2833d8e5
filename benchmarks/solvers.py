r"""Times our wake against PhiFlow's, in milliseconds a state and step, and compares their shedding.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py --json solvers.json

Both step the same flow: the channel with a disc of ``solvers.navier_stokes``, linear
semi-Lagrangian advection, dt = 2, Reynolds numbers from 200 to 3000. Ours is float64 and exact to
rounding. PhiFlow gets its best: on torch, compiled (``jit_compile``), in float32, its own
``make_incompressible`` with a pressure solve to 1e-3, by conjugate gradients and by scipy's direct
solver. Ratios are to the faster of the two. Adaptive conjugate gradients, biCG-stab, scipy's CG and
a start from the last pressure were slower on 32 x 64.

A time is the median of repeated steps along a run, after a warm-up, in seconds of the processor:
with one thread the clock's on an idle machine, and undisturbed by neighbors on a shared one.

The shedding is that of ``solvers.phiflow_wake``, compiled in float64 with a solve to 1e-6, and ours, from
the same saturated start on 32 x 64 cells: Strouhal number and standard deviation of v at (90, 50), and the
greatest difference of the mean velocity along x behind the disc (x > 75).
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

# Python puts this folder first, where this very file is named like the package that it times.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]

from solvers.navier_stokes import Wake
from solvers.phiflow_fields import phi
from solvers.phiflow_wake import PhiFlowWake

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from phiml.backend.torch import TORCH

GRIDS = ((16, 32), (32, 64), (64, 128))
BATCHES = (1, 8, 64)
DT = 2.0
WARM_UP, LEAST_STEPS, LEAST_SECONDS = 5, 10, 1.0
METHODS = {"phiflow, CG to 1e-3": "CG", "phiflow, direct": "scipy-direct"}
SHEDDING_GRID, SHEDDING_REYNOLDS = (32, 64), (200.0, 800.0, 3000.0)
SHEDDING_START, SHEDDING_WARM_UP, SHEDDING_STEPS = 300, 60, 340

Array = NDArray[np.float64]
Row = dict[str, str | int | float]


def our_steps(start: Array, reynolds: Array) -> Iterator[Array]:
    """Steps our wake for ever."""
    wake = Wake(*start.shape[2:], dt=DT)
    while True:
        start, _ = wake.step(start, reynolds)
        yield start


def phiflow_steps(start: Array, reynolds: Array, method: str) -> Iterator[Any]:
    """Steps PhiFlow's wake for ever, written as PhiFlow's users write it."""
    inflow = phi.math.vec(y=0.0, x=1.0)
    out = phi.math.extrapolation.ZERO_GRADIENT
    slip = phi.math.extrapolation.combine_by_direction(
        normal=phi.math.extrapolation.ZERO, tangential=out
    )
    open_walls = {"x-": inflow, "x+": out, "y": slip}
    closed_walls = {"x-": inflow, "x+": out, "y": 0.0}
    disc = phi.physics.fluid.Obstacle(phi.geom.Sphere(y=50.0, x=50.0, radius=10.0))

    @phi.math.jit_compile
    def step(velocity: Any, viscosity: Any) -> Any:  # noqa: ANN401
        velocity = phi.physics.diffuse.explicit(velocity, viscosity, DT)
        velocity = phi.physics.advect.semi_lagrangian(velocity, velocity, DT)
        velocity, _ = phi.physics.fluid.make_incompressible(
            velocity.with_boundary(closed_walls), disc, phi.math.Solve(method, 1e-3, 1e-3)
        )
        return velocity.with_boundary(open_walls)

    def named(array: Array, axes: str) -> Any:  # noqa: ANN401
        native = torch.tensor(array, dtype=torch.float32)
        names = (
            phi.math.batch("states") & phi.math.spatial(axes) if axes else phi.math.batch("states")
        )
        return phi.math.wrap(native, names)

    faces = {"y": named(start[:, 1, :-1], "y,x"), "x": named(start[:, 0], "y,x")}
    with TORCH:
        velocity = phi.field.StaggeredGrid(
            phi.math.stack(faces, phi.math.dual("vector")),
            open_walls,
            bounds=phi.geom.Box(y=100.0, x=200.0),
            resolution=phi.math.spatial(y=start.shape[2], x=start.shape[3]),
        )
        viscosity = named(20.0 / reynolds, "")
        while True:
            velocity = step(velocity, viscosity)
            yield velocity


def clocked(steps: Iterator[Any], states: int) -> float:
    """The median processor time of a step, in milliseconds a state."""
    for _ in range(WARM_UP):
        next(steps)
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < LEAST_SECONDS:
        begin = time.process_time()
        next(steps)
        times.append(time.process_time() - begin)
    return 1e3 * statistics.median(times) / states


def timings() -> Iterator[Row]:
    """All solvers, grids and batches, one after the other."""
    for grid in GRIDS:
        for states in BATCHES:
            reynolds = np.geomspace(200.0, 3000.0, states)
            start = developed(grid, reynolds)
            runs = {"ours": our_steps(start, reynolds)} | {
                name: phiflow_steps(start, reynolds, method) for name, method in METHODS.items()
            }
            for name, steps in runs.items():
                spent = clocked(steps, states)
                steps.close()
                yield {
                    "solver": name,
                    "grid": f"{grid[0]}x{grid[1]}",
                    "batch": states,
                    "ms_per_state_step": spent,
                }


def developed(grid: tuple[int, int], reynolds: Array, *, steps: int = 40) -> Array:
    """A flow with a wake behind the disc."""
    fields = Wake(*grid, dt=DT).initial(reynolds)
    flow = our_steps(fields, reynolds)
    for _ in range(steps):
        fields = next(flow)
    return fields


def ratio(rows: list[Row], grid: str, states: int) -> float:
    """How many times faster ours is than the fastest PhiFlow."""
    spent = {
        str(row["solver"]): float(row["ms_per_state_step"])
        for row in rows
        if row["grid"] == grid and row["batch"] == states
    }
    return min(spent[name] for name in METHODS) / spent["ours"]


def shedding() -> Iterator[Row]:
    """How ours and PhiFlow's shed from the same start, for each Reynolds number."""
    reynolds = np.array(SHEDDING_REYNOLDS)
    start = developed(SHEDDING_GRID, reynolds, steps=SHEDDING_START)
    records = {"ours": recorded(our_steps(start, reynolds))}
    records["phiflow"] = recorded(compiled_steps(start, reynolds))
    for i, number in enumerate(SHEDDING_REYNOLDS):
        row: Row = {"reynolds": number}
        for name, (probe, _) in records.items():
            row[f"St {name}"] = strouhal(probe[:, i])
            row[f"std v {name}"] = float(probe[:, i].std())
        means = [mean[i] for _, mean in records.values()]
        row["mean u apart"] = float(
            np.abs(means[0] - means[1])[:, SHEDDING_GRID[1] * 3 // 8 :].max()
        )
        yield row


def compiled_steps(start: Array, reynolds: Array) -> Iterator[Array]:
    """Steps the PhiFlow simulator of ours, compiled on torch in float64."""
    wake = PhiFlowWake(*start.shape[2:], dt=DT, tolerance=1e-6)
    names = ("states", "component", "y", "x")

    @phi.math.jit_compile
    def step(fields: Any, parameters: Any) -> Any:  # noqa: ANN401
        after, _ = wake.advance(fields.native(names), parameters.native(), None, None)
        return phi.math.wrap(
            after, phi.math.batch("states"), phi.math.channel("component"), phi.math.spatial("y,x")
        )

    with TORCH, phi.math.precision(64):
        fields = phi.math.wrap(
            torch.tensor(start),
            phi.math.batch("states"),
            phi.math.channel("component"),
            phi.math.spatial("y,x"),
        )
        parameters = phi.math.wrap(torch.tensor(reynolds), phi.math.batch("states"))
        while True:
            fields = step(fields, parameters)
            yield fields.native(names).numpy()


def recorded(steps: Iterator[Array]) -> tuple[Array, Array]:
    """Keeps v behind the disc at every step, and the mean velocity along x."""
    row, column = SHEDDING_GRID[0] // 2 - 1, round(90 * SHEDDING_GRID[1] / 200)
    probe, total = [], 0.0
    for _ in range(SHEDDING_WARM_UP):
        next(steps)
    for _ in range(SHEDDING_STEPS):
        fields = next(steps)
        probe.append(fields[:, 1, row, column].copy())
        total = total + fields[:, 0] / SHEDDING_STEPS
    return np.array(probe), np.asarray(total)


def strouhal(signal: Array) -> float:
    """D / (U T), the period T from interpolated upward crossings of the mean."""
    signal = signal - signal.mean()
    up = np.flatnonzero((signal[:-1] < 0) & (signal[1:] >= 0))
    if len(up) < 3:
        return math.nan
    at = up - signal[up] / (signal[up + 1] - signal[up])
    return 20.0 / (DT * float(np.diff(at).mean()))


def table(title: str, rows: list[Row]) -> Table:
    """The rows as a table."""
    shown = Table(title=title)
    for name in rows[0]:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return shown


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(description="Times our wake against PhiFlow's.")
    parser.add_argument("--json", type=Path, help="where to write settings and rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore", module="phiml")
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)

    rows = list(timings())
    ratios: list[Row] = [
        {"grid": f"{r}x{c}", "batch": b, "times faster": ratio(rows, f"{r}x{c}", b)}
        for r, c in GRIDS
        for b in BATCHES
    ]
    sheds = list(shedding())
    console = Console()
    console.print(table("ms a state and step", rows))
    console.print(table("ours against the fastest PhiFlow", ratios))
    console.print(table("shedding", sheds))
    if options.json:
        settings = {"dt": DT, "threads": torch.get_num_threads(), "torch": torch.__version__}
        record = {"settings": settings, "rows": rows, "ratios": ratios, "shedding": sheds}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
