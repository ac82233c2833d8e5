r"""Seconds of one sparse gradient of ResNet-20 on a GPU, and how near that is to the GPU's limits.

    PYTHONPATH=. python benchmarks/gpu_gradient.py --peer build/DeepZero --json gpu_gradient.json

A smoke run, whose figures mean nothing, needs no GPU: ``--device cpu --quick``. ``--peer`` is a
clone of https://github.com/OPTML-Group/DeepZero, used as it is. Where the GPU is in another machine
that sees a copy of this repository, put the clone into a folder that git ignores, such as
``build``, and take that folder along. Rows are printed, and written, as they are measured.

The problem is that of `core_speed`: batch norm in train mode, random images of CIFAR-10's shape,
10 % of the weights, split *uniform*\ ly or by *zo-grasp*. Difference propagation runs with several
budgets in each of

- *float32*: all products in float32, TF32 switched off;
- *tf32*: the same with products of float32 rounded to TF32, both in cuDNN and in cuBLAS;
- *bfloat16*: dense products in bfloat16, the rest in float32, TF32 switched off.

The public code runs in the first two (of which torch's default is the second for convolutions).

**Time.** One gradient with its base pass, by the wall clock between two synchronizations, so that
starting kernels counts; the best of a few, after a whole one to warm up. The public code is timed on
a share of each parameter's coordinates, by eq. (1) of `core_speed_timing`. Everything runs in one
thread: a stream executes one kernel after another, and threads would only multiply the memory.

**Roofline.** With W operations of matrix products (`core_speed_costs`), Q bytes to move
(`gpu_gradient_traffic`), and ceilings P and B measured here, by a large matrix product in the same
precision and by a large copy,

.. math::
    T \ge \max(W / P, Q / B)                                                        \tag{1}

for code that runs the same operations one after another. The columns *of matrix* and *of copy* are
:math:`W / (P T)` and :math:`Q / (B T)`. If both are low, the time goes into starting kernels
(*operations* says how many) or into kernels that reach neither ceiling. Q is counted during the
warm-up. Fusing operations lowers Q, and so do narrower types.

*error* is that of one slope in each layer, against float64 finite differences of the same step.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from os import cpu_count
from pathlib import Path

import torch
from core_speed import SPARSITY, Row, layer_counts, table
from core_speed_costs import block, mean_cost, one_channel, operations, whole
from core_speed_engines import MU, Ours, Problem, Public, Runner, Task, problem
from core_speed_timing import reference
from gpu_gradient_timing import PRECISIONS, Cost, clocked, copy_rate, matrix_rate
from rich.console import Console
from torch import Tensor

from deepzero_apps.vision import resnet
from deepzero_apps.zeroth_order.engines import SlowEngineWarning
from deepzero_apps.zeroth_order.sparsity import counts_by_size
from deepzero_apps.zeroth_order.state import Weights

MATRIX, COPY = 8192, 2**31
"""The rows of the matrices, and the bytes of the copy, that show the ceilings."""
GRASP_QUERIES = 192
LEAST = 4
"""Coordinates of a parameter that the public code is timed on at least."""
PUBLIC = {"public, reuse": block, "public, no reuse": whole}
OWN = "propagation"
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError)
"""What leaves out one line and not the others: memory that runs out, say."""
HEADINGS = {
    "fraction_of_matrix_peak": "of matrix",
    "fraction_of_bandwidth": "of copy",
    "gflop": "GFLOP",
    "gbytes": "GB",
}


@dataclass(frozen=True)
class Way:
    """A line of the table.

    Attributes:
        engine: ``OWN``, or a name in ``PUBLIC``.
        precision: A name in ``PRECISIONS``.
        budget: The engine's budget in bytes; 0 if it has none.
    """

    engine: str
    precision: str
    budget: int = 0

    def __str__(self) -> str:
        """Names it in a line of text."""
        within = f", budget 2^{self.budget.bit_length() - 1}" if self.budget else ""
        return f"{self.engine}, {self.precision}{within}"


@dataclass(frozen=True)
class Setting:
    """What all measurements have in common.

    Attributes:
        at: The problem, on the device.
        task: The batch, the coordinates and the checkout.
        exact: Slopes in float64, by parameter.
        repeats: How many gradients are timed.
        share: The share of the coordinates that the public code is timed on.
        matrix: By precision, the rate of a large matrix product, in GFLOP/s.
        copy: The rate of a large copy, in GB/s, bytes read and bytes written.
    """

    at: Problem
    task: Task
    exact: dict[str, float]
    repeats: int
    share: float
    matrix: dict[str, float]
    copy: float

    @property
    def device(self) -> torch.device:
        """Where the problem is."""
        return self.at.inputs.device


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the JSON file."""
    options, console = _options(argv), Console(width=140)
    begin = time.perf_counter()
    warnings.simplefilter("error", SlowEngineWarning)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    setting = prepared(options)
    about = described(options, setting)
    rows: list[Row] = []
    for way in ways(options):
        try:
            rows.append(measured(setting, way))
        except (*FAILURES, SlowEngineWarning) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            console.print(f"{way}: left out, {reason}")
            continue
        console.print(f"{way}: {rows[-1]['seconds']:.3g} s")
        about["seconds"] = time.perf_counter() - begin
        if options.json:
            options.json.write_text(json.dumps({"settings": about, "rows": rows}, indent=1) + "\n")
    title = f"{options.ratios} ratios, {about['device']}"
    console.print(table(title, [{HEADINGS.get(k, k): v for k, v in r.items()} for r in rows]))
    for line in rooflines(setting, rows):
        console.print(line)
    console.print(f"{time.perf_counter() - begin:.0f} s")
    return 0 if rows else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures a sparse gradient on a GPU.")
    parser.add_argument("--peer", type=Path, help="a checkout of the public DeepZero code")
    parser.add_argument("--json", type=Path, help="where to write settings and rows")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--ratios", choices=("uniform", "zo-grasp"), default="uniform")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[27, 29, 31], help="powers of two"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed gradients of a row")
    parser.add_argument("--share", type=float, default=0.05, help="timed of the public code")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms out"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; figures mean nothing")
    options = parser.parse_args(argv)
    _check(parser, options)
    if options.quick:
        options.batch, options.repeats, options.budgets = 8, 1, [22, 23]
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be a GPU that is there, got none; see --device cpu --quick")
    if min(options.batch, options.repeats, *options.budgets) < 1 or not 0 < options.share <= 1:
        parser.error("images, repeats and powers must be positive, the share in (0, 1]")
    if options.peer and not (options.peer / "models" / "distributed_model.py").is_file():
        parser.error(f"--peer must be a checkout of the public DeepZero code, got {options.peer}")


