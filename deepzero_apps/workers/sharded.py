"""A gradient estimate whose pieces are measured by workers.

Each worker holds the network, the batches and the same estimate. In every step the weights, the
buffers and the state of the random generators travel once to each machine; then step and piece numbers go out,
and loss differences come back. The gradient is assembled here, in the order of the pieces, so it is
the same to the bit whatever the number of workers, and whichever of them died: a piece is a pass that is the same
wherever it is made (on processors of one kind).

Pieces are grouped into calls by what they were measured to cost, each kind (parameter) by
itself, the heaviest calls first. Grouping moves no bits.
"""

__all__ = ["Measurer", "Sharded"]

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from deepzero_apps.workers.pool import Pool, Shared
from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.pieces import Divisible, Work
from deepzero_apps.zeroth_order.state import slots
from deepzero_apps.zeroth_order.training import Observation

Batches = Callable[[int], tuple[Tensor, Head]]
"""A step to its batch: inputs ``(b, ...)`` and the rest of the loss."""

_MEMORY = 0.8
"""How much of a measured cost is kept when it is measured again."""


class Measurer:
    """What a worker holds: it measures pieces of an estimate at weights that it is sent.

    Args:
        network: The network; its weights are overwritten.
        gradient: The estimate.
        batches: The batch of each step, equal to that of the process that asks.
    """

    def __init__(self, network: nn.Module, gradient: Divisible, batches: Batches) -> None:
        self._network, self._gradient, self._batches = network, gradient, batches
        self._begun: tuple[int, Work] | None = None

    def begin(self, step: int, state: Shared) -> None:
        """Makes the base pass of a step, for whatever will be asked of it.

        Args:
            step: The training step.
            state: As for `measure`.
        """
        self._work(step, state)

    def measure(
        self, step: int, state: Shared, pieces: Sequence[int]
    ) -> tuple[Tensor, dict[int, float]]:
        """Measures pieces.

        Args:
            step: The training step.
            state: What `snapshot` took before it, and what was ``checked`` of the network by then.
            pieces: Their numbers, ascending.

        Returns:
            Their numbers one after the other, float64 on the CPU, and the seconds a piece of each
            kind took.
        """
        work = self._work(step, state)
        measured, seconds = [], {}
        for kind, group in groupby(pieces, key=work.kinds.__getitem__):
            numbers = list(group)
            started = time.perf_counter()
            measured.append(work.measure(numbers).cpu())
            seconds[kind] = (time.perf_counter() - started) / len(numbers)
        return torch.cat(measured), seconds

    def _work(self, step: int, state: Shared) -> Work:
        if self._begun is None or self._begun[0] != state.number:
            (inputs, head), taken = self._batches(step), state.value()
            restore(self._network, taken, inputs.device)
            # not checked again at other weights, where other pieces might come out
            self._gradient.believe(self._network, taken["checked"])
            work = self._gradient.begin(self._network, inputs, head, step=step)
            self._begun = state.number, work
        return self._begun[1]


@dataclass(frozen=True)
class Sharded:
    """A gradient that workers measure; see the module's docstring.

    Args:
        plain: The estimate.
        pool: Workers that hold a `Measurer` of it.
        calls: Into how many calls a worker's share of a step is cut: more even out unequal speeds
            and lose less when a worker dies, and cost about a millisecond each.

    Raises:
        TypeError: If the estimate does not come in pieces.
        ValueError: If ``calls`` is not positive.
    """

    plain: Divisible
    pool: Pool
    calls: int = 4
    _costs: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.plain, Divisible):
            raise TypeError(
                "plain must be an estimate that comes in pieces, such as Coordinates or "
                f"Randomized, got {type(self.plain).__name__}"
            )
        if self.calls < 1:
            raise ValueError(f"calls must be at least 1, got {self.calls}")

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        state = self._shared(network, inputs.device)
        begun = [self.pool.put("begin", step, state) for _ in range(self.pool.count)]
        try:  # all base passes side by side
            work = self.plain.begin(network, inputs, head, step=step)
        finally:
            self.pool.abandon(begun)
        groups = self._groups(work.kinds)
        measured: list[Tensor | None] = [None] * len(work.kinds)
        asked = self.pool.ask("measure", [(step, state, group) for group in groups])
        for place, (numbers, seconds) in asked:
            lengths = [work.lengths[piece] for piece in groups[place]]
            for piece, part in zip(groups[place], numbers.split(lengths), strict=True):
                measured[piece] = part
            self._learn(seconds)
        parts = [part for part in measured if part is not None]
        return work.finish(torch.cat(parts).to(inputs.device))

    def _shared(self, network: nn.Module, device: torch.device) -> Shared:
        """Shares what a step begins with; what it finds out, workers find at the same weights."""
        taken = snapshot(network, device)
        return self.pool.share({**taken, "checked": self.plain.checked(network)})

    def _groups(self, kinds: Sequence[int]) -> list[list[int]]:
        """Pieces of about equal cost in all: the longest first, each to the lightest group."""
        known = sum(self._costs.values()) / len(self._costs) if self._costs else 1.0
        costs = [self._costs.get(kind, known) for kind in kinds]
        count = min(len(kinds), self.calls * self.pool.count)
        groups: list[list[int]] = [[] for _ in range(count)]
        heap = [(0.0, place) for place in range(count)]
        for piece in sorted(range(len(kinds)), key=lambda i: -costs[i]):
            weight, place = heapq.heappop(heap)
            groups[place].append(piece)
            heapq.heappush(heap, (weight + costs[piece], place))
        return [sorted(group) for group in groups if group]

    def _learn(self, seconds: Mapping[int, float]) -> None:
        for kind, fresh in seconds.items():
            old = self._costs.get(kind, math.nan)
            mixed = _MEMORY * old + (1 - _MEMORY) * fresh
            self._costs[kind] = fresh if math.isnan(mixed) else mixed


def snapshot(network: nn.Module, device: torch.device) -> dict[str, Any]:
    """Takes what a pass through a network depends on, besides its structure.

    Args:
        network: The network.
        device: Where it runs.

    Returns:
        Copies of weights and buffers, modes, and the states of the random generators.
    """
    state: dict[str, Any] = {
        "weights": [p.detach().cpu() for p in network.parameters()],
        "buffers": [module._buffers[name] for module, name in slots(network)],
        "modes": [module.training for module in network.modules()],
        "generators": [torch.get_rng_state()],
    }
    state["buffers"] = [None if b is None else b.cpu() for b in state["buffers"]]
    if device.type == "cuda":
        state["generators"].append(torch.cuda.get_rng_state(device))
    return state


@torch.no_grad()
def restore(network: nn.Module, state: Mapping[str, Any], device: torch.device) -> None:
    """Puts a network, and the process's random generators, where `snapshot` found them.

    Args:
        network: A network of the same structure.
        state: What was taken.
        device: Where the network runs.
    """
    for p, value in zip(network.parameters(), state["weights"], strict=True):
        p.copy_(value)
    for (module, name), value in zip(slots(network), state["buffers"], strict=True):
        buffer = module._buffers[name]
        if buffer is not None:
            buffer.copy_(value)
    for module, mode in zip(network.modules(), state["modes"], strict=True):
        module.training = mode
    torch.set_rng_state(state["generators"][0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["generators"][1], device)
