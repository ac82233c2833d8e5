"""A pool of workers in this process, with deaths by lot, and a network for real ones."""

import pickle
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.booth import Booth
from deepzero_apps.workers import Pool


@dataclass(frozen=True)
class Here:
    """A value that each worker has a copy of, as if it had traveled."""

    number: int
    content: bytes

    def value(self) -> Any:  # noqa: ANN401 - whatever was shared
        return pickle.loads(self.content)


class LocalPool(Pool):
    """What a `Pool` does, one call after the other and drawn by lot; it asks as any pool does.

    Args:
        count: The number of workers.
        seed: Of the lots: which worker answers next, and which dies.
        deaths: How many workers die, each with its call; one that dies has answered half the time.
    """

    def __init__(self, count_: int, *, seed: int = 0, deaths: int = 0) -> None:
        self.count, self.deaths, self.lost = count_, deaths, 0
        self.again: Callable[[int], None] | None = None
        self.put_ever, self.abandoned = 0, 0
        self._lots, self._numbers = random.Random(seed), count()
        self._queue: list[tuple[int, str, tuple[Any, ...]]] = []
        self._booths = [Booth("no such folder") for _ in range(count_)]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def share(self, value: object) -> Here:
        return Here(next(self._numbers), pickle.dumps(value))

    def put(self, method: str, *arguments: object) -> int:
        number = next(self._numbers)
        self._queue.append((number, method, arguments))
        self.put_ever += 1
        return number

    def take(self) -> tuple[int, Any]:
        while True:
            place = self._lots.randrange(min(self.count, len(self._queue)))
            number, method, arguments = self._queue[place]
            if self.lost < self.deaths and self._lots.random() < 0.3:
                self._die(place)
                continue
            del self._queue[place]
            return number, getattr(self._lots.choice(self._booths), method)(*arguments)

    def abandon(self, numbers: Collection[int] | None = None) -> None:
        kept = [] if numbers is None else [c for c in self._queue if c[0] not in numbers]
        self.abandoned += len(self._queue) - len(kept)
        self._queue[:] = kept

    def _die(self, place: int) -> None:
        number, method, arguments = self._queue[place]
        self.lost += 1
        if self._lots.random() < 0.5:
            getattr(self._booths[0], method)(*arguments)
        if self.again is not None:
            try:
                self.again(number)
            except Exception:
                del self._queue[place]
                raise


class Slow(nn.Module):
    """Class 1 where w.x > 1, w = (1, 1, 1, 1) / 2, after a rest."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        side = x.flatten(1).sum(1) / 2 - 1
        return torch.stack((-side, side), dim=1)
