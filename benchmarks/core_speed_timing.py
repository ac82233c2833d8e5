r"""Times one engine in a process of its own.

Cost differs by parameter. Each parameter is warmed up with moves of its own, as many as the engine
takes at once; its sample then grows until it lasts long enough, and the better of two runs counts.
A sample is a run of the mask's sorted coordinates, never more than the mask has. What an estimate
costs before its first coordinate (the base pass) is timed apart. A gradient then takes

.. math::
    T = T_0 + \sum_l k_l t_l                                                        \tag{1}

for :math:`k_l` coordinates in parameter l. Engines that run the whole network for every query are
timed on a few parameters only: all cost the same; and so do scale and shift of a batch norm.

**Threads.** Some engines use several threads better as one process each, which share the
coordinates. Where both ways are possible both are measured and the faster counts. For P processes
(1) is :math:`T_0 + \sum_l k_l t_l / P` with times measured while all P run; their memory adds up.
"""

__all__ = ["Result", "matrix_peak", "measure", "reference"]

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from core_speed_engines import ENGINES, Ours, Problem, Runner, Task, problem
from torch import Tensor

PEAK_SIZE, PEAK_REPEATS = 4096, 4
LEAST, MOST, GROWTH = 2, 128, 8
"""Bounds on the queries of the first sample, and the greatest growth of a sample."""
SAMPLED = 4
"""Large parameters that are timed where all cost the same."""


@dataclass(frozen=True)
class Result:
    """What a process has measured.

    Attributes:
        start: The seconds before the first coordinate.
        seconds: The seconds a query, by parameter.
        slopes: The slope of the first coordinate of the mask, by parameter.
        peak_mb: The greatest resident size, in 2^20 bytes.
        idle_mb: The resident size before the first pass: Python, torch and the engine's code.
    """

    start: float
    seconds: dict[str, float]
    slopes: dict[str, float]
    peak_mb: float
    idle_mb: float


@torch.no_grad()
def measure(task: Task) -> Result:
    """Measures one engine in this process."""
    torch.set_num_threads(task.threads)
    engine = ENGINES[task.engine]
    at = problem(task.batch, task.counts)
    runner = engine.build(at, task)
    idle = _resident_mb("VmRSS")
    start = _start_seconds(runner)
    known = start if runner.starts_anew else 0.0

    large, small = _parameters(at)
    if engine.alike:
        large, small = large[:: len(large) // SAMPLED], {}
    share = 0.8 * task.seconds / len(large)
    seconds, slopes = {}, {}
    for index in [*large, *small.values()]:
        name = at.weights.names[index]
        seconds[name], slopes[name] = _sampled(
            partial(_clocked, runner, index, at.offsets[index], known=known),
            len(at.offsets[index]),
            share if index in large else 0.0,
            least=min(max(runner.chunk(index), LEAST), MOST),
        )
    for module, index in small.items():
        for name in (f"{module}.weight", f"{module}.bias"):
            seconds.setdefault(name, seconds[at.weights.names[index]])
    if engine.alike:
        seconds = dict.fromkeys(at.weights.names, mean(seconds.values()))
    return Result(start, seconds, slopes, _resident_mb("VmHWM"), idle)


def _parameters(at: Problem) -> tuple[list[int], dict[str, int]]:
    """The matrices and kernels of the mask, and of every module one vector."""
    large, small = [], {}
    for index, parameter in enumerate(at.weights.parameters):
        if at.offsets[index] and parameter.ndim > 1:
            large.append(index)
        elif at.offsets[index]:
            small[at.weights.names[index].rpartition(".")[0]] = index
    return large, small


def _start_seconds(runner: Runner) -> float:
    spent = []
    for _ in range(3):
        begin = time.perf_counter()
        runner.start()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def _clocked(
    runner: Runner, index: int, offsets: Sequence[int], n: int, *, known: float
) -> tuple[float, Tensor]:
    """The seconds of n queries, without those known to go elsewhere, and the slopes."""
    begin = time.perf_counter()
    slopes = runner.slopes(index, offsets[:n])
    return time.perf_counter() - begin - known, slopes


def _sampled(
    run: Callable[[int], tuple[float, Tensor]], most: int, seconds: float, *, least: int
) -> tuple[float, float]:
    """The seconds a query, from as many as last long enough, and the first slope."""
    n = min(least, most)
    _, slopes = run(n)
    spent, _ = run(n)
    while spent < seconds / 3 and n < most:
        factor = min(GROWTH, seconds / 3 / max(spent, 1e-9))
        n = min(most, max(2 * n, int(n * factor)))
        spent, _ = run(n)
    if spent < seconds:
        spent = min(spent, run(n)[0])
    return max(spent, 0.0) / n, float(slopes[0])


def matrix_peak(dtype: torch.dtype) -> float:
    """Measures the rate of a large matrix product, in GFLOP/s."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    spent = []
    for _ in range(PEAK_REPEATS):
        begin = time.perf_counter()
        torch.mm(a, b)
        spent.append(time.perf_counter() - begin)
    return 2e-9 * PEAK_SIZE**3 / min(spent)


def reference(task: Task) -> dict[str, float]:
    """Computes, in float64 and by whole passes, the slopes that the engines estimate."""
    torch.set_num_threads(task.threads)
    at = problem(task.batch, task.counts)
    at.network.double()
    exact = Ours(replace(at, inputs=at.inputs.double()), task, name="Sequential")
    exact.start()
    return {
        name: float(exact.slopes(i, at.offsets[i][:1])[0])
        for i, name in enumerate(at.weights.names)
        if at.weights.parameters[i].ndim > 1 and at.offsets[i]
    }


def _resident_mb(field: str) -> float:
    """Reads the resident size: what a child process inherits from its parent is not in it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
