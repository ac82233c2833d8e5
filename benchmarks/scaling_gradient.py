"""A sparse gradient by one and two workers, against each other and one process; what a call costs.

    python benchmarks/scaling_gradient.py --json benchmarks/results/scaling_gradient.json

Each worker has one thread; none of them is asked while another is timed. ResNet-20 on a batch of 128
images of 32x32, and an adjustable CNN on 32 of 8x8, whose steps are so short that calls show. The three take
turns, after a round that does not count, and the median round counts. Gradients are compared to the bit.

What the model of scaling_model.py needs is measured apart: an empty call, a value shared with the
workers, and, of a step, the snapshot, the base pass and the assembly.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deepzero_apps.cli.allocator import keep_freed_memory
from deepzero_apps.vision import adjustable_cnn, resnet
from deepzero_apps.workers import Pool, Sharded, Where
from deepzero_apps.workers.sharded import Measurer, snapshot
from deepzero_apps.workers.where import Connection
from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.gradients import Coordinates, read_gradient
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import SupportSchedule, shares_by_size
from deepzero_apps.zeroth_order.state import Weights

NETWORKS = {
    "resnet20": (partial(resnet, 20), (128, 3, 32, 32), 809),
    "small-cnn": (partial(adjustable_cnn, 2, width=18, channels=1), (32, 1, 8, 8), 3226),
}
"""Network, shape of the batch, weights that a step moves."""

CALLS = {"resnet20": (1, 4), "small-cnn": (1, 2, 4, 16, 64)}
"""Calls a worker that a step is cut into."""


class Row(TypedDict):
    """One network and number of calls a worker; seconds a step."""

    network: str
    calls: int
    queries: int
    here: float
    one: float
    two: float
    two_to_one: float
    equal_bits: bool


class Case:
    """A network with its gradient and its batch, made alike in every process."""

    def __init__(self, name: str) -> None:
        keep_freed_memory()
        make, shape, moved = NETWORKS[name]
        self.name = name
        self.network: nn.Module = make(generator=generator_for(0, "weights")).train()
        sizes = Weights(self.network).sizes
        shares = tuple(shares_by_size(sizes, moved))
        self.gradient = Coordinates(1e-3, CyclicSchedule(SupportSchedule(shares, sizes)))
        self.inputs = torch.rand(shape, generator=generator_for(0, "inputs"))
        self.labels = torch.randint(10, shape[:1], generator=generator_for(0, "labels"))

    def batch(self, _: int) -> tuple[Tensor, CrossEntropy]:
        """Returns the batch, the same at all steps."""
        return self.inputs, CrossEntropy(self.labels)


class Held:
    """What a worker holds: all cases."""

    def __init__(self) -> None:
        self._cases = {name: Case(name) for name in NETWORKS}
        self._measurers = {
            name: Measurer(case.network, case.gradient, case.batch)
            for name, case in self._cases.items()
        }

    def begin(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - those of Measurer
        """Makes the base pass of a case."""
        self._measurers[name].begin(*arguments)

    def measure(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401 - those of Measurer
        """Measures pieces of a case."""
        return self._measurers[name].measure(*arguments)

    def nothing(self) -> None:
        """Answers at once."""

    def look(self, shared: Any) -> None:  # noqa: ANN401 - Shared
        """Fetches a value."""
        shared.value()


class Asked:
    """A pool, asked of one case."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.count, self.share, self.abandon = pool.count, pool.share, pool.abandon
        self._pool, self._name = pool, name

    def put(self, method: str, *arguments: object) -> int:
        """Queues a call of the case."""
        return self._pool.put(method, self._name, *arguments)

    def ask(self, method: str, calls: Sequence[Sequence[object]]) -> Any:  # noqa: ANN401
        """Makes calls of the case."""
        return self._pool.ask(method, [(self._name, *call) for call in calls])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="a sparse gradient by one and two workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    connection = Connection(Where(3))
    with Pool(Held, Where(1)) as one, Pool(Held, Where(2)) as two:
        cases = [Case(name) for name in options.networks]
        rows = [
            measured(case, calls, (one, two), repeats=options.repeats)
            for case in cases
            for calls in CALLS[case.name]
        ]
        parts = {case.name: parts_of(case, one) for case in cases}
    connection.close()
    Console(width=120).print(table(rows))
    Console(width=120).print(parts)
    if options.json:
        document = {"steps": rows, "parts": parts}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(case: Case, calls: int, pools: tuple[Pool, Pool], *, repeats: int) -> Row:
    """Times the three in turns."""
    spread = [Sharded(case.gradient, Asked(pool, case.name), calls) for pool in pools]  # type: ignore[arg-type]
    rounds, gradients = [], []
    for step in range(repeats + 1):
        times = []
        for gradient in (case.gradient, *spread):
            run = partial(gradient, case.network, *case.batch(step), step=step)
            times.append(seconds(run))
            gradients.append(read_gradient(Weights(case.network)))
        rounds.append(times)
    here, one, two = (median(column) for column in zip(*rounds[1:], strict=True))
    thirds = zip(gradients[::3], gradients[1::3], gradients[2::3], strict=True)
    return Row(
        network=case.name,
        calls=calls,
        queries=NETWORKS[case.name][2],
        here=here,
        one=one,
        two=two,
        two_to_one=one / two,
        equal_bits=all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in thirds),
    )


def parts_of(case: Case, pool: Pool) -> dict[str, float]:
    """Times what a step has besides its queries; in seconds, and bytes."""
    batch = case.batch(0)
    state = snapshot(case.network, batch[0].device)
    work = case.gradient.begin(case.network, *batch, step=0)
    numbers = torch.zeros(sum(work.lengths), dtype=torch.float64)
    tensors = [*state["weights"], *state["buffers"], *state["generators"]]
    return {
        "snapshot": best(lambda: snapshot(case.network, batch[0].device)),
        "base_pass": best(lambda: case.gradient.begin(case.network, *batch, step=0)),
        "assembly": best(lambda: work.finish(numbers)),
        "call": best(lambda: list(pool.ask("nothing", [()] * 100))) / 100,
        "call_work": cpu_seconds(lambda: list(pool.ask("nothing", [()] * 300))) / 300,
        "share": best(lambda: list(pool.ask("look", [(pool.share(state),)]))),
        "state_bytes": float(sum(t.numel() * t.element_size() for t in tensors)),
        "answer_bytes": float(numbers.numel() * numbers.element_size()),
    }


def seconds(run: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def cpu_seconds(run: Callable[[], object]) -> float:
    """How long the thread that asks is at work itself: what calls take of it one after the other."""
    started = time.thread_time()
    run()
    return time.thread_time() - started


def best(run: Callable[[], object], *, repeats: int = 5) -> float:
    """The shortest of a few runs, after one that does not count."""
    return min([seconds(run) for _ in range(repeats + 1)][1:])


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out."""
    laid = Table(
        "network",
        "calls a worker",
        "queries",
        "s here",
        "s one",
        "s two",
        "two : one",
        "bits",
        box=box.SIMPLE,
    )
    for row in rows:
        times = [f"{row[key]:.3f}" for key in ("here", "one", "two")]  # type: ignore[literal-required]
        equal = "equal" if row["equal_bits"] else "DIFFER"
        laid.add_row(
            row["network"],
            str(row["calls"]),
            str(row["queries"]),
            *times,
            f"{row['two_to_one']:.2f}",
            equal,
        )
    return laid


if __name__ == "__main__":
    raise SystemExit(main())
