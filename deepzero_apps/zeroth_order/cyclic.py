r"""Sparse supports that walk through all coordinates in a fixed cycle.

Layer l of :math:`d_l` weights has a random order, fixed for the run. Each draw takes the next
coordinates of that order, :math:`k_l` on average, and starts again at its end. So a coordinate returns
after :math:`d_l / k_l` draws, neither earlier nor (up to one draw) later, where draws at random
leave :math:`(1 - k_l / d_l)^n` of them unmet for n draws.

How many coordinates a layer gets in draw n is systematic sampling, as in `SupportSchedule`, with
starts :math:`s_n` that run evenly through [0, 1) instead of being drawn:
:math:`\lfloor F_l + s_n \rfloor - \lfloor F_{l-1} + s_n \rfloor`, F the running sum of shares. Then
the number taken before draw n is a sum over one period of starts, and a draw needs no memory.

References:
    | CoCD (2026), block-cyclic coordinate estimates with a decayed buffer
    | https://arxiv.org/abs/2605.14373
"""

__all__ = ["CyclicSchedule"]

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import SupportSchedule

_PERIOD = 4096
_STRIDE = 2531
"""Odd, near .618 of the period: its multiples, modulo the period, are all starts, evenly mixed."""


@dataclass(frozen=True)
class CyclicSchedule:
    """The layers' shares of a schedule, in a fixed cycle: a pure function of seed and step.

    Args:
        plain: Whose shares, sizes, interval and seed are used.
    """

    plain: SupportSchedule

    @property
    def total(self) -> int:
        """The number of coordinates of every draw."""
        return self.plain.total

    def at(self, step: int) -> Tensor:
        """Returns the sorted flat coordinates of a step."""
        draw = step // self.plain.interval
        parts, start = [], 0
        for order, before, after in zip(
            self._orders, self._taken(draw), self._taken(draw + 1), strict=True
        ):
            places = torch.arange(before, after) % max(len(order), 1)
            parts.append(order[places].sort().values + start)
            start += len(order)
        return torch.cat(parts)

    def redrawn(self, step: int) -> bool:
        """Tells whether a step is the first of a draw."""
        return self.plain.redrawn(step)

    @cached_property
    def _orders(self) -> list[Tensor]:
        """The order of each layer's weights."""
        generators = (
            generator_for(self.plain.seed, "cycle", layer)
            for layer in range(len(self.plain.sizes))
        )
        return [
            torch.randperm(size, generator=generator)
            for size, generator in zip(self.plain.sizes, generators, strict=True)
        ]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The running sums of the layers' coordinates in each draw of a period."""
        ends = np.round(np.cumsum(self.plain.shares), 9)
        ends[-1] = self.total
        starts = np.arange(_PERIOD) * _STRIDE % _PERIOD / _PERIOD
        return np.floor(ends + starts[:, None]).astype(np.int64)

    def _taken(self, draws: int) -> list[int]:
        """The number of coordinates of each layer in the first draws."""
        periods, rest = divmod(draws, _PERIOD)
        taken = periods * self._ends.sum(0) + self._ends[:rest].sum(0)
        return [int(count) for count in np.diff(taken, prepend=0)]
