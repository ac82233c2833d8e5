r"""Random crops and flips of training images, a whole batch at a time.

An image padded by :math:`p` zero pixels on every side is cut back to its size at an offset drawn
uniformly from :math:`\{0, \dots, 2p\}^2` (a shift by up to :math:`p` pixels), then mirrored left to
right with probability 1/2. Pixels are moved, never blended.

References:
    | Deep Residual Learning for Image Recognition (He et al., 2016), Sec. 4.2
    | https://arxiv.org/abs/1512.03385
"""

__all__ = ["augment"]

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    images: Tensor, *, generator: torch.Generator, pad: int = 4, flip: bool = True
) -> Tensor:
    """Shifts and mirrors each image by chance.

    Args:
        images: Images of shape ``(n, c, h, w)``, of any dtype.
        generator: The source of the shifts and flips; on a CPU generator they are the same
            whatever the device of the images.
        pad: The largest shift in pixels, at least 0.
        flip: Whether images are mirrored, each with probability 1/2. Digits should not be.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: If ``images`` are not 4-dimensional or ``pad`` is negative.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (n, c, h, w), got shape {tuple(images.shape)}")
    if pad < 0:
        raise ValueError(f"pad must be at least 0 pixels, got {pad}")
    count, _, height, width = images.shape
    rows, columns = _windows(count, height, width, pad=pad, generator=generator)
    if flip:
        mirrored = torch.randint(
            2, (count, 1), dtype=torch.bool, generator=generator, device=generator.device
        )
        columns = torch.where(mirrored, columns.flip(1), columns)

    padded = functional.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    row = torch.arange(count, device=images.device)[:, None, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    moved = padded[row, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def _windows(
    count: int, height: int, width: int, *, pad: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws which rows (count, height) and columns (count, width) of padded images are kept."""
    device = generator.device
    offsets = torch.randint(2 * pad + 1, (count, 2), generator=generator, device=device)
    rows = offsets[:, :1] + torch.arange(height, device=device)
    columns = offsets[:, 1:] + torch.arange(width, device=device)
    return rows, columns
