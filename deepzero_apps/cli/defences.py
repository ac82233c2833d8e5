"""Builds the methods of the defence table by name, with settings tuned on validation data.

``TUNED`` holds what ``benchmarks/tune_defence.py`` found on the digits' validation split at sigma
.5 and a million queries; ``tuned`` changes what labels or rounded images need otherwise. Flags
override both.
"""

__all__ = [
    "METHODS",
    "TUNED",
    "Defence",
    "MethodName",
    "Tuning",
    "build",
    "compressed",
    "least_mu",
    "tuned",
]

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.denoisers import Autoencoder
from deepzero_apps.smoothing.methods import (
    AtImage,
    AtLatent,
    Compressed,
    Method,
    OnWeights,
    Reconstruction,
    WhiteBox,
    smallest_step,
)
from deepzero_apps.smoothing.surrogate import Surrogate, WithSurrogate, surrogate_network
from deepzero_apps.zeroth_order.checks import Checks
from deepzero_apps.zeroth_order.gradients import Coordinates
from deepzero_apps.zeroth_order.oracle import Oracle
from deepzero_apps.zeroth_order.sparsity import SupportSchedule, shares_by_size
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Stateful

MethodName = Literal["none", "mse", "fo-ds", "zo-ds", "zo-ae-ds", "deepzero", "zo-cv"]

METHODS: tuple[MethodName, ...] = (
    "none",
    "mse",
    "fo-ds",
    "zo-ds",
    "zo-ae-ds",
    "deepzero",
    "zo-cv",
)


@dataclass(frozen=True)
class Tuning:
    """What differs between methods.

    Attributes:
        lr: Adam's learning rate.
        q: Directions an image (``zo-ds``, ``zo-cv``) or weights moved a step (``deepzero``).
        mu: The step: pixels, code units or weight units.
        steps: The number of steps where no budget limits them.
        batch: The number of images a step.
    """

    lr: float
    q: int = 0
    mu: float = 0.01
    steps: int = 0
    batch: int = 64


TUNED: dict[MethodName, Tuning] = {
    "mse": Tuning(lr=2e-3, steps=8_000),
    "fo-ds": Tuning(lr=1e-3, steps=8_000),
    "zo-ds": Tuning(lr=5e-4, q=4),
    "zo-ae-ds": Tuning(lr=1e-3),
    "deepzero": Tuning(lr=1e-3, q=4),
    "zo-cv": Tuning(lr=1e-3, q=1),
}


_TUNED_FOR_LABELS: dict[MethodName, dict[str, Any]] = {
    "zo-ds": {"lr": 1e-4, "mu": 0.1},
    "zo-ae-ds": {"lr": 1e-4, "mu": 0.3},
    "deepzero": {"lr": 1e-4, "mu": 0.1},
    "zo-cv": {"mu": 0.05},
}
"""Errors differ only over steps that reach the boundary, so that mu is no longer small. Those of
zo-ds and zo-cv were chosen on validation images at 300,000 queries; the other two are guesses."""


def least_mu(method: MethodName, bits: int | None) -> float:
    """Returns the least step that a method may take where images are rounded; 0 for any."""
    return smallest_step(bits) if bits is not None and method in ("zo-ds", "zo-cv") else 0.0


def tuned(method: MethodName, *, labels: bool = False, bits: int | None = None) -> Tuning:
    """Returns a method's settings.

    Args:
        method: Its name.
        labels: Whether the classifier answers labels alone.
        bits: Bits of a pixel that the classifier sees; None for no rounding.

    Returns:
        The tuned settings, with a step that rounded images can tell.
    """
    found = replace(TUNED[method], **(_TUNED_FOR_LABELS.get(method, {}) if labels else {}))
    return replace(found, mu=max(found.mu, least_mu(method, bits)))


@dataclass(frozen=True)
class Defence:
    """A method ready to train.

    Attributes:
        network: The denoiser as it is trained and deployed.
        method: Writes its gradient.
        queries: What it asks of the black box for an image and step; 0 for none.
        companion: What learns beside it.
    """

    network: nn.Module
    method: Method
    queries: int
    companion: Stateful | None = None


def build(
    name: MethodName,
    network: nn.Module,
    *,
    oracle: Oracle,
    white_box: nn.Module | None,
    tuning: Tuning,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int,
) -> Defence:
    """Builds a method of the defence table.

    Args:
        name: Its name in the table.
        network: The denoiser that it starts from; `Compressed` for ``zo-ae-ds``.
        oracle: The metered black box.
        white_box: The classifier's network, for ``fo-ds``.
        tuning: Its settings.
        image_shape: The images' shape ``(c, h, w)``.
        classes: The number of classes.
        seed: The seed of directions, coordinates and surrogate.

    Returns:
        The defence.

    Raises:
        Misuse: If ``fo-ds`` is wanted of a classifier without gradients.
    """

    def fo_ds() -> Defence:
        if white_box is None:
            raise Misuse(
                "--method fo-ds must have a classifier with gradients, got one without; "
                "choose --classifier cnn, or a method that asks only for answers, such as zo-cv"
            )
        return Defence(network, WhiteBox(white_box), 0)

    def zo_ds() -> Defence:
        method = AtImage(oracle, mu=tuning.mu, q=tuning.q, seed=seed)
        return Defence(network, method, tuning.q + 1)

    def zo_ae_ds() -> Defence:
        if not isinstance(network, Compressed):
            raise TypeError(f"network must be Compressed, got {type(network).__name__}")
        network.autoencoder.decoder.requires_grad_(False)
        queries = network.autoencoder.latent + 1
        return Defence(network, AtLatent(oracle, mu=tuning.mu), queries)

    def deepzero() -> Defence:
        schedule = _schedule(network, tuning.q, seed)
        gradient = Coordinates(mu=tuning.mu, schedule=schedule)
        checks = Checks(gradient, network)
        return Defence(network, OnWeights(oracle, gradient), tuning.q + 1, checks)

    def zo_cv() -> Defence:
        stand_in = surrogate_network(image_shape, classes, seed=seed).to(_device(network))
        surrogate = Surrogate(stand_in)
        method = WithSurrogate(oracle, surrogate, mu=tuning.mu, q=tuning.q, seed=seed)
        return Defence(network, method, tuning.q + 1, surrogate)

    builders: dict[str, Callable[[], Defence]] = {
        "mse": lambda: Defence(network, Reconstruction(), 0),
        "fo-ds": fo_ds,
        "zo-ds": zo_ds,
        "zo-ae-ds": zo_ae_ds,
        "deepzero": deepzero,
        "zo-cv": zo_cv,
    }
    return builders[name]()


def _schedule(network: nn.Module, moved: int, seed: int) -> SupportSchedule:
    sizes = Weights(network).sizes
    if moved > sum(sizes):
        raise Misuse(f"--q must be at most the {sum(sizes):,} weights, got {moved}")
    return SupportSchedule(tuple(shares_by_size(sizes, moved)), sizes, seed=seed)


def compressed(
    network: nn.Module, image_shape: tuple[int, int, int], *, latent: int, seed: int
) -> Compressed:
    """Puts an autoencoder behind a denoiser, as ``zo-ae-ds`` deploys it."""
    generator = torch.Generator().manual_seed(seed)
    return Compressed(network, Autoencoder(image_shape, latent=latent, generator=generator))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
