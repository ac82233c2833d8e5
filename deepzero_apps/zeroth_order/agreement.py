"""When two ways to compute the same numbers agree."""

__all__ = ["agree", "agree_by_moves"]

import torch
from torch import Tensor


def agree(a: Tensor, b: Tensor, precision: torch.dtype | None = None) -> bool:
    """Tells whether two outputs differ by rounding alone: a few thousand units, passed on by layers.

    Args:
        a: An output.
        b: What it should be.
        precision: The type in which part of a was computed; that of b by default.

    Returns:
        Whether they agree in shape and type, and in each entry to 4,096 units of the largest.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    tolerance = _tolerance(b, precision)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * _largest(b), equal_nan=True)


def agree_by_moves(
    a: Tensor, b: Tensor, output: Tensor, precision: torch.dtype | None = None
) -> bool:
    """Tells whether two differences of an output agree, the second one taken by subtraction.

    Args:
        a: Differences, carried.
        b: What they should be: moved outputs less the base output.
        output: The base output.
        precision: The type in which part of a was computed; that of b by default.

    Returns:
        Whether they agree in shape, and in each entry to 4,096 units of the largest difference
        and what the subtraction has lost, 256 units of the largest output.
    """
    if a.shape != b.shape:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    tolerance = _tolerance(b, precision)
    lost = 256 * torch.finfo(b.dtype).eps * _largest(output)
    within = tolerance * _largest(b) + lost
    return torch.allclose(a.to(b.dtype), b, rtol=tolerance, atol=within, equal_nan=True)


def _tolerance(b: Tensor, precision: torch.dtype | None) -> float:
    tf32 = b.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    unit = 2.0**-11 if tf32 else torch.finfo(precision or b.dtype).eps
    return min(4096 * unit, 0.05)


def _largest(b: Tensor) -> float:
    return float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
