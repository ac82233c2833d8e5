"""Tiny simulators whose every answer is known, and what a test of correctors needs around them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.correctors import Corrector, Free, build
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.unrolled import Windows

DT = 0.5


class Stencil:
    """u'(k) = p * sum_o w_o u(k - o) + a + DT f(k), periodic; the native part a is halved.

    An offset o thus says where a change goes. ``twin`` is the same in torch.
    """

    accepts_forcing = True

    def __init__(self, shape: tuple[int, ...], weights: Mapping[tuple[int, ...], float]) -> None:
        self.shape = shape
        self.weights = weights
        self.reach: float | None = max(max(map(abs, o)) for o in weights)
        self.calls = 0

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        self.calls += 1
        given = (torch.from_numpy(x) for x in (fields, parameters))
        extra = [None if x is None else torch.from_numpy(x) for x in (native, forcing)]
        after, kept = self.twin(*given, extra[0], forcing=extra[1])
        return after.numpy(), None if kept is None else kept.numpy()

    def twin(
        self,
        fields: Tensor,
        parameters: Tensor,
        native: Tensor | None = None,
        *,
        forcing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        axes = tuple(range(2, fields.ndim))
        moved = [w * fields.roll(o, axes) for o, w in self.weights.items()]
        shape = (-1, *(1,) * (fields.ndim - 1))
        after = parameters.view(shape) * torch.stack(moved).sum(0)
        if native is not None:
            after, native = after + native.view(shape), native / 2
        return (after if forcing is None else after + DT * forcing), native


class Doubling:
    """Doubles every number; takes no forcing and answers infinity where it started at ``bad``."""

    shape = (1, 2, 3)
    reach = 0
    accepts_forcing = False

    def __init__(self, bad: float = math.nan) -> None:
        self.bad = bad

    def step(
        self,
        fields: Array,
        parameters: Array,  # noqa: ARG002
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        assert forcing is None
        return np.where(fields == self.bad, np.inf, 2 * fields), native


def corrector_for(
    shape: tuple[int, ...],
    *,
    width: int = 2,
    spread: float = 0.3,
    scale: float = 0.7,
    movable: Tensor | None = None,
) -> Corrector:
    """A small network of float64 whose last layer is drawn too, with a standard deviation."""
    rows = shape[1] if len(shape) == 3 else 1
    free = Free(torch.ones(shape) if movable is None else movable)
    network = build("cnn", shape[0] + 1, shape[0], rows=rows, periodic=True, width=width)
    with torch.no_grad():
        for p in network[-1].parameters():
            p.normal_(0, spread)
    return Corrector(network, free, field_scale=1.5, parameters=(0.5, 4.0), scale=scale)


def windows_for(
    simulator: Simulator,
    steps: int,
    *,
    parameters: Array | None = None,
    native: NDArray[Any] | None = None,
    fields: Array | None = None,
) -> Windows:
    """Windows between random states; three parameters by default."""
    rng = np.random.default_rng(3)
    parameters = np.array([0.6, 0.8, 1.1]) if parameters is None else parameters
    b = len(parameters)
    fields = rng.normal(size=(b, *simulator.shape)) if fields is None else fields
    wanted = rng.normal(size=(b, steps, *simulator.shape))
    tensors = (torch.from_numpy(x) for x in (fields, parameters, wanted))
    return Windows(*tensors, native=native)


def gradient_of(corrector: Corrector) -> Tensor:
    """The network's ``.grad``, flat, and forgets it."""
    found = [p.grad for p in corrector.network.parameters()]
    corrector.network.zero_grad()
    return torch.cat([g.flatten() for g in found if g is not None])
