r"""`zo-weights`, DeepZero's way: the corrector's weights are moved, and only the loss is seen.

Solver, corrector and loop are one black box :math:`L(\theta)`, of which the core's
estimators ask values: a few coordinates (CGE, sparse, drawn anew at every step) or random directions
(RGE). The displaced correctors run side by side, in one network and one batch of the simulator.

References:
    | DeepZero (Chen et al., 2024), https://arxiv.org/abs/2310.02025
"""

__all__ = ["Coordinates", "Randomized", "weight_losses"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deepzero_apps.correction.unrolled import Loop, Objective, Windows
from deepzero_apps.zeroth_order.estimators import coordinate, randomized
from deepzero_apps.zeroth_order.gradients import write_gradient
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Observation


@dataclass(frozen=True)
class Coordinates:
    """`zo-weights` by CGE: a few weights moved one at a time, drawn anew.

    Args:
        mu: The step, in the units of the weights.
        schedule: Which weights are moved at a step.
    """

    mu: float
    schedule: SupportSchedule

    def __post_init__(self) -> None:
        _check_positive(mu=self.mu)

    def __call__(
        self, loop: Loop, objective: Objective, windows: Windows, *, step: int
    ) -> Observation:
        """Writes the estimate; it is zero outside of the coordinates drawn."""
        support = self.schedule.at(step)
        return _from_weights(
            loop, objective, windows, partial(coordinate, mu=self.mu, support=support)
        )

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return (self.schedule.total + 1) * steps


@dataclass(frozen=True)
class Randomized:
    """`zo-weights` by RGE: antithetic Gaussian directions in the space of all weights.

    Args:
        mu: The smoothing radius, in the units of the weights.
        q: The number of pairs.
        seed: The seed of the directions.
    """

    mu: float
    q: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive(mu=self.mu, q=self.q)

    def __call__(
        self, loop: Loop, objective: Objective, windows: Windows, *, step: int
    ) -> Observation:
        """Writes the estimate."""
        generator = generator_for(self.seed, "directions", step)
        return _from_weights(
            loop,
            objective,
            windows,
            partial(randomized, mu=self.mu, q=self.q, central=True, generator=generator),
        )

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return (2 * self.q + 1) * steps


def weight_losses(
    loop: Loop, objective: Objective, windows: Windows
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the network's weights, for any estimator of the core.

    Returns:
        Points ``(k, d)`` to losses ``(k,)``, float64; the k corrected simulations run side by
        side.
    """

    @torch.no_grad()
    def losses(points: Tensor) -> Tensor:
        k, b = len(points), len(windows.fields)

        def networks(features: Tensor) -> Tensor:
            side_by_side = features.unflatten(0, (k, b)).transpose(0, 1).flatten(1, 2)
            return loop.copies(side_by_side, points).flatten(0, 1)

        many = windows.repeated(k)
        trace = loop.run(many, networks=networks)
        by_point: Tensor = objective.losses(trace.states, many).unflatten(0, (k, b))
        return by_point.mean(1)

    return losses


def _from_weights(
    loop: Loop, objective: Objective, windows: Windows, estimate: Callable[..., Tensor]
) -> Observation:
    network = loop.corrector.network
    weights = Weights(network)
    theta = torch.cat([p.detach().flatten() for p in weights.parameters])
    losses = weight_losses(loop, objective, windows)
    base = losses(theta[None])[0]
    write_gradient(weights, estimate(losses, theta, base=base))
    return Observation(float(base))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
