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

import numpy as np
import torch
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
        before, after = self._taken(draw), self._taken(draw + 1)
        parts, start = [], 0
        for layer, size in enumerate(self.plain.sizes):
            generator = generator_for(self.plain.seed, "cycle", layer)
            order = torch.randperm(size, generator=generator)
            places = torch.arange(before[layer], after[layer]) % max(size, 1)
            parts.append(order[places].sort().values + start)
            start += size
        return torch.cat(parts)

    def redrawn(self, step: int) -> bool:
        """Tells whether a step is the first of a draw."""
        return self.plain.redrawn(step)

    def _taken(self, draws: int) -> list[int]:
        """The number of coordinates of each layer in the first draws."""
        periods, rest = divmod(draws, _PERIOD)
        ends = np.round(np.cumsum(self.plain.shares), 9)
        ends[-1] = self.total
        starts = np.arange(_PERIOD) * _STRIDE % _PERIOD / _PERIOD
        counts = np.floor(ends + starts[:, None]).astype(int)
        taken = periods * counts.sum(0) + counts[:rest].sum(0)
        return [int(count) for count in np.diff(taken, prepend=0)]
