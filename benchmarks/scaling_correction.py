"""Times updates of a corrector by one worker, by two, and without: where do workers pay?

    OMP_NUM_THREADS=1 python benchmarks/scaling_correction.py --json scaling_correction.json

Every case is `zo-field` with windows (q = 2, n = 4, a loss on every step), the default corrector, pieces between
frames of the coarse simulator. Workers have one thread each; "alone" is the plain local loop, which shares the
passes of its network among the pieces of a minibatch.

    | wake       | the built-in one, which takes a tenth of an update: network and credit are the rest
    | slow wake  | the same, and a pause of some milliseconds for each state, as if computed elsewhere
    | phiflow    | the wake in PhiFlow, whose steps cost the same for one row as for ten

A time is the least of several updates, for the machine may have other things to do. "one by one" is what the
pieces take in this process, each by itself, as a worker does them, and "driver" what is left to do here
by the processor's clock. Two workers cannot be faster than driver and the larger half of the pieces: the
prediction.

The second table is what a call costs by the rows it steps: the default grid, one worker, all pieces of a
minibatch in the one call that each of the two rounds of an update makes.
"""

import sys
from pathlib import Path

# This folder holds a file of the name of the package `solvers`.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from deepzero_apps.cli.allocator import keep_freed_memory
from deepzero_apps.cli.corrected import Units, corrector_for, problem_of
from deepzero_apps.cli.correction_plan import CorrectSettings
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.piecework import Piecework
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.spread import Spread, Workers
from deepzero_apps.correction.training import Recipe, pieces
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective, loss_weights
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.workers import Pool, Shared, Where
from deepzero_apps.workers.where import Connection

Q, N, UPDATES, LONGEST = 2, 4, 10, 4.0
ROUNDS = 2  # of an update whose corrections act after the step
BATCHES = (1, 2, 4, 8, 16)
UNITS = Units(0.3, 0.02, (100.0, 3200.0), Probed(0.0, float("inf"), 0.01, 0))


@dataclass(frozen=True)
class Case:
    """A problem, a minibatch, and the milliseconds by which each state is slowed down."""

    name: str
    problem: str
    grid: str
    batch: int
    pause: float = 0.0


CASES = (
    Case("wake", "wake", "20x40", 3),
    Case("wake", "wake", "20x40", 16),
    Case("wake", "wake", "32x64", 16),
    Case("wake", "wake", "40x80", 16),
    Case("slow wake", "wake", "20x40", 4, pause=5.0),
    Case("phiflow", "phiflow-wake", "20x40", 4),
)


class Slow:
    """A simulator that computes elsewhere: the processor is free meanwhile."""

    def __init__(self, simulator: Simulator, pause: float) -> None:
        self._simulator, self._pause = simulator, pause / 1e3
        self.shape = tuple(simulator.shape)
        self.reach, self.accepts_forcing = simulator.reach, simulator.accepts_forcing

    def step(
        self, fields: Array, parameters: Array, native: NDArray[Any] | None = None, **pushed: Array
    ) -> tuple[Array, NDArray[Any] | None]:
        """Advances b states by one time step, after a pause for each."""
        time.sleep(self._pause * len(fields))
        return self._simulator.step(fields, parameters, native, **pushed)


@dataclass(frozen=True)
class Training:
    """All that an update needs."""

    loop: Loop
    method: Windowed
    objective: Objective
    trajectories: Trajectories
    recipe: Recipe


def training(case: Case) -> Training:
    """Sets a case up, equally in every process."""
    reference = "x".join(str(2 * int(side)) for side in case.grid.split("x"))
    settings = CorrectSettings(problem=case.problem, grid=case.grid, reference=reference)
    problem = problem_of(settings)
    coarse: Simulator = Slow(problem.coarse, case.pause) if case.pause else problem.coarse
    return Training(
        Loop(coarse, corrector_for(settings, problem, UNITS), dt=problem.dt),
        Windowed(0.1, Q, Credit(4, periodic=problem.periodic)),
        Objective(loss_weights("every", N), UNITS.field),
        _frames(case),
        Recipe(unrolled=N, batch=case.batch, updates=UPDATES, lr=1e-3),
    )


def _frames(case: Case) -> Trajectories:
    """A few frames of our wake, and noise: what a corrector learns does not matter here."""
    settings = CorrectSettings(problem="wake", grid=case.grid)
    problem = problem_of(settings)
    parameters = np.array(problem.train)
    frames = [problem.coarse.initial(parameters, seed=0)]  # type: ignore[attr-defined]
    for _ in range(2 * N):
        frames.append(problem.coarse.step(frames[-1], parameters)[0])
    fields = np.stack(frames, 1)
    return Trajectories(
        fields + 0.01 * np.random.default_rng(0).normal(size=fields.shape), parameters
    )


