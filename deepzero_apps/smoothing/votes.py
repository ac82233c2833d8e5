r"""Votes of a classifier under Gaussian noise, counted.

For an image :math:`x` and :math:`\epsilon_j \sim \mathcal{N}(0, I)` the votes are

.. math::
    f(x + \sigma \epsilon_j), \qquad j = 1 \ldots n                             \tag{1}

and only their number by class is kept. Three properties are bought here:

- *The noise of an image depends on nothing but* ``(seed, index, phase)``: one generator per
  image and phase, seeded through numpy's SeedSequence, read in blocks of a fixed size, because
  a torch generator gives other numbers for other shapes. Batch size, order and company of
  other images do not enter. (The device does: a GPU draws other numbers than a CPU. A CPU
  generator keeps 32 bits of its seed: of 20,000 streams two agree with a chance of 5 %.
  Every certificate is sound all the same; two phases of one image agree once in 4e9.)
- *Calls are full*: noisy copies of many images share a call of ``rows`` rows.
- *Votes are counted where they arise*: one small transfer a call.

:math:`x + \sigma \epsilon` is formed in float32, before any cast of the classifier's.
"""

__all__ = ["BLOCK", "Draw", "Tally", "count_votes", "noise_blocks"]

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.blackbox import Classifier, ask, labels_of

BLOCK = 128
"""Noisy copies drawn at once. A change of it changes the noise."""


@dataclass(frozen=True)
class Draw:
    """A wish for votes.

    Args:
        index: Which of the images.
        phase: Which of the independent sets of votes of that image, from 0.
        votes: How many, at least 1.
    """

    index: int
    phase: int
    votes: int


@dataclass(frozen=True)
class Tally:
    """The votes of one draw.

    Args:
        counts: Votes by class, of shape ``(classes,)``, int64.
        seconds: Time spent on them: of a shared call, the share of their rows.
    """

    counts: np.ndarray
    seconds: float


@dataclass(frozen=True)
class _Piece:
    """Rows of one draw; `is_last` where the draw ends with them."""

    rows: Tensor
    is_last: bool


def count_votes(
    classifier: Classifier,
    images: Tensor,
    draws: Iterable[Draw],
    *,
    sigma: float,
    seed: int,
    rows: int,
    device: torch.device,
) -> Iterator[Tally]:
    """Counts the votes of many draws in full calls, eq. (1).

    Args:
        classifier: The black box; gets float32 batches on ``device``.
        images: Images of shape ``(n, channel, height, width)``, floating.
        draws: What to draw; read lazily.
        sigma: Standard deviation of the noise, in the images' units.
        seed: The seed, at least 0.
        rows: Rows a call, at least 1.
        device: Where noise is drawn and votes are counted.

    Yields:
        One tally a draw, in the order of the draws.

    Raises:
        ClassifierError: If the classifier raises or its answer cannot be used.
    """
    counts, seconds = np.zeros(classifier.classes, dtype=np.int64), 0.0
    pieces = (
        piece
        for draw in draws
        for piece in _noisy(images[draw.index], draw, sigma=sigma, seed=seed, device=device)
    )
    start = time.perf_counter()
    for batch in _batches(pieces, rows):
        votes = _votes(classifier, batch)
        row_seconds = (time.perf_counter() - start) / sum(len(piece.rows) for piece in batch)
        for piece, piece_votes in zip(batch, votes, strict=True):
            counts, seconds = counts + piece_votes, seconds + row_seconds * len(piece.rows)
            if piece.is_last:
                yield Tally(counts, seconds)
                counts, seconds = np.zeros_like(counts), 0.0
        start = time.perf_counter()  # the consumer's time between tallies is not ours


def noise_blocks(
    shape: Sequence[int], *, seed: int, index: int, phase: int, device: torch.device
) -> Iterator[Tensor]:
    """Gives the noise of one image and phase, without end.

    Args:
        shape: The image's shape, ``(channel, height, width)``.
        seed: The seed, at least 0.
        index: The image's place in its data set, at least 0.
        phase: Which of its independent sets of votes, from 0.
        device: Where to draw.

    Yields:
        Standard normal blocks of shape ``(BLOCK, channel, height, width)``, float32.
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(index, phase))
    generator = torch.Generator(device=device)
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    while True:
        yield torch.randn((BLOCK, *shape), generator=generator, device=device, dtype=torch.float32)


def _noisy(
    image: Tensor, draw: Draw, *, sigma: float, seed: int, device: torch.device
) -> Iterator[_Piece]:
    image = image.detach().to(device, torch.float32)
    blocks = noise_blocks(
        image.shape, seed=seed, index=draw.index, phase=draw.phase, device=device
    )
    for start, noise in zip(range(0, draw.votes, BLOCK), blocks, strict=False):
        # Added before a block is cut: a vectorized sum may round another way in its tail.
        rows = (image + sigma * noise)[: draw.votes - start]
        yield _Piece(rows, is_last=start + BLOCK >= draw.votes)


def _batches(pieces: Iterable[_Piece], rows: int) -> Iterator[list[_Piece]]:
    """Packs pieces into lists of `rows` rows, the last one shorter, cutting where it must."""
    batch: list[_Piece] = []
    free = rows
    for whole in pieces:
        rest = whole
        while len(rest.rows) > free:
            yield [*batch, _Piece(rest.rows[:free], is_last=False)]
            rest = _Piece(rest.rows[free:], is_last=rest.is_last)
            batch, free = [], rows
        batch.append(rest)
        free -= len(rest.rows)
        if free == 0:
            yield batch
            batch, free = [], rows
    if batch:
        yield batch


def _votes(classifier: Classifier, batch: Sequence[_Piece]) -> np.ndarray:
    """Asks for one batch; gives votes of shape (pieces, classes)."""
    labels = labels_of(ask(classifier, torch.cat([piece.rows for piece in batch])))
    sizes = torch.tensor([len(piece.rows) for piece in batch], device=labels.device)
    owners = torch.arange(len(batch), device=labels.device).repeat_interleave(
        sizes, output_size=len(labels)
    )
    cells = len(batch) * classifier.classes
    counts = torch.bincount(owners * classifier.classes + labels, minlength=cells)
    return counts.view(len(batch), classifier.classes).cpu().numpy()
