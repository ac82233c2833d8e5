r"""K differences of one value of a network, dense or on one channel each.

A value of the base pass has a shape S. In K networks that differ from the base in one weight
each it has K differences, together a tensor of shape ``(K, *S)``, network first. A moved weight
of a convolution changes one channel of its output, and so do the operations after it until
channels are mixed; so long a difference is kept as that one channel: shape ``(K, *S)`` with 1 in
place of the number of channels, and a number for each network that says which channel it is.

Dense differences of images are laid out ``channels_last`` (memory order ``(K, b, h, w, c)``), in which
convolutions and pooling are fastest, and channels are next to each other; but not in float64, for
which there are no such kernels.
"""

__all__ = ["Delta", "NoDifference", "Undefined", "laid_out", "zeros"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Delta:
    """Differences of a value of shape S in K networks.

    Attributes:
        values: The differences, of shape ``(K, *S)``; on one channel 1 stands for ``S[dim]``.
        channels: The channel of each network, int64 of shape ``(K,)``; None if dense.
        dim: Which dimension of S counts channels.
    """

    values: Tensor
    channels: Tensor | None = None
    dim: int = 1

    def __len__(self) -> int:
        return len(self.values)

    def replaced(self, values: Tensor) -> "Delta":
        """Puts other values in the same place."""
        return replace(self, values=values)

    def on(self, base: Tensor) -> Tensor:
        """Takes from a base value what the difference is a difference of.

        Args:
            base: A value of shape S.

        Returns:
            ``(1, *S)`` if dense, else each network's channel, ``(K, *S)`` with 1 for ``S[dim]``.
        """
        if self.channels is None:
            return base[None]
        picked = base.index_select(self.dim, self.channels)
        return picked.movedim(self.dim, 0).unsqueeze(self.dim + 1)

    def dense(self, base: Tensor) -> Tensor:
        """Fills the other channels with zeros.

        Args:
            base: The value that differs, of shape S.

        Returns:
            The differences, of shape ``(K, *S)``; where S has sizes of 1 that a sum with another
            value will broadcast, so have they.
        """
        if self.channels is None:
            return self.values
        shape = list(self.values.shape)
        shape[self.dim + 1] = base.shape[self.dim]
        filled = zeros(shape, like=self.values)
        networks = torch.arange(len(self), device=filled.device)
        channel = filled.movedim(self.dim + 1, 1)
        channel[networks, self.channels] = self.values.squeeze(self.dim + 1)
        return filled


class NoDifference(ValueError):
    """A move changes something that has no difference, such as an index, and that matters."""


class Undefined:
    """Stands for a value that changes and has no difference, such as an index."""


def zeros(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Makes zeros of shape ``(K, *S)``, of the type and on the device of another tensor."""
    if len(shape) != 5 or not _channels_last(like):
        return like.new_zeros(shape)
    networks, rows, channels, height, width = shape
    return like.new_zeros(networks, rows, height, width, channels).permute(0, 1, 4, 2, 3)


def laid_out(base: Tensor) -> Tensor:
    """Puts a base value into the memory order of its dense differences."""
    if base.ndim != 4 or not _channels_last(base):
        return base
    return base.contiguous(memory_format=torch.channels_last)


def _channels_last(value: Tensor) -> bool:
    return value.dtype != torch.float64
