"""From the settings of ``deepzero-apps train`` to the gradient that it asks for."""

__all__ = ["gradient_for"]

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from deepzero_apps.cli.train import TrainSettings
    from deepzero_apps.vision import Splits
    from deepzero_apps.vision.training import Recipe
    from deepzero_apps.zeroth_order.gradients import WeightGradient
    from deepzero_apps.zeroth_order.oracle import Meter

_SCORE_DIRECTIONS = {"zo-grasp": 192, "energy": 8}
"""Directions of the layer scores: DeepZero's number in all; ours for each layer."""


def gradient_for(
    settings: "TrainSettings",
    network: "nn.Module",
    splits: "Splits",
    recipe: "Recipe",
    *,
    meter: "Meter",
    epoch: int,
) -> "WeightGradient":
    """Builds the gradient of a run.

    Args:
        settings: The run's settings.
        network: The network.
        splits: Its images; the scores of a sparse gradient are taken on the training images.
        recipe: How it will be trained.
        meter: Charged with the scores.
        epoch: The number of steps of an epoch.

    Returns:
        The gradient.

    Raises:
        BudgetExhausted: If the meter does not cover the scores.
    """
    import torch

    from deepzero_apps.vision.supports import Sparsity, support_schedule
    from deepzero_apps.zeroth_order.activations import Activations
    from deepzero_apps.zeroth_order.engines import Fastest
    from deepzero_apps.zeroth_order.gradients import Coordinates, FirstOrder
    from deepzero_apps.zeroth_order.stale import Remembered

    precision = torch.bfloat16 if settings.precision == "bfloat16" else None
    if settings.estimator == "rge":
        return _randomized(settings, network)
    if settings.estimator == "outputs":
        return Activations(
            mu=settings.mu,
            mu_outputs=settings.mu_outputs,
            share=1 - settings.sparsity,
            seed=settings.seed,
            precision=precision,
        )
    sparsity = Sparsity(
        settings.sparsity,
        allocation=settings.allocation,
        interval=settings.interval * (epoch if settings.interval_unit == "epochs" else 1),
        order=settings.order,
        q=_SCORE_DIRECTIONS.get(settings.allocation, 1),
    )
    schedule = support_schedule(
        network, splits.train, sparsity, recipe, mu=settings.mu, meter=meter
    )
    plain: WeightGradient = FirstOrder(schedule)
    if settings.estimator == "cge":
        plain = Coordinates(
            mu=settings.mu,
            schedule=schedule,
            central=settings.central,
            engine=Fastest(precision=precision),
        )
    return Remembered(plain, settings.stale_decay) if settings.stale_decay else plain


def _randomized(settings: "TrainSettings", network: "nn.Module") -> "WeightGradient":
    from deepzero_apps.zeroth_order.directions import Directions, Gaussian, Rademacher, Sphere
    from deepzero_apps.zeroth_order.gradients import Randomized
    from deepzero_apps.zeroth_order.stacked import StackedRandomized
    from deepzero_apps.zeroth_order.state import Weights

    laws: dict[str, Directions] = {
        "gaussian": Gaussian(),
        "sphere": Sphere(),
        "rademacher": Rademacher(),
    }
    return StackedRandomized(
        Randomized(
            mu=settings.mu,
            q=settings.q if settings.q is not None else Weights(network).total,
            directions=laws[settings.directions],
            central=settings.central,
            seed=settings.seed,
        )
    )
