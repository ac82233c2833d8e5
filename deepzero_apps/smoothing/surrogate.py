"""A surrogate of the black box, fitted to paid answers, as a control variate: ``zo-cv``.

The mathematics is in ``methods``, eq. (1) and (2).
"""

__all__ = ["Surrogate", "WithSurrogate", "surrogate_network"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.smoothing.answers import NO_VOTE
from deepzero_apps.smoothing.methods import Batch
from deepzero_apps.smoothing.objectives import Answers, expected_errors, losses_of, usable
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation

MEMORY = 2**26
"""The most bytes of remembered images."""


def surrogate_network(
    shape: tuple[int, int, int], classes: int, *, width: int = 32, seed: int = 0
) -> nn.Module:
    """Builds a small, smooth convolutional network that stands in for any classifier.

    Args:
        shape: The images' shape ``(c, h, w)``.
        classes: The number of classes.
        width: The number of channels of the first layer; twice as many in the next two.
        seed: The seed of the initial weights.

    Returns:
        Images ``(n, c, h, w)`` to scores ``(n, classes)``.
    """
    channels, height, width_in = shape
    cells = -(-height // 4) * -(-width_in // 4)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * width * cells, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, classes),
        )


class Surrogate:
    """A network that learns a black box from the answers it gave.

    Scores are learnt by their Kullback-Leibler divergence, labels by cross-entropy, so that in
    either case its probabilities come to be those of the answers. What was lost teaches nothing: it
    is not remembered.

    Args:
        network: Images ``(n, c, h, w)`` to scores ``(n, classes)``.
        lr: Adam's learning rate.
        updates: The number of updates after each step of the denoiser.
        rows: The number of remembered answers in an update.
        capacity: The number of answers remembered, fewer where the images would take more
            than 64 MiB (they are part of every checkpoint); the oldest go first.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 2e-3,
        updates: int = 2,
        rows: int = 256,
        capacity: int = 20_000,
    ) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr)
        self.updates = updates
        self.rows = rows
        self.capacity = capacity
        self.images: Tensor | None = None
        self.answers: Tensor | None = None
        self.seen = 0
        self.covariance = 0.0
        self.variance = 0.0

    @property
    def beta(self) -> float:
        """The regression of measured slopes on predicted ones, within [0, 1]."""
        return min(max(self.covariance / self.variance, 0.0), 1.0) if self.variance else 0.0

    def compare(self, measured: Tensor, predicted: Tensor) -> None:
        """Updates ``beta`` from slopes of any shape: a running regression over 50 steps."""
        keep = 0.98
        self.covariance = keep * self.covariance + float((measured * predicted).mean())
        self.variance = keep * self.variance + float(predicted.square().mean())

    def learn(self, images: Tensor, answers: Tensor, generator: torch.Generator) -> float:
        """Remembers answers, and fits the network to these and to remembered ones.

        Args:
            images: What was asked, ``(n, c, h, w)``.
            answers: What came: scores ``(n, classes)``, or labels ``(n,)``; lost ones are
                labels -1, or scores that prefer no class.
            generator: Picks the remembered answers.

        Returns:
            The mean Kullback-Leibler divergence from answers to surrogate, of labels the mean
            cross-entropy; 0 while nothing is known.
        """
        told = answers != NO_VOTE if answers.ndim == 1 else answers.amax(1) > answers.amin(1)
        self._remember(images[told], answers[told])
        assert self.images is not None
        assert self.answers is not None
        known = min(self.seen, self.capacity)
        if not known:
            return 0.0
        total = 0.0
        for _ in range(self.updates):
            rows = torch.randint(known, (self.rows,), generator=generator, device=generator.device)
            total += self._update(self.images[rows], self.answers[rows])
        return total / max(1, self.updates)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the rest of the run depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": self.images,
            "answers": self.answers,
            "numbers": [self.seen, self.covariance, self.variance],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict()`` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = next(self.network.parameters()).device
        self.images, self.answers = (
            None if state[name] is None else state[name].to(device)
            for name in ("images", "answers")
        )
        if self.images is not None:
            self.capacity = len(self.images)
        self.seen, self.covariance, self.variance = state["numbers"]

    def _remember(self, images: Tensor, answers: Tensor) -> None:
        if self.images is None or self.answers is None:
            one = images.element_size() * images.shape[1:].numel()
            self.capacity = max(1, min(self.capacity, MEMORY // one))
            self.images = images.new_zeros(self.capacity, *images.shape[1:])
            self.answers = answers.new_zeros(self.capacity, *answers.shape[1:])
        for i in range(0, len(images), self.capacity):
            part = slice(i, i + self.capacity)
            n = len(images[part])
            places = torch.arange(self.seen, self.seen + n, device=images.device) % self.capacity
            self.images[places] = images[part]
            self.answers[places] = answers[part]
            self.seen += n

    def _update(self, images: Tensor, answers: Tensor) -> float:
        with torch.enable_grad():
            loss = _misfit(self.network(images), answers)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class WithSurrogate:
    """Randomized differences at the denoised image, with the surrogate as control variate.

    Args:
        answers: The metered black box.
        surrogate: Learns from every answer.
        mu: The step, in units of the pixels.
        q: The number of directions an image.
        weight: The weight w of the measured residual; eq. (2) by default.
        seed: The seed of the directions.
    """

    def __init__(
        self,
        answers: Answers,
        surrogate: Surrogate,
        *,
        mu: float,
        q: int,
        weight: float | None = None,
        seed: int = 0,
    ) -> None:
        self.answers = answers
        self.surrogate = surrogate
        self.mu = mu
        self.q = q
        self.weight = weight
        self.seed = seed

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        generator = generator_for(self.seed, "directions", batch.step, device=batch.noisy.device)
        denoised = network(batch.noisy)
        z = denoised.detach()
        u = torch.empty(self.q, *z.shape, dtype=z.dtype, device=z.device).normal_(
            generator=generator
        )
        shown = torch.cat((z[None], z + self.mu * u)).flatten(0, 1).clamp(0, 1)
        with torch.no_grad():
            answers = usable(self.answers(shown))
        losses = losses_of(answers, batch.targets.repeat(1 + self.q)).view(1 + self.q, len(z))

        measured = ((losses[1:] - losses[0]) / self.mu).to(z.dtype)
        free = self._free_gradient(z, batch.targets, labels=answers.ndim == 1)
        gradient = self._gradient(u, measured, free)  # eq. (1)
        denoised.backward(gradient / len(z))
        divergence = self.surrogate.learn(shown, answers, generator)
        extra = {"surrogate_divergence": divergence, "beta": self.surrogate.beta}
        return Observation(float(losses[0].mean()), extra=extra)

    def _gradient(self, u: Tensor, measured: Tensor, free: Tensor) -> Tensor:
        predicted = (u * free).flatten(2).sum(2)
        beta = self.surrogate.beta  # from earlier steps: these directions must not choose it
        self.surrogate.compare(measured, predicted)
        d = free[0].numel()
        weight = self.q / (self.q + d + 1) if self.weight is None else self.weight  # eq. (2)
        residual = (measured - beta * predicted).view(*measured.shape, 1, 1, 1) * u
        return beta * free + weight * residual.mean(0)

    def _free_gradient(self, z: Tensor, targets: Tensor, *, labels: bool) -> Tensor:
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            scores = self.surrogate.network(leaf.clamp(0, 1))
            losses = expected_errors(scores, targets) if labels else losses_of(scores, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return gradient


def _misfit(scores: Tensor, answers: Tensor) -> Tensor:
    if answers.ndim == 1:
        return functional.cross_entropy(scores, answers)
    return functional.kl_div(
        scores.log_softmax(1), answers.log_softmax(1), log_target=True, reduction="batchmean"
    )
