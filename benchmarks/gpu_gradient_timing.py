"""What a piece of work on a device takes, and the ceilings of the device.

Time is by the wall clock between two synchronizations: on a GPU work goes on after a call of torch
has returned, and starting it takes time as well.
"""

__all__ = ["PRECISIONS", "Cost", "Precision", "clocked", "copy_rate", "matrix_rate", "wait"]

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from gpu_gradient_traffic import Traffic

REPEATS, SERIES = 10, 3
"""Products or copies between two synchronizations, and how often that is done."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Precision:
    """How products are computed.

    Attributes:
        dtype: The type of the engine's dense products; None for that of the network.
        tf32: Whether products of float32 numbers may be rounded to TF32.
    """

    dtype: torch.dtype | None = None
    tf32: bool = False

    def switch(self) -> None:
        """Sets torch's switches of TF32, both of them: their defaults differ."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32


PRECISIONS = {
    "float32": Precision(),
    "tf32": Precision(tf32=True),
    "bfloat16": Precision(torch.bfloat16),
}


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    Attributes:
        seconds: Its time.
        bytes: What its operations have to move.
        operations: Their number.
    """

    seconds: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        """Adds so many times another."""
        return Cost(
            self.seconds + times * other.seconds,
            self.bytes + times * other.bytes,
            self.operations + times * other.operations,
        )


def clocked(
    run: Callable[[], Result], device: torch.device, *, count: bool = False
) -> tuple[Cost, Result]:
    """Runs something to its end on the device.

    Args:
        run: What to run.
        device: The device.
        count: Whether to count operations and bytes, which takes time itself.

    Returns:
        The cost and the result.
    """
    with ExitStack() as stack:
        traffic = stack.enter_context(Traffic()) if count else None
        wait(device)
        begin = time.perf_counter()
        result = run()
        wait(device)
        spent = time.perf_counter() - begin
    if traffic is None:
        return Cost(spent), result
    return Cost(spent, traffic.bytes, traffic.operations), result


def wait(device: torch.device) -> None:
    """Waits until all that was started on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(precision: Precision, device: torch.device, size: int) -> float:
    """Measures the rate of a large matrix product.

    Args:
        precision: How it is computed.
        device: The device.
        size: The rows of the matrices.

    Returns:
        GFLOP/s, two operations for each multiply-add.
    """
    precision.switch()
    dtype = precision.dtype or torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2e-9 * size**3 / _seconds_each(partial(torch.mm, a, b), device)


def copy_rate(device: torch.device, size: int) -> float:
    """Measures the rate of a large copy.

    Args:
        device: The device.
        size: Its bytes.

    Returns:
        GB/s, of bytes read and bytes written together.
    """
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2e-9 * size / _seconds_each(partial(b.copy_, a), device)


def _seconds_each(run: Callable[[], object], device: torch.device) -> float:
    def several() -> None:
        for _ in range(REPEATS):
            run()

    several()
    return min(clocked(several, device)[0].seconds for _ in range(SERIES)) / REPEATS
