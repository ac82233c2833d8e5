r"""Noisy copies of an image: a stream that depends on nothing but seed, image and phase.

The copies of image :math:`i` in phase :math:`s` (0 selection, 1 estimation, ...) are

.. math::
    y_j = x_i + \sigma \epsilon_j, \qquad \epsilon_j \sim \mathcal{N}(0, I), \qquad j = 0, 1, \ldots

or, with ``noise="grid"``, the same rounded to multiples of 1/255. One generator for each image and
phase, seeded through numpy's SeedSequence, is read in blocks of a fixed size, because a torch
generator gives other numbers for other shapes. So batch size, order, company of other images and
interruptions do not enter. (The device does: a GPU draws other numbers than a CPU. A CPU
generator keeps 32 bits of its seed: of 20,000 streams two agree with a chance of 5 %. Every
certificate is sound all the same; two phases of one image agree once in 4e9.)

:math:`x + \sigma \epsilon` is formed in float32 and in place, product and sum one after the other,
so that a vectorized loop cannot round its tail in another way.
"""

__all__ = ["BLOCK", "NoisyCopies", "noise_blocks"]

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Noisy copies drawn at once. A change of it changes the noise."""

Noise = Literal["gaussian", "grid"]
_LEVELS = 255


class NoisyCopies:
    """The noisy copies of one image in one phase, in order.

    Args:
        image: The image, ``(channel, height, width)``; taken to ``device`` as float32.
        sigma: Standard deviation of the noise, in the image's units.
        seed: The seed, at least 0.
        index: The image's place in its data set, at least 0.
        phase: Which of its independent streams, from 0.
        noise: ``gaussian``, or ``grid`` for copies rounded to multiples of 1/255.
        start: How many copies to pass over: those that were asked before an interruption.
        device: Where to draw.

    Attributes:
        position: How many copies were written or passed over.
    """

    def __init__(
        self,
        image: Tensor,
        *,
        sigma: float,
        seed: int,
        index: int,
        phase: int,
        noise: Noise = "gaussian",
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._image = image.detach().to(device, torch.float32)
        self._sigma, self._noise = sigma, noise
        self._generator = _generator(seed, index, phase, torch.device(device))
        self._rest = self._image.new_empty((0, *self._image.shape))
        self.position = 0
        self.skip(start)

    @property
    def nbytes(self) -> int:
        """The bytes of copies that are drawn and not written yet."""
        return self._rest.untyped_storage().nbytes()

    def skip(self, copies: int) -> None:
        """Passes over the next copies; at about two thirds of the time of writing them."""
        whole, part = divmod(copies - len(self._drawn(copies)), BLOCK)
        block = self._image.new_empty((BLOCK, *self._image.shape))
        for _ in range(whole):
            block.normal_(generator=self._generator)
        if part:
            self._rest = self._form(block)[part:]
        self.position += copies

    def write(self, rows: Tensor) -> None:
        """Writes the next copies.

        Args:
            rows: Where to, ``(k, channel, height, width)``, float32, contiguous.
        """
        self.position += len(rows)
        drawn = self._drawn(len(rows))
        done = len(drawn)
        rows[:done].copy_(drawn)
        whole = (len(rows) - done) // BLOCK * BLOCK
        for blocks in self._at_once(rows[done : done + whole]):
            self._form(blocks)
        done += whole
        if done < len(rows):
            block = self._form(rows.new_empty((BLOCK, *rows.shape[1:])))
            rows[done:].copy_(block[: len(rows) - done])
            self._rest = block[len(rows) - done :].clone()

    def _drawn(self, most: int) -> Tensor:
        """Takes copies that are drawn already."""
        taken, rest = self._rest[:most], self._rest[most:]
        self._rest = rest if len(rest) else rest.clone()  # an empty view would keep the block
        return taken

    def _at_once(self, rows: Tensor) -> Sequence[Tensor]:
        # A CPU generator gives the same numbers for many blocks as for one after the other, as
        # the size of a block is a multiple of the 16 numbers that it makes at a time.
        return (rows,) if rows.device.type == "cpu" and len(rows) else rows.split(BLOCK)

    def _form(self, block: Tensor) -> Tensor:
        block.normal_(generator=self._generator)
        if block.device.type == "cpu":  # by numpy: torch would share so small a job among threads
            values, image = block.numpy(), self._image.numpy()
            np.multiply(values, np.float32(self._sigma), out=values)
            np.add(values, image, out=values)
        else:
            block.mul_(self._sigma).add_(self._image)
        return block.mul_(_LEVELS).round_().div_(_LEVELS) if self._noise == "grid" else block


def noise_blocks(
    shape: Sequence[int], *, seed: int, index: int, phase: int, device: torch.device | str
) -> Iterator[Tensor]:
    """Gives the noise of one image and phase, without end.

    Args:
        shape: The image's shape, ``(channel, height, width)``.
        seed: The seed, at least 0.
        index: The image's place in its data set, at least 0.
        phase: Which of its independent streams, from 0.
        device: Where to draw.

    Yields:
        Standard normal blocks of shape ``(BLOCK, channel, height, width)``, float32.
    """
    generator = _generator(seed, index, phase, torch.device(device))
    while True:
        block = torch.empty((BLOCK, *shape), dtype=torch.float32, device=device)
        yield block.normal_(generator=generator)


def _generator(seed: int, index: int, phase: int, device: torch.device) -> torch.Generator:
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(index, phase))
    generator = torch.Generator(device=device)
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    return generator