def prepared(options: argparse.Namespace) -> Setting:
    """Makes the problem and its exact slopes, and measures the ceilings."""
    sizes = Weights(resnet(20)).sizes
    if options.ratios == "uniform":
        counts = counts_by_size(sizes, round((1 - SPARSITY) * sum(sizes)))
    else:
        counts = layer_counts(2 if options.quick else GRASP_QUERIES)["zo-grasp"]
    if options.quick:
        counts = [min(count, LEAST) for count in counts]
    threads = 1 if options.quick else cpu_count() or 1
    peer = str(options.peer.resolve()) if options.peer else ""
    task = Task("", options.batch, threads, 0.0, counts, peer=peer)
    exact = reference(task)
    torch.set_num_threads(1)
    scale = 16 if options.quick else 1
    return Setting(
        at=on(problem(options.batch, counts), options.device),
        task=task,
        exact=exact,
        repeats=options.repeats,
        share=options.share,
        matrix={
            name: matrix_rate(each, options.device, MATRIX // scale)
            for name, each in PRECISIONS.items()
        },
        copy=copy_rate(options.device, COPY // scale**2),
    )


def on(at: Problem, device: torch.device) -> Problem:
    """Moves a problem to a device."""
    network = at.network.to(device)
    return replace(
        at,
        network=network,
        inputs=at.inputs.to(device),
        labels=at.labels.to(device),
        weights=Weights(network),
    )


def ways(options: argparse.Namespace) -> Iterator[Way]:
    """Lists what is to be measured."""
    for precision in options.precisions:
        for power in options.budgets:
            yield Way(OWN, precision, 2**power)
    for precision in options.precisions:
        if options.peer and PRECISIONS[precision].dtype is None:
            yield from (Way(engine, precision) for engine in PUBLIC)


def measured(setting: Setting, way: Way) -> Row:
    """Measures one way."""
    precision = PRECISIONS[way.precision]
    precision.switch()
    _forget_memory(setting.device)
    if way.engine == OWN:
        runner: Runner = Ours(
            setting.at,
            setting.task,
            name="DifferencePropagation",
            budget=way.budget,
            precision=precision.dtype,
        )
        cost, slopes = whole_cost(setting, runner)
    else:
        runner = Public(setting.at, setting.task, reuse=way.engine == "public, reuse")
        cost, slopes = sampled_cost(setting, runner)
    return row(setting, way, cost) | {"error": _distance(slopes, setting.exact)}


def whole_cost(setting: Setting, runner: Runner) -> tuple[Cost, dict[str, Tensor]]:
    """Times whole gradients, after one that is counted.

    Before that the engine meets a coordinate of each parameter, and checks itself on it.

    Returns:
        The cost of the fastest, and the first slope of each parameter.
    """
    _gradient(setting.at, runner, most=1)
    counted, slopes = clocked(partial(_gradient, setting.at, runner), setting.device, count=True)
    again = partial(clocked, partial(_gradient, setting.at, runner), setting.device)
    seconds = min(again()[0].seconds for _ in range(setting.repeats))
    return replace(counted, seconds=seconds), slopes


def _gradient(at: Problem, runner: Runner, most: int | None = None) -> dict[str, Tensor]:
    runner.start()
    return {
        name: runner.slopes(index, at.offsets[index][:most])[0]
        for index, name in enumerate(at.weights.names)
        if at.offsets[index]
    }


def sampled_cost(setting: Setting, runner: Runner) -> tuple[Cost, dict[str, Tensor]]:
    """Estimates the cost of a gradient from some coordinates of each parameter.

    Every call of the runner pays for the base pass, which a gradient pays for once.

    Returns:
        The cost, and the first slope of each parameter.
    """
    start = _sample(setting, runner, 0, [])[0]
    total, slopes = start, {}
    for index, name in enumerate(setting.at.weights.names):
        offsets = setting.at.offsets[index]
        if offsets:
            n = min(len(offsets), max(LEAST, ceil(setting.share * len(offsets))))
            cost, found = _sample(setting, runner, index, offsets[:n])
            total = total.plus(cost.plus(start, -1), times=len(offsets) / n)
            slopes[name] = found[0]
    return total, slopes


def _sample(
    setting: Setting, runner: Runner, index: int, offsets: Sequence[int]
) -> tuple[Cost, Tensor]:
    run = partial(runner.slopes, index, offsets)
    counted, slopes = clocked(run, setting.device, count=True)
    return replace(counted, seconds=clocked(run, setting.device)[0].seconds), slopes


def _forget_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mb(device: torch.device) -> float:
    """The most that tensors held on a GPU; on a CPU, the greatest size of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(setting: Setting, way: Way, cost: Cost) -> Row:
    """Compares what was measured with the ceilings."""
    names, numbers = setting.at.weights.names, setting.task.counts
    counts = {name: k for name, k in zip(names, numbers, strict=True) if k}
    found = operations(resnet(20), torch.zeros(2, 3, 32, 32))
    each = mean_cost(found, counts, PUBLIC.get(way.engine, one_channel))
    queries = sum(numbers) + 1
    gflop, gbytes = 2e-9 * setting.task.batch * each * sum(numbers), 1e-9 * cost.bytes
    return {
        "engine": way.engine,
        "precision": way.precision,
        "budget": way.budget,
        "batch": setting.task.batch,
        "seconds": cost.seconds,
        "queries": queries,
        "peak_mb": _peak_mb(setting.device),
        "gflop": gflop,
        "gbytes": gbytes,
        "operations": round(cost.operations),
        "fraction_of_matrix_peak": gflop / cost.seconds / setting.matrix[way.precision],
        "fraction_of_bandwidth": gbytes / cost.seconds / setting.copy,
    }


def _distance(slopes: dict[str, Tensor], exact: dict[str, float]) -> float:
    a = torch.tensor([float(slopes[name]) for name in exact]).double()
    b = torch.tensor(list(exact.values())).double()
    return float((a - b).norm() / b.norm())


def rooflines(setting: Setting, rows: Sequence[Row]) -> Iterator[str]:
    """Says, for the fastest line of each engine and precision, what eq. (1) leaves."""
    best: dict[tuple[object, object], Row] = {}
    for each in sorted(rows, key=lambda each: float(each["seconds"])):
        best.setdefault((each["engine"], each["precision"]), each)
    for each in best.values():
        work, moved = float(each["gflop"]), float(each["gbytes"])
        peak = setting.matrix[str(each["precision"])]
        yield (
            f"{each['engine']}, {each['precision']}: {work:.4g} GFLOP at {peak:.4g} GFLOP/s take "
            f"{work / peak:.3g} s; {moved:.4g} GB at {setting.copy:.4g} GB/s take "
            f"{moved / setting.copy:.3g} s; {float(each['seconds']):.3g} s measured"
        )


def described(options: argparse.Namespace, setting: Setting) -> dict[str, object]:
    """Describes a run, without the names of its folders."""
    cuda = options.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(options.device) if cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "bfloat16_sums_in_bfloat16": (
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
        "matrix_gflops": setting.matrix,
        "copy_gbytes_per_second": setting.copy,
        "ratios": options.ratios,
        "mu": MU,
        "sparsity": SPARSITY,
        "share": options.share,
        "repeats": options.repeats,
        "quick": options.quick,
    }


if __name__ == "__main__":
    raise SystemExit(main())
