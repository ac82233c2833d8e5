"""When two ways to compute the same numbers agree."""

__all__ = ["agree"]

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
    tf32 = b.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    unit = 2.0**-11 if tf32 else torch.finfo(precision or b.dtype).eps
    tolerance = min(4096 * unit, 0.05)
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
