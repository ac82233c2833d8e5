r"""Calls of noisy copies: formed, asked, and counted where the answers arise.

A *stretch* is consecutive votes of one image in one phase; a call holds stretches of many images.
A *teller* forms the copies of a call in place, in one buffer that all calls share, asks, and
counts by one small transfer. It keeps the images' streams of noise where they were left, so that
the next stretch of an image costs its own noise alone. Streams are forgotten when the images are
over, or when they hold much memory; one that is forgotten, or was drawn on elsewhere meanwhile, is
taken up again at the cost of the noise in between. Numbers do not depend on any of that.

The price of drawing on elsewhere: a stream that W workers share is drawn W times. At 32x32 pixels
a copy costs 8 microseconds, a ResNet-20 1,400.
"""

__all__ = ["Call", "Counter", "Here", "Stretch", "Tally", "Teller"]

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier, labels_of
from deepzero_apps.smoothing.blackbox import ask
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.noise import NoisyCopies
from deepzero_apps.zeroth_order.oracle import Meter

_WORTH_THREADS = 2**20
"""Random numbers in a call from which on several threads make them."""

_HELD = 2**28
"""Bytes of copies, drawn and not asked yet, from which on streams are forgotten."""

_STREAMS = 2**14
"""Streams from which on the oldest are forgotten: a generator of noise has 5 kB."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive votes of one image in one phase.

    Args:
        index: The image.
        phase: The stream of noise.
        start: Place of the first vote in it.
        rows: How many votes.
    """

    index: int
    phase: int
    start: int
    rows: int


Call = Sequence[Stretch]
"""What the classifier is asked at once."""


@dataclass(frozen=True)
class Tally:
    """The answers of one call.

    Args:
        counts: Votes of shape ``(stretches, 1 + classes)``, int64; those without an answer first.
        seconds: Time spent on the call.
        spent: The queries it took, repetitions included.
    """

    counts: np.ndarray
    seconds: float
    spent: int


class Counter(Protocol):
    """Where calls are answered: here, or by workers. Tallies come in the order of the calls."""

    ahead: int
    """Calls that may be put before the first is taken."""

    busy: int
    """Calls from which on everybody has work, so that one that is not full can wait."""

    def affordable(self) -> float:
        """Says how many rows may be put now; infinite without a budget."""

    def put(self, call: Call) -> None:
        """Queues a call, of at most as many rows as are affordable."""

    def take(self) -> Tally:
        """Waits for the oldest call that was not taken.

        Raises:
            ClassifierError: If the classifier raises or its answer cannot be used.
            BudgetExhausted: If the queries of the call, or repetitions of them, are refused.
        """

    def forget(self, index: int) -> None:
        """Hears that an image is over."""

    def close(self) -> None:
        """Gives up what was not taken."""


