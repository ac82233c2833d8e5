r"""Gradients of a network's weights, written to ``.grad``: by autograd, coordinates or directions.

The loss is a network on a batch followed by a head (`deepzero_apps.zeroth_order.differences`). All
three kinds have one signature, so that a training run chooses between them by an object:

============== ===================================== =============================
gradient       queries a step                        estimate
============== ===================================== =============================
`FirstOrder`   1 (forward and backward)              exact; needs autograd
`Coordinates`  k + 1 forward, 2 k + 1 central        CGE on k weights, `estimators` (1)
`Randomized`   q + 1 forward, 2 q + 1 central        RGE, `estimators` (2)
============== ===================================== =============================

The odd query of the central estimates is the reported loss. Two more have modules of their own:
`deepzero_apps.zeroth_order.activations.Activations` moves layer outputs where they are fewer than
weights, `deepzero_apps.zeroth_order.stale.Remembered` keeps the slopes that a sparse estimate
leaves out.
"""

__all__ = [
    "Coordinates",
    "FirstOrder",
    "Randomized",
    "WeightGradient",
    "network_loss",
    "read_gradient",
    "write_gradient",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.differences import Engine, Evaluation, Head
from deepzero_apps.zeroth_order.directions import Directions, Gaussian
from deepzero_apps.zeroth_order.engines import DifferencePropagation, Fastest
from deepzero_apps.zeroth_order.estimators import Loss
from deepzero_apps.zeroth_order.pieces import all_at_once
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import Schedule
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Observation


class WeightGradient(Protocol):
    """Estimates the gradient of ``head(network(inputs))``, averaged over samples."""

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        ...


@dataclass(frozen=True)
class FirstOrder:
    """Backpropagation, for comparison; the head must be differentiable.

    Args:
        schedule: Which entries of the gradient are kept at a step; all by default.
    """

    schedule: Schedule | None = None

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        with torch.enable_grad():
            loss = head(network(inputs)[None])[0].mean()
            loss.backward()
        support = self.schedule.at(step) if self.schedule else None
        if support is not None:
            _keep_only(network, support)
        redrawn = self.schedule is not None and self.schedule.redrawn(step)
        return Observation(float(loss.detach()), support, redrawn=redrawn)


@dataclass(frozen=True)
class Coordinates:
    """Coordinate-wise estimates (CGE), dense or sparse.

    Args:
        mu: The step, in the units of the weights.
        schedule: Which coordinates are moved at a step; all by default.
        central: Whether to take differences on both sides.
        engine: How loss differences are evaluated.

    Raises:
        ValueError: If ``mu`` is not positive.
    """

    mu: float
    schedule: Schedule | None = None
    central: bool = False
    engine: Engine = field(default_factory=Fastest)

    def __post_init__(self) -> None:
        _check_positive(mu=self.mu)

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        return all_at_once(self.begin(network, inputs, head, step=step))

    def begin(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> "_CoordinateWork":
        """Makes the base pass; a piece is a pass of moves of one parameter."""
        support = self.schedule.at(step) if self.schedule else None
        redrawn = self.schedule is not None and self.schedule.redrawn(step)
        evaluation = self.engine.prepare(network, inputs, head)
        return _CoordinateWork(self, Weights(network), evaluation, support, redrawn=redrawn)

    def checked(self, network: nn.Module) -> Mapping[str, int]:
        """Tells what the engine's checks have found; see `Checking`."""
        engine = self.engine
        return engine.checked(network) if isinstance(engine, DifferencePropagation) else {}

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Takes up what they found elsewhere; see `Checking`."""
        if isinstance(self.engine, DifferencePropagation):
            self.engine.believe(network, checked)


class _CoordinateWork:
    """Loss differences of single moves; see `Work`."""

    def __init__(
        self,
        plain: Coordinates,
        weights: Weights,
        evaluation: Evaluation,
        support: Tensor | None,
        *,
        redrawn: bool,
    ) -> None:
        self._plain, self._weights, self._evaluation = plain, weights, evaluation
        self._support, self._redrawn = support, redrawn
        self._moved = support if support is not None else torch.arange(weights.total)
        passes = evaluation.passes(self._moved)
        self._places = [places for _, places in passes]
        self.kinds = [parameter for parameter, _ in passes]
        self.lengths = [len(places) for places in self._places]

    def measure(self, pieces: Sequence[int]) -> Tensor:
        """Evaluates the moves of pieces."""
        places = torch.cat([self._places[piece] for piece in pieces])
        return self._evaluation.differences(
            self._moved[places], mu=self._plain.mu, central=self._plain.central
        )

    def finish(self, measured: Tensor) -> Observation:
        """Writes the slopes."""
        slopes = measured / (2 * self._plain.mu if self._plain.central else self._plain.mu)
        moved = self._moved[torch.cat(self._places)].to(slopes.device)
        gradient = slopes.new_zeros(self._weights.total)
        write_gradient(self._weights, gradient.index_copy_(0, moved, slopes))
        loss = float(self._evaluation.base)
        return Observation(loss, self._support, redrawn=self._redrawn)


@dataclass(frozen=True)
class Randomized:
    """Randomized estimates (RGE) along directions in the space of all weights.

    Args:
        mu: The smoothing radius, in the units of the weights.
        q: The number of directions a step.
        directions: Their law.
        central: Whether to take differences on both sides.
        seed: The seed of the directions.
        engine: How loss differences are evaluated.

    Raises:
        ValueError: If ``mu`` or ``q`` is not positive.
    """

    mu: float
    q: int
    directions: Directions = field(default_factory=Gaussian)
    central: bool = False
    seed: int = 0
    engine: Engine = field(default_factory=Fastest)

    def __post_init__(self) -> None:
        _check_positive(mu=self.mu, q=self.q)

    def factor(self, total: int) -> float:
        """By what the sum of differences times directions becomes the gradient of ``total`` weights."""
        width = 2 * self.mu if self.central else self.mu
        return self.directions.scale(total) / (width * self.q)

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        return all_at_once(self.begin(network, inputs, head, step=step))

    def begin(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> "_DirectionWork":
        """Makes the base pass; a piece is a direction."""
        evaluation = self.engine.prepare(network, inputs, head)
        return _DirectionWork(self, Weights(network), evaluation, step=step)

    def checked(self, network: nn.Module) -> Mapping[str, int]:  # noqa: ARG002 - nothing is
        """Tells nothing: whole networks are evaluated, as they are."""
        return {}

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Has nothing to take up."""

    def direction(self, step: int, number: int, *, like: Tensor) -> Tensor:
        """Draws one direction of a step, of the shape, type and device of ``like``."""
        generator = generator_for(self.seed, "direction", step, number, device=like.device)
        return self.directions.sample(like, generator=generator)


class _DirectionWork:
    """Loss differences along directions; see `Work`."""

    def __init__(
        self, plain: Randomized, weights: Weights, evaluation: Evaluation, *, step: int
    ) -> None:
        self._plain, self._weights, self._evaluation = plain, weights, evaluation
        self._step = step
        self._like = weights.parameters[0].detach().new_empty(weights.total)
        self.kinds = [0] * plain.q
        self.lengths = [1] * plain.q

    def measure(self, pieces: Sequence[int]) -> Tensor:
        """Evaluates the network along directions."""
        plain = self._plain
        changes = [
            self._evaluation.displaced(plain.mu * self._direction(i), central=plain.central)
            for i in pieces
        ]
        return torch.stack(changes)

    def finish(self, measured: Tensor) -> Observation:
        """Writes the mean over directions."""
        gradient = torch.zeros_like(self._like, dtype=torch.float64)
        for i, change in enumerate(measured):
            gradient += change * self._direction(i)
        write_gradient(self._weights, gradient * self._plain.factor(self._weights.total))
        return Observation(float(self._evaluation.base))

    def _direction(self, number: int) -> Tensor:
        return self._plain.direction(self._step, number, like=self._like)


def network_loss(evaluation: Evaluation, weights: Weights) -> Loss:
    """Turns an evaluation into a loss of flat weights, for the scores of ``sparsity``.

    Args:
        evaluation: A network on a batch.
        weights: The same network's weights.

    Returns:
        Points ``(k, d)`` to losses ``(k,)``, float64, relative to the loss at the weights.
    """
    theta = torch.cat([p.detach().flatten() for p in weights.parameters])

    def loss(points: Tensor) -> Tensor:
        return torch.stack([_relative(evaluation, point - theta) for point in points])

    return loss


def _relative(evaluation: Evaluation, step: Tensor) -> Tensor:
    """The loss relative to that at the weights, which costs nothing at the weights."""
    if not step.any():
        return step.new_zeros((), dtype=torch.float64)
    return evaluation.displaced(step)


def write_gradient(weights: Weights, gradient: Tensor) -> None:
    """Writes a flat gradient, of shape ``(total,)``, to ``.grad`` of each parameter."""
    for p, part in zip(weights.parameters, gradient.split(list(weights.sizes)), strict=True):
        p.grad = part.view(p.shape).to(p.dtype)


def read_gradient(weights: Weights) -> Tensor:
    """Reads ``.grad`` of each parameter into a flat gradient, zero where there is none."""
    slopes = (torch.zeros_like(p) if p.grad is None else p.grad for p in weights.parameters)
    return torch.cat([part.flatten() for part in slopes])


def _keep_only(network: nn.Module, support: Tensor) -> None:
    weights = Weights(network)
    full = read_gradient(weights)
    support = support.to(full.device)
    write_gradient(weights, torch.zeros_like(full).index_copy_(0, support, full[support]))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