def piecework(case: Case) -> Piecework:
    """Makes a worker's object."""
    keep_freed_memory()
    one = training(case)
    return Piecework(
        one.loop, one.method, one.objective, trajectories=one.trajectories, recipe=one.recipe
    )


class Here:
    """A worker in this process, which answers at once."""

    count = 1

    def __init__(self, worker: Piecework) -> None:
        self._worker, self._shared = worker, 0

    def share(self, value: object) -> Shared:
        """Puts a value where the worker has it."""
        self._shared -= 1  # no number of a pool
        return Shared(self._shared, (ray.put(value),))

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        """Makes calls."""
        for place, arguments in enumerate(calls):
            yield place, getattr(self._worker, method)(*arguments)


@dataclass
class Row:
    """What a case took, in seconds an update."""

    case: dict[str, Any]
    alone: float
    simulator: float
    pieces: float
    half: float
    driver: float = 0.0
    workers: dict[int, float] = field(default_factory=dict)

    @property
    def predicted(self) -> float:
        """How much faster two workers are than one, at best."""
        return (self.driver + self.pieces) / (self.driver + self.half)


def least(case: Training, method: Method) -> tuple[float, float]:
    """The least time of an update, by the clock and by this process's; the first two warm up."""
    times: list[tuple[float, float]] = []
    began = time.perf_counter()
    for step in range(UPDATES):
        windows = pieces(case.trajectories, case.recipe, step)
        case.loop.corrector.network.zero_grad()
        started = time.perf_counter(), time.process_time()
        method(case.loop, case.objective, windows, step=step)
        times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        if time.perf_counter() - began > LONGEST and len(times) > 3:
            break
    by_clock, by_process = zip(*times[2:], strict=True)
    return min(by_clock), min(by_process)


def measured(case: Case, counts: Sequence[int] = (1, 2)) -> Row:
    """Times a case without workers, and with each number of them."""
    here = training(case)
    row = Row(
        asdict(case),
        alone=least(here, here.method)[0],
        simulator=_simulating(here),
        pieces=one_by_one(case),
        half=one_by_one(replace(case, batch=-(-case.batch // 2))),
    )
    for count in counts:
        with Pool(partial(piecework, case), Where(count)) as pool:
            row.workers[count], driver = least(here, spread(here, pool))
            row.driver = row.driver or driver
    return row


def one_by_one(case: Case) -> float:
    """What the pieces take in this process."""
    here = training(case)
    return least(here, spread(here, Here(piecework(case))))[0]


def spread(case: Training, workers: Workers) -> Spread:
    """Lets workers answer."""
    return Spread(case.method, workers, queries_each=(Q + 1) * N)


def _simulating(case: Training) -> float:
    """What the simulator takes of an update without workers."""
    windows = pieces(case.trajectories, case.recipe, 0).repeated(Q + 1)
    fields, parameters = windows.fields.numpy(), windows.parameters.numpy()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        case.loop.simulator.step(fields, parameters)
        times.append(time.perf_counter() - started)
    return N * min(times[1:])


def shown(rows: list[Row]) -> Table:
    """Lays out how two workers compare with one and with none."""
    table = _table("case", "grid", "pieces", "alone ms", "simulator", "one by one", "1 worker",
                   "2 workers", "driver", "2 to 1", "predicted", "2 to alone")  # fmt: skip
    for row in rows:
        one, two = row.workers[1], row.workers[2]
        times = [row.alone, row.simulator, row.pieces, one, two, row.driver]
        table.add_row(
            row.case["name"],
            row.case["grid"],
            str(row.case["batch"]),
            *(f"{1e3 * x:.1f}" for x in times),
            *(f"{x:.2f}" for x in (one / two, row.predicted, row.alone / two)),
        )
    return table


def calls(rows: list[Row]) -> Table:
    """Lays out what a call costs by its rows."""
    table = _table("rows a call", "one by one ms", "1 worker", "overhead a call", "share")
    for row in rows:
        overhead = row.workers[1] - row.pieces
        numbers = [1e3 * x for x in (row.pieces, row.workers[1], overhead / ROUNDS)]
        table.add_row(
            str((Q + 1) * row.case["batch"]),
            *(f"{x:.1f}" for x in numbers),
            f"{overhead / row.workers[1]:.0%}",
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in ("case", "grid") else "right")
    return table


def main() -> int:
    """Times all cases, prints and stores the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    connection = Connection(Where(4))  # room for the next workers while the last ones end
    try:
        rows = [measured(CASES[i]) for i in arguments.cases]
        by_rows = [measured(Case("wake", "wake", "20x40", b), (1,)) for b in BATCHES]
    finally:
        connection.close()
    Console(width=140).print(shown(rows), "\n", calls(by_rows))
    if arguments.json:
        found = {"scaling": list(map(asdict, rows)), "calls": list(map(asdict, by_rows))}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
