r"""Training a classifier with any weight gradient: backpropagation, coordinates or directions.

The loss is cross-entropy, for logits :math:`z` of a sample with label :math:`y`

.. math::
    l = \log \sum_c e^{z_c} - z_y                                                  \tag{1}

taken in float64: its finite difference is divided by a small :math:`\mu`, and a float32 loss would be
most of the noise. Batch norm is in train mode while gradients are taken, in eval mode in `accuracy`.

**Queries.** One query is one evaluation of the network on one batch: k + 1 for a step of CGE on k
weights, q + 1 for one of RGE in q directions (2k + 1 and 2q + 1 if central), and for one of
`Activations` what its ``queries`` says. A step of backpropagation, one forward and one backward
pass, counts as 1.

**Learning rate.** At step t of T, after a linear warm-up of W steps,

.. math::
    \eta_t = \eta \min\left(\tfrac{t + 1}{W}, 1\right) \cdot
             \tfrac12 \left(1 + \cos \pi \tfrac{\max(t - W, 0)}{T - W}\right)                     \tag{2}

References:
    | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017), eq. (5)
    | https://arxiv.org/abs/1608.03983

    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024)
    | https://arxiv.org/abs/2310.02025
"""

__all__ = [
    "Recipe",
    "accuracy",
    "classifier_training",
    "labelled_batch",
    "queries_a_step",
    "training_batch",
]

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from deepzero_apps.vision.augmentation import augment
from deepzero_apps.vision.images import Images
from deepzero_apps.workers import Sharded
from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.checks import Checking, Checks
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    Randomized,
    WeightGradient,
)
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.stacked import StackedRandomized
from deepzero_apps.zeroth_order.stale import Remembered
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import (
    Companions,
    Observation,
    Stateful,
    Training,
    minibatch,
)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever its gradient.

    Args:
        steps: The number of steps.
        batch: The number of images a step.
        optimizer: SGD with momentum, or Adam.
        lr: The peak learning rate.
        momentum: Of SGD, in [0, 1).
        weight_decay: The pull to zero that is added to the gradient.
        warmup: The steps in which the learning rate rises, fewer than ``steps``.
        clip: The largest gradient norm; None for no limit.
        augment: Whether images are shifted by up to 4 pixels and mirrored.
        hold_unselected: Whether weights that a sparse gradient leaves out stay where they are.
        forget_at_redraw: Whether the optimizer forgets its momentum, and all else, whenever the
            coordinates of a sparse gradient are drawn anew.
        seed: The seed of batches and augmentation.

    Raises:
        ValueError: If a number is out of its range, or ``optimizer`` is unknown.
    """

    steps: int
    batch: int = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: int = 0
    clip: float | None = None
    augment: bool = False
    hold_unselected: bool = False
    forget_at_redraw: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {self.optimizer!r}")
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch": (self.batch >= 1, "at least 1 image"),
            "lr": (0 < self.lr < math.inf, "positive and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            "warmup": (0 <= self.warmup < self.steps, f"in [0, steps), steps being {self.steps}"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (holds, expectation) in checks.items():
            if not holds:
                raise ValueError(f"{name} must be {expectation}, got {getattr(self, name)}")


@torch.no_grad()
def accuracy(network: nn.Module, images: Images, *, rows: int = 500) -> float:
    """Measures which share of images a network classifies rightly, in eval mode.

    Args:
        network: Images ``(n, c, h, w)`` to logits ``(n, classes)``; its modes are put back.
        images: The images, on the network's device.
        rows: The number of images a batch.

    Returns:
        The accuracy in percent.

    Raises:
        ValueError: If ``rows`` is not positive or there are no images.
    """
    if rows < 1 or len(images) == 0:
        raise ValueError(
            f"rows and images must be at least 1, got {rows} rows for {len(images)} images"
        )
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    correct = 0
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        answers = network(images.pixels(part)).argmax(-1)
        correct += int((answers == images.labels[part]).sum())
    for module, mode in modes:
        module.training = mode
    return 100 * correct / len(images)


def queries_a_step(gradient: WeightGradient, network: nn.Module, inputs: Tensor) -> int:
    """Counts the network evaluations of one step.

    Args:
        gradient: The gradient.
        network: The network, in the mode in which it is trained.
        inputs: A batch; only its shape counts.

    Returns:
        The number of queries, as the module's docstring defines them.

    Raises:
        TypeError: If ``gradient`` is of no known kind.
    """
    if isinstance(gradient, FirstOrder):
        return 1
    if isinstance(gradient, Activations):
        return gradient.queries(network, inputs)
    if isinstance(gradient, StackedRandomized | Remembered | Sharded):
        return queries_a_step(gradient.plain, network, inputs)
    if isinstance(gradient, Randomized):
        return (2 if gradient.central else 1) * gradient.q + 1
    if isinstance(gradient, Coordinates):
        moved = gradient.schedule.total if gradient.schedule else Weights(network).total
        return (2 if gradient.central else 1) * moved + 1
    raise TypeError(
        "gradient must be FirstOrder, Coordinates, Randomized, StackedRandomized, Activations, "
        "Remembered or Sharded, "
        f"got {type(gradient).__name__}"
    )


def classifier_training(
    network: nn.Module,
    train: Images,
    gradient: WeightGradient,
    recipe: Recipe,
    *,
    meter: Meter | None = None,
) -> Training:
    """Sets up a training run.

    Args:
        network: Images ``(n, c, h, w)`` to logits ``(n, classes)``; put in train mode and changed
            in place by the run.
        train: The training images, on the network's device.
        gradient: What writes ``.grad``.
        recipe: How it is trained.
        meter: The meter that queries are charged to, before they are made.

    Returns:
        The run; ``run(recipe.steps)`` trains.

    Raises:
        ValueError: If there are fewer images than a batch holds.
    """
    if recipe.batch > len(train):
        raise ValueError(
            f"batch must be at most the number of training images, {len(train)}, "
            f"got {recipe.batch}"
        )
    meter = meter if meter is not None else Meter()
    network.train()
    cost = queries_a_step(gradient, network, training_batch(train, recipe, 0)[0])

    def estimate(step: int) -> Observation:
        meter.charge(cost)
        inputs, head = labelled_batch(train, recipe, step)
        seen = gradient(network, inputs, head, step=step)
        if recipe.forget_at_redraw and seen.redrawn:
            optimizer.state.clear()
        return seen

    optimizer = _optimizer(network, recipe)
    return Training(
        network,
        optimizer,
        estimate,
        scheduler=LambdaLR(optimizer, lambda step: _relative_rate(step, recipe)),
        meter=meter,
        companion=_companion(gradient, network),
        clip_norm=recipe.clip,
        hold_unselected=recipe.hold_unselected,
        seed=recipe.seed,
    )


def _companion(gradient: WeightGradient, network: nn.Module) -> Companions | None:
    """What a run stores besides weights and optimizer: remembered slopes, findings of checks."""
    named: dict[str, Stateful] = {}
    if isinstance(gradient, Remembered):
        named["remembered"], gradient = gradient, gradient.plain
    if isinstance(gradient, Sharded):
        gradient = gradient.plain
    if isinstance(gradient, Checking):
        named["checks"] = Checks(gradient, network)
    return Companions(named) if named else None


def training_batch(train: Images, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Returns the images ``(b, c, h, w)`` and labels ``(b,)`` of a step."""
    rows = minibatch(step, samples=len(train), size=recipe.batch, seed=recipe.seed)
    rows = rows.to(train.images.device)
    inputs = train.pixels(rows)
    if recipe.augment:
        inputs = augment(inputs, generator=generator_for(recipe.seed, "augment", step))
    return inputs, train.labels[rows]


def labelled_batch(train: Images, recipe: Recipe, step: int) -> tuple[Tensor, CrossEntropy]:
    """Returns the images ``(b, c, h, w)`` of a step and the loss of logits on them."""
    inputs, labels = training_batch(train, recipe, step)
    return inputs, CrossEntropy(labels)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    moved = [p for p in network.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(moved, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        moved, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _relative_rate(step: int, recipe: Recipe) -> float:
    rise = min((step + 1) / recipe.warmup, 1.0) if recipe.warmup else 1.0
    done = max(step - recipe.warmup, 0) / (recipe.steps - recipe.warmup)
    return rise * (1 + math.cos(math.pi * done)) / 2
