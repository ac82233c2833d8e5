"""Which coordinates a classifier's sparse gradients move: how many, where, and when others.

The layers' shares are settled once, at the starting weights and on the run's first batch
(`deepzero_apps.zeroth_order.sparsity` says how); the coordinates are drawn all along the run.
"""

__all__ = ["ALLOCATIONS", "Sparsity", "support_schedule"]

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deepzero_apps.vision.images import Images
from deepzero_apps.vision.training import Recipe, training_batch
from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.engines import Fastest
from deepzero_apps.zeroth_order.gradients import network_loss
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import (
    Schedule,
    SupportSchedule,
    counts_by_score,
    grasp,
    layer_energies,
    shares_by_energy,
    shares_by_size,
    zo_grasp,
)
from deepzero_apps.zeroth_order.state import Weights

Allocation = Literal["uniform", "energy", "zo-grasp", "grasp"]

ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "energy", "zo-grasp", "grasp")
"""How the coordinates of a sparse gradient are split over the layers."""


@dataclass(frozen=True)
class Sparsity:
    """Which share of the coordinates a gradient leaves out, and how the others are split.

    Args:
        share: The share of weights that a step does not estimate, in [0, 1).
        allocation: One of `ALLOCATIONS`: by layer size, by layer energy (ours), by ZO-GraSP
            scores (DeepZero), by scores from autograd (for comparison).
        interval: The number of steps between draws.
        order: Whether draws are random, or walk through all coordinates in a cycle.
        q: The directions that the scores are estimated from: a layer for ``energy``, in all for
            ``zo-grasp``.

    Raises:
        ValueError: If a number is out of its range, or ``allocation`` is unknown.
    """

    share: float
    allocation: Allocation = "uniform"
    interval: int = 1
    order: Literal["random", "cyclic"] = "random"
    q: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.share}")
        if self.allocation not in ALLOCATIONS:
            raise ValueError(
                f"allocation must be one of {', '.join(ALLOCATIONS)}, got {self.allocation!r}"
            )
        if self.order not in ("random", "cyclic"):
            raise ValueError(f"order must be random or cyclic, got {self.order!r}")
        for name in ("interval", "q"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def support_schedule(
    network: nn.Module,
    train: Images,
    sparsity: Sparsity,
    recipe: Recipe,
    *,
    mu: float,
    meter: Meter | None = None,
) -> Schedule | None:
    """Splits the coordinates of sparse gradients over the layers, at the starting weights.

    The scores are taken on the run's first batch, with a copy of the network.

    Args:
        network: The network.
        train: The training images, on the network's device.
        sparsity: How many coordinates, and how they are split.
        recipe: How the network will be trained.
        mu: The step of the scores' finite differences, in the units of the weights.
        meter: Charged with 0 queries for ``uniform``, layers * q + 1 for ``energy``, 2 (q + 1)
            for ``zo-grasp`` and 2 for ``grasp`` (a backward pass through a backward pass).

    Returns:
        The schedule; None if the gradient is dense.

    Raises:
        BudgetExhausted: If the meter does not cover the scores.
    """
    if sparsity.share == 0:
        return None
    meter = meter if meter is not None else Meter()
    sizes = Weights(network).sizes
    kept = max(1, round((1 - sparsity.share) * sum(sizes)))
    if sparsity.allocation == "uniform":
        shares = shares_by_size(sizes, kept)
    else:
        batch = training_batch(train, recipe, 0)
        scored = deepcopy(network).train()
        shares = _scored_shares(scored, batch, sparsity, kept=kept, mu=mu, meter=meter)
    drawn = SupportSchedule(tuple(shares), sizes, sparsity.interval, recipe.seed)
    return CyclicSchedule(drawn) if sparsity.order == "cyclic" else drawn


def _scored_shares(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    sparsity: Sparsity,
    *,
    kept: int,
    mu: float,
    meter: Meter,
) -> list[float]:
    inputs, head = batch[0], CrossEntropy(batch[1])
    weights = Weights(network)
    if sparsity.allocation == "grasp":
        meter.charge(2)
        loss = head(network(inputs)[None])[0].mean()
        return [*map(float, counts_by_score(grasp(loss, weights.parameters), weights.sizes, kept))]

    q, layers = sparsity.q, len(weights.sizes)
    energy = sparsity.allocation == "energy"
    meter.charge(layers * q + 1 if energy else 2 * (q + 1))
    objective = network_loss(Fastest().prepare(network, inputs, head), weights)
    theta = torch.cat([p.detach().flatten() for p in weights.parameters])
    generator = generator_for(0, "scores", device=theta.device)
    if energy:
        energies = layer_energies(objective, theta, weights.sizes, mu=mu, q=q, generator=generator)
        return shares_by_energy(energies, weights.sizes, kept)
    scores = zo_grasp(objective, theta, mu=mu, q=q, generator=generator)
    return [*map(float, counts_by_score(scores, weights.sizes, kept))]
