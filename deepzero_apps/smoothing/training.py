r"""Training a denoiser in front of a classifier, by any of ``methods``.

Every step draws a minibatch of clean images, adds :math:`\sigma\epsilon` with :math:`\epsilon \sim
\mathcal{N}(0, I)`, and lets the method write the gradient. All draws are pure functions of (seed,
step), so that methods see the same batches and noise, and a killed run resumes to the same bits.
"""

__all__ = ["Recipe", "clean_answers", "defence_training", "steps_within"]

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.answers import NO_VOTE, labels_of
from deepzero_apps.smoothing.methods import Batch, Method
from deepzero_apps.smoothing.objectives import Answers
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation, Stateful, Training, minibatch


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained: Adam along a cosine schedule.

    Args:
        sigma: The standard deviation of the noise, in units of the pixels.
        steps: The number of steps; the learning rate reaches zero after the last.
        batch: The number of images a step.
        lr: The learning rate at the start.
        seed: The seed of batches and noise.

    Raises:
        ValueError: If a number is not positive or the seed is negative.
    """

    sigma: float
    steps: int
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sigma", "steps", "batch", "lr"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


def defence_training(
    network: nn.Module,
    method: Method,
    images: Tensor,
    targets: Tensor,
    *,
    recipe: Recipe,
    meter: Meter | None = None,
    companion: Stateful | None = None,
) -> Training:
    """Sets up the training of a denoiser.

    Args:
        network: The denoiser; its trainable parameters are moved.
        method: The gradient.
        images: Clean training images ``(n, c, h, w)`` in [0, 1].
        targets: The classes wanted, int64 ``(n,)``; images of target -1 take no part (their
            clean answers were lost).
        recipe: Noise, batches and learning rate.
        meter: The meter of the black box's queries.
        companion: What else learns, such as a `Surrogate`.

    Returns:
        The run; ``run(recipe.steps)`` trains.

    Raises:
        ValueError: If there are fewer images with a target than a batch holds, or targets and
            images differ in number.
    """
    if len(targets) != len(images):
        raise ValueError(f"targets must be one an image, got {len(targets)} for {len(images)}")
    wanted = targets != NO_VOTE
    images, targets = images[wanted], targets[wanted]
    if len(images) < recipe.batch <= len(wanted):
        raise ValueError(
            f"targets must be known for a batch of {recipe.batch} images, got {len(images)} of "
            f"{len(wanted)}: the other clean answers were lost; ask again, or train on labels"
        )

    def rows(step: int) -> Tensor:
        chosen = minibatch(step, samples=len(images), size=recipe.batch, seed=recipe.seed)
        return chosen.to(images.device)

    def gradient(step: int) -> Observation:
        chosen = rows(step)
        clean = images[chosen]
        generator = generator_for(recipe.seed, "noise", step, device=images.device)
        noise = torch.empty_like(clean).normal_(generator=generator)
        batch = Batch(step, clean, clean + recipe.sigma * noise, targets[chosen])
        return method(network, batch)

    rows(0)  # refuses a batch that does not fit before anything else happens
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], recipe.lr)
    return Training(
        network,
        optimizer,
        gradient,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps),
        meter=meter,
        companion=companion,
        seed=recipe.seed,
    )


def clean_answers(answers: Answers, images: Tensor) -> Tensor:
    """Asks for the classifier's own clean answers, the targets of the stability objective.

    Args:
        answers: The metered black box; costs one query an image.
        images: Clean images ``(n, c, h, w)``.

    Returns:
        Classes, int64 ``(n,)``; -1 where the answer was lost.
    """
    return labels_of(answers(images))


def steps_within(budget: int, *, batch: int, queries: int) -> int:
    """Returns how many whole steps a budget of queries pays for.

    Args:
        budget: The queries to spend.
        batch: The number of images a step.
        queries: The queries an image and step.

    Raises:
        ValueError: If the budget does not cover one step.
    """
    steps = budget // (batch * queries)
    if steps < 1:
        raise ValueError(
            f"budget must cover one step of {batch} images with {queries} queries each, "
            f"{batch * queries:,} in all, got {budget:,}"
        )
    return steps
