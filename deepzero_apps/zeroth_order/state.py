r"""What a pass through a network reads and moves: its weights, its buffers, the random generators.

A finite difference compares two passes, so everything except the one moved weight must be the
same for both. `Weights` moves entries of the vector :math:`\theta` of all trainable parameters
and puts the stored bits back (undoing a move by ``-= mu`` would leave rounding behind).
`Surroundings` remembers buffers and generators, so that dropout draws the same mask again and
running statistics do not drift with every query.
"""

__all__ = ["Slot", "Surroundings", "Weights", "slots"]

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

Slot = tuple[nn.Module, str]
"""A module and the name of a buffer in it: a module may rebind the name to a new tensor."""


class Weights:
    r"""Flat addresses for the trainable parameters of a network.

    Coordinate :math:`i` of :math:`\theta` counts through the parameters that require a gradient,
    in the order of ``named_parameters()``, each in row-major order of its *shape*. Memory layout
    plays no part: entries are read and written by their multi-index, so parameters that are
    transposed or in ``channels_last`` order are moved rightly.

    Args:
        network: The network. Its parameters are referred to, not copied.

    Attributes:
        names: The parameters' names.
        parameters: The parameters themselves.
        sizes: Their numbers of entries.
        total: The length of theta.

    Raises:
        ValueError: If no parameter requires a gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                "network must have trainable parameters, got none; "
                "set requires_grad on those to be moved"
            )
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.parameters: tuple[nn.Parameter, ...] = tuple(p for _, p in named)
        self.sizes: tuple[int, ...] = tuple(p.numel() for p in self.parameters)
        self.total: int = sum(self.sizes)
        self._ends = list(accumulate(self.sizes))

    def locate(self, coordinates: Tensor) -> dict[int, tuple[list[int], list[int]]]:
        """Groups flat coordinates by the parameter that holds them.

        Args:
            coordinates: Indices into theta of shape ``(n,)``, int64, in any order, repeats
                allowed.

        Returns:
            For every parameter concerned, by its number: the positions in ``coordinates`` and,
            at each, the offset inside the parameter.

        Raises:
            TypeError: If ``coordinates`` is no int64 tensor.
            ValueError: If it is no vector or holds an index outside ``[0, total)``.
        """
        self._check(coordinates)
        groups: defaultdict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for position, coordinate in enumerate(coordinates.tolist()):
            index = bisect_right(self._ends, coordinate)
            positions, offsets = groups[index]
            positions.append(position)
            offsets.append(coordinate - self._ends[index] + self.sizes[index])
        return dict(sorted(groups.items()))

    def entry(self, index: int, offset: int) -> Tensor:
        """Views one entry, whatever the parameter's memory layout.

        Args:
            index: The parameter's number.
            offset: The entry's row-major offset inside it.

        Returns:
            A view of shape ``()`` that writes through to the parameter.
        """
        place = []
        for size in reversed(self.parameters[index].shape):
            offset, i = divmod(offset, size)
            place.append(i)
        # `.data` carries a version counter of its own: a graph that the caller recorded earlier
        # stays valid, which is right, because the bits will be the same again.
        return self.parameters[index].data[tuple(reversed(place))]

    @contextmanager
    def moved(self, index: int, offset: int, mu: float) -> Iterator[None]:
        """Moves one entry by ``mu`` inside a ``with`` block.

        Args:
            index: The parameter's number.
            offset: The entry's row-major offset inside it.
            mu: The step, in the units of the weights.
        """
        entry = self.entry(index, offset)
        stored = entry.clone()
        try:
            entry.add_(mu)
            yield
        finally:
            entry.copy_(stored)

    @contextmanager
    def displaced(self, step: Tensor) -> Iterator[None]:
        """Moves all entries inside a ``with`` block.

        Args:
            step: What is added to theta, of shape ``(total,)``.
        """
        stored = [p.data.clone() for p in self.parameters]
        try:
            for p, piece in zip(self.parameters, step.split(self.sizes), strict=True):
                p.data.add_(piece.view(p.shape))
            yield
        finally:
            for p, value in zip(self.parameters, stored, strict=True):
                p.data.copy_(value)

    def _check(self, coordinates: Tensor) -> None:
        kind = getattr(coordinates, "dtype", type(coordinates).__name__)
        if kind != torch.int64:
            raise TypeError(f"coordinates must be an int64 tensor, got {kind}")
        if coordinates.ndim != 1:
            shape = tuple(coordinates.shape)
            raise ValueError(f"coordinates must be a vector of shape (n,), got shape {shape}")
        outside = coordinates[(coordinates < 0) | (coordinates >= self.total)]
        if len(outside):
            raise ValueError(
                f"coordinates must be in [0, {self.total}), got {int(outside[0])}; "
                "the network has as many trainable weights"
            )


def slots(network: nn.Module) -> list[Slot]:
    """Lists the buffers of a network and of all modules in it.

    Args:
        network: The network.

    Returns:
        Each buffer as its module and name; empty (``None``) ones are left out.
    """
    modules = network.modules()
    return [(m, name) for m in modules for name, b in m._buffers.items() if b is not None]


class Surroundings:
    """Buffers and random generators as they were at one moment.

    Args:
        buffers: The buffers to remember.
        device: The device whose default generator counts, besides the CPU's.
    """

    def __init__(self, buffers: Iterable[Slot], device: torch.device) -> None:
        self._device = device
        self._buffers = [(m, name, m._buffers[name]) for m, name in buffers]
        self._stored = [b.clone() for _, _, b in self._buffers if b is not None]
        self._states = _generator_states(device)

    def restore(self) -> None:
        """Puts buffers and generators back, bit for bit."""
        for (module, name, buffer), value in zip(self._buffers, self._stored, strict=True):
            module._buffers[name] = buffer
            if buffer is not None:
                buffer.data.copy_(value)
        torch.set_rng_state(self._states[0])
        if len(self._states) > 1:
            torch.cuda.set_rng_state(self._states[1], self._device)

    def moved(self) -> bool:
        """Tells whether a buffer or a generator differs from what was remembered."""
        states = zip(self._states, _generator_states(self._device), strict=True)
        if not all(torch.equal(then, now) for then, now in states):
            return True
        now = [m._buffers[name] for m, name, _ in self._buffers]
        return not all(
            b is not None and _same(b, value) for b, value in zip(now, self._stored, strict=True)
        )


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=a.is_floating_point())


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