class Teller:
    """Forms, asks and counts calls.

    Args:
        classifier: The black box; gets float32 batches on ``device``.
        images: Images of shape ``(n, channel, height, width)``, a tensor or an array.
        settings: Noise and seed.
        device: Where noise is drawn and votes are counted.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor | np.ndarray,
        settings: Settings,
        *,
        device: torch.device,
    ) -> None:
        self._classifier, self._images, self._settings = classifier, images, settings
        self._device = device
        self._buffer = torch.empty(0)
        self._streams: OrderedDict[int, tuple[int, NoisyCopies]] = OrderedDict()
        self._held = 0

    def form(self, call: Call) -> Tensor:
        """Forms the copies of a call.

        Returns:
            Rows ``(k, channel, height, width)``, float32, in a buffer that the next call reuses.
        """
        total = sum(stretch.rows for stretch in call)
        if len(self._buffer) < total:
            shape = (total, *self._images.shape[1:])
            self._buffer = torch.empty(shape, dtype=torch.float32, device=self._device)
        rows = self._buffer[:total]
        before = self._bytes(call)
        self._fill(rows, call)
        self._held += self._bytes(call) - before
        self._tidy()
        return rows

    def count(self, rows: Tensor, call: Call) -> np.ndarray:
        """Asks for the answers to a call and counts them, as in `Tally`.

        Raises:
            ClassifierError: If the classifier raises or its answer cannot be used.
            BudgetExhausted: If the classifier's meter refuses a repetition.
        """
        labels = labels_of(ask(self._classifier, rows))
        return _counts(labels, [stretch.rows for stretch in call], self._classifier.classes)

    def forget(self, index: int) -> None:
        """Lets go of an image's stream."""
        _, copies = self._streams.pop(index, (0, None))
        self._held -= copies.nbytes if copies is not None else 0

    def _bytes(self, call: Call) -> int:
        """The bytes that the streams of a call hold."""
        indices = {stretch.index for stretch in call} & self._streams.keys()
        return sum(self._streams[index][1].nbytes for index in indices)

    def _fill(self, rows: Tensor, call: Call) -> None:
        parts = rows.split([stretch.rows for stretch in call])
        threads = worth_threads(len(rows), self._images.shape[1:])
        if len(call) == 1 or threads == 1:
            for part, stretch in zip(parts, call, strict=True):
                self._stream(stretch).write(part)
            return

        def write(part: Tensor, stretch: Stretch) -> None:
            self._stream(stretch).write(part)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write, parts, call))

    def _stream(self, stretch: Stretch) -> NoisyCopies:
        phase, copies = self._streams.pop(stretch.index, (stretch.phase, None))
        if copies is None or phase != stretch.phase or copies.position > stretch.start:
            copies = self._opened(stretch)
        copies.skip(stretch.start - copies.position)
        self._streams[stretch.index] = stretch.phase, copies
        return copies

    def _opened(self, stretch: Stretch) -> NoisyCopies:
        image = self._images[stretch.index]
        return NoisyCopies(
            # what workers share is read-only, which torch does not know
            torch.from_numpy(image.copy()) if isinstance(image, np.ndarray) else image,
            sigma=self._settings.sigma,
            seed=self._settings.seed,
            index=stretch.index,
            phase=stretch.phase,
            noise=self._settings.noise,
            device=self._device,
        )

    def _tidy(self) -> None:
        while len(self._streams) > 1 and (self._held > _HELD or len(self._streams) > _STREAMS):
            self.forget(next(iter(self._streams)))


class Here:
    """Answers calls in this process, one at a time.

    Args:
        teller: Forms, asks and counts.
        meter: Charged one query a row; a service charges its repetitions to it by itself.
    """

    ahead = busy = 1

    def __init__(self, teller: Teller, meter: Meter) -> None:
        self._teller, self._meter = teller, meter
        self._call: Call = ()

    def affordable(self) -> float:
        """Says how many rows may be put now."""
        return self._meter.remaining

    def put(self, call: Call) -> None:
        """Notes a call; the work is done when it is taken."""
        self._call = call

    def take(self) -> Tally:
        """Answers the call."""
        started, before = time.perf_counter(), self._meter.spent
        rows = self._teller.form(self._call)
        self._meter.charge(len(rows))
        counts = self._teller.count(rows, self._call)
        return Tally(counts, time.perf_counter() - started, self._meter.spent - before)

    def forget(self, index: int) -> None:
        """Lets go of an image's stream of noise."""
        self._teller.forget(index)

    def close(self) -> None:
        """Has nothing to give up."""


def worth_threads(rows: int, shape: Sequence[int]) -> int:
    """Says how many threads form the copies of a call: one, where it has few numbers.

    Args:
        rows: The rows of the call.
        shape: The shape of an image.
    """
    numbers = rows * int(np.prod(shape))
    return torch.get_num_threads() if numbers >= _WORTH_THREADS else 1


def _counts(labels: Tensor, sizes: Sequence[int], classes: int) -> np.ndarray:
    """Counts the votes of each stretch: ``(stretches, 1 + classes)``, without answer first."""
    lengths = torch.tensor(sizes, device=labels.device)
    owners = torch.arange(len(sizes), device=labels.device).repeat_interleave(
        lengths, output_size=len(labels)
    )
    cells = owners * (classes + 1) + labels + 1
    counts = torch.bincount(cells, minlength=len(sizes) * (classes + 1))
    return counts.view(len(sizes), classes + 1).cpu().numpy()
