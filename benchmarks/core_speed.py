r"""Queries a second and peak memory of one sparse gradient of ResNet-20, engine by engine.

    python benchmarks/core_speed.py --peer CHECKOUT --json core_speed.json

CHECKOUT is a clone of https://github.com/OPTML-Group/DeepZero, used as it is. All engines estimate
the same coordinates of the same network: batch norm in train mode, images of CIFAR-10's shape with
random pixels and labels, 10 % of the weights. They are split over the layers in two ways: *uniform*,
in proportion to the layers' sizes, and *zo-grasp*, by DeepZero's scores from q = 192 directions on
64 of the images.

Every engine runs alone in a process of its own, with the same number of threads; `core_speed_engines`
says how each is driven and timed. The columns:

- *q/s*: coordinates of a gradient by its time, the base pass included;
- *peak*: the greatest resident size of the process, with Python and torch (about 300 MB);
- *GFLOP*: two operations for each multiply-add of convolutions and linear layers that a query
  executes, on average over the mask (`core_speed_costs`);
- *of peak*: their rate by that of a large matrix product in the same precision, on the same threads;
- *error*: of one slope in each layer, against float64 finite differences of the same step
  (relative l2 norm): what float32 leaves of them.

The allocator's thresholds are raised for all: otherwise it hands large activations back to the
system after every use, and page faults cost everybody about a fifth (``--plain-allocator``).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from core_speed_costs import mean_cost, operations
from core_speed_engines import ENGINES, MU, Task, missing, problem
from core_speed_timing import Result, matrix_peak, measure, reference
from rich import box
from rich.console import Console
from rich.table import Table

from deepzero_apps.vision import resnet
from deepzero_apps.zeroth_order.differences import Sequential
from deepzero_apps.zeroth_order.gradients import network_loss
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import counts_by_score, counts_by_size, zo_grasp
from deepzero_apps.zeroth_order.state import Weights

SPARSITY = 0.9
GRASP_BATCH, GRASP_QUERIES = 64, 192
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
BASELINES = ("public, reuse", "public, no reuse", "vmap", "polystep")
TIMEOUT = 400
HIDDEN = ("threads", "seconds_per_gradient", "idle_mb")
HEADINGS = {
    "queries_per_second": "q/s",
    "peak_mb": "peak MB",
    "gflop_per_query": "GFLOP",
    "fraction_of_peak": "of peak",
}

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Setting:
    """What all measurements have in common.

    Attributes:
        ask: Puts a question to a process of its own.
        task: Threads, seconds, the checkout, and the most coordinates of both splits.
        counts: The coordinates of each parameter, for both splits.
        peaks: The matrix peaks, in GFLOP/s.
    """

    ask: Callable[[dict[str, Any]], Any]
    task: Task
    counts: dict[str, list[int]]
    peaks: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the JSON file."""
    options = _options(argv)
    if options.child:
        print(json.dumps(_answer(json.load(sys.stdin))))
        return 0

    begin, console = time.perf_counter(), Console(width=110)
    setting = prepared(options)
    rows = [
        made for batch in options.batch for made in measured(setting, batch, options.only, console)
    ]
    ratios = list(times_faster(rows))
    for batch in options.batch:
        console.print(table(f"batch {batch}", [row for row in rows if row["batch"] == batch]))
    if ratios:
        console.print(table("times faster", ratios))
    about = described(options, setting) | {"seconds": time.perf_counter() - begin}
    console.print(f"matrix peaks in GFLOP/s: {about['peaks']}; {about['seconds']:.0f} s")
    if options.json:
        record = {"settings": about, "rows": rows, "times_faster": ratios}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if rows else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures engines on a sparse gradient.")
    parser.add_argument("--peer", type=Path, help="a checkout of the public DeepZero code")
    parser.add_argument("--json", type=Path, help="where to write settings, rows and ratios")
    parser.add_argument("--threads", type=int, default=2, help="of every engine")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], help="images")
    parser.add_argument("--seconds", type=float, default=16.0, help="an engine and batch, about")
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--quick", action="store_true", help="a smoke run; figures mean nothing")
    parser.add_argument(
        "--plain-allocator", action="store_true", help="leave the allocator as it is"
    )
    parser.add_argument(
        "--grasp-queries", type=int, default=GRASP_QUERIES, help="directions of ZO-GraSP"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if min(options.threads, options.grasp_queries, *options.batch) < 1 or not options.seconds > 0:
        parser.error("threads, queries, images and seconds must be positive")
    if options.peer and not (options.peer / "models" / "distributed_model.py").is_file():
        parser.error(f"--peer must be a checkout of the public DeepZero code, got {options.peer}")
    if options.quick:
        options.batch, options.seconds, options.grasp_queries = [4], 0.5, 2
    return options


def prepared(options: argparse.Namespace) -> Setting:
    """Measures the matrix peaks and finds both splits."""
    ask = partial(_asked, plain=options.plain_allocator)
    counts = ask({"what": "counts", "threads": options.threads, "q": options.grasp_queries})
    return Setting(
        ask=ask,
        task=Task(
            engine="",
            batch=0,
            threads=options.threads,
            seconds=options.seconds,
            counts=[max(pair) for pair in zip(*counts.values(), strict=True)],
            peer=str(options.peer.resolve()) if options.peer else "",
        ),
        counts=counts,
        peaks=ask({"what": "peaks", "threads": options.threads}),
    )


def _asked(question: dict[str, Any], *, plain: bool) -> Any:  # noqa: ANN401
    """Puts a question to a process of its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(question["threads"]))
    answered = subprocess.run(
        [sys.executable, __file__, "--child"],
        input=json.dumps(question),
        env={**os.environ, **threads, **({} if plain else ALLOCATOR)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if answered.returncode:
        raise RuntimeError((answered.stderr.strip().splitlines() or ["it was killed"])[-1])
    return json.loads(answered.stdout.splitlines()[-1])


def _answer(question: dict[str, Any]) -> object:
    """Answers in the child."""
    torch.set_num_threads(question["threads"])
    what = question.pop("what")
    if what == "peaks":
        return {name: matrix_peak(getattr(torch, name)) for name in ("float32", "bfloat16")}
    if what == "counts":
        return layer_counts(question["q"])
    task = Task(**question)
    return reference(task) if what == "reference" else asdict(measure(task))


@torch.no_grad()
def layer_counts(q: int) -> dict[str, list[int]]:
    """Splits the coordinates of a sparse gradient over the parameters in both ways.

    Args:
        q: The directions of ZO-GraSP.
    """
    sizes = Weights(resnet(20)).sizes
    kept = round((1 - SPARSITY) * sum(sizes))
    at = problem(GRASP_BATCH, [0] * len(sizes))
    evaluation = Sequential().prepare(at.network, at.inputs, CrossEntropy(at.labels))
    theta = torch.cat([p.flatten() for p in at.weights.parameters])
    loss = network_loss(evaluation, at.weights)
    scores = zo_grasp(loss, theta, mu=MU, q=q, generator=generator_for(0, "scores"))
    return {
        "uniform": counts_by_size(sizes, kept),
        "zo-grasp": counts_by_score(scores, sizes, kept),
    }


def measured(
    setting: Setting, batch: int, names: Sequence[str], console: Console
) -> Iterator[Row]:
    """Measures engines; each gives a row for each split."""
    task = replace(setting.task, batch=batch)
    exact = setting.ask({"what": "reference", **asdict(task)})
    for name in names:
        reason = missing(name, task.peer)
        try:
            found = None if reason else fastest(setting.ask, replace(task, engine=name))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if reason or found is None:
            console.print(f"batch {batch}, {name}: left out, {reason}")
            continue
        way, result = found
        for ratios in setting.counts:
            made = row(setting, replace(task, engine=name), result, ratios)
            yield made | {"error": _distance(result.slopes, exact), "way": way}
        console.print(f"batch {batch}, {name}: {made['queries_per_second']:.1f} q/s, {way}")


def fastest(ask: Callable[[dict[str, Any]], Any], task: Task) -> tuple[str, Result]:
    """Measures an engine in all ways it can be run, and picks one by a whole gradient."""
    found = {}
    ways = [way for way in ENGINES[task.engine].ways if task.threads > 1 or not way.apart]
    for way in ways:
        each = replace(task, chunk=way.chunk, seconds=task.seconds / len(ways))
        stack = f", {way.chunk} stacked" if way.chunk > 1 else ""
        if way.apart:
            found[f"{task.threads} processes{stack}"] = _apart(ask, each)
        else:
            found[f"1 process{stack}"] = Result(**ask({"what": "engine", **asdict(each)}))
    return min(found.items(), key=lambda item: sum(_weighed(item[1], task.counts)))


def _apart(ask: Callable[[dict[str, Any]], Any], task: Task) -> Result:
    """Measures one process for each thread, all at once, and joins what they found."""
    question = {"what": "engine", **asdict(replace(task, threads=1))}
    with ThreadPoolExecutor(task.threads) as pool:
        found = [Result(**each) for each in pool.map(ask, [dict(question)] * task.threads)]
    return Result(
        start=mean(each.start for each in found),
        seconds={
            name: mean(each.seconds[name] for each in found) / task.threads
            for name in found[0].seconds
        },
        slopes=found[0].slopes,
        peak_mb=sum(each.peak_mb for each in found),
        idle_mb=sum(each.idle_mb for each in found),
    )


def _weighed(found: Result, counts: Sequence[int]) -> list[float]:
    """The terms of the time of a gradient."""
    names = Weights(resnet(20)).names
    spent = [k * found.seconds[name] for name, k in zip(names, counts, strict=True) if k]
    return [found.start, *spent]


def row(setting: Setting, task: Task, found: Result, ratios: str) -> Row:
    """Weighs what was measured by the coordinates of a mask."""
    network, engine = resnet(20), ENGINES[task.engine]
    numbers = setting.counts[ratios]
    counts = {n: k for n, k in zip(Weights(network).names, numbers, strict=True) if k}
    spent = sum(_weighed(found, numbers))
    rate = sum(numbers) / spent
    each = mean_cost(operations(network, torch.zeros(2, 3, 32, 32)), counts, engine.rule)
    gflop = 2e-9 * task.batch * each
    return {
        "engine": task.engine,
        "ratios": ratios,
        "batch": task.batch,
        "threads": task.threads,
        "queries_per_second": rate,
        "peak_mb": found.peak_mb,
        "gflop_per_query": gflop,
        "fraction_of_peak": gflop * rate / setting.peaks[engine.dtype],
        "seconds_per_gradient": spent,
        "idle_mb": found.idle_mb,
    }


def _distance(slopes: dict[str, float], exact: dict[str, float]) -> float:
    names = sorted(slopes.keys() & exact.keys())
    a, b = (torch.tensor([of[name] for name in names]).double() for of in (slopes, exact))
    return float((a - b).norm() / b.norm())


def times_faster(rows: Sequence[Row]) -> Iterator[Row]:
    """Compares the engines of this package with the others, at the same batch and split."""
    rates = {(r["batch"], r["ratios"], r["engine"]): float(r["queries_per_second"]) for r in rows}
    for (batch, ratios, engine), rate in rates.items():
        if engine not in BASELINES:
            others = {name: rates.get((batch, ratios, name)) for name in BASELINES}
            compared = {f"than {name}": rate / other for name, other in others.items() if other}
            if compared:
                yield {"engine": engine, "ratios": ratios, "batch": batch, **compared}


def table(title: str, rows: Sequence[Row]) -> Table:
    """Shows rows as a Markdown table, what they have in common apart."""
    shown = Table(title=title, box=box.MARKDOWN)
    names = [name for name in (rows[0] if rows else ()) if name not in HIDDEN]
    for name in names:
        shown.add_column(HEADINGS.get(name, name), justify="right")
    for each in rows:
        cells = (each.get(name, "") for name in names)
        shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in cells))
    return shown


def described(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Describes a run, without the names of its folders."""
    return {
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "peaks": setting.peaks,
        "mu": MU,
        "sparsity": SPARSITY,
        "counts": setting.counts,
        "allocator": "plain" if options.plain_allocator else ALLOCATOR,
        "quick": options.quick,
        "peer_commit": _commit(options.peer),
    }


def _commit(checkout: Path | None) -> str:
    if checkout is None:
        return ""
    told = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
