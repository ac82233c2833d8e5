"""The gradients of the defence table against backpropagation through the same classifier."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.smoothing.denoisers import Autoencoder, dncnn
from deepzero_apps.smoothing.methods import (
    AtImage,
    AtLatent,
    Batch,
    Compressed,
    Method,
    OnWeights,
    Reconstruction,
    WhiteBox,
)
from deepzero_apps.smoothing.objectives import Scores, cross_entropy_head, reconstruction
from deepzero_apps.smoothing.surrogate import Surrogate, WithSurrogate, surrogate_network
from deepzero_apps.zeroth_order.gradients import Coordinates
from deepzero_apps.zeroth_order.oracle import Oracle

B, CLASSES, PIXELS = 5, 3, 64


def classifier() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def batch() -> Batch:
    torch.manual_seed(12)
    clean = 0.3 + 0.4 * torch.rand(B, 1, 8, 8)  # inside (0, 1): clipping is never active
    noisy = clean + 0.05 * torch.randn_like(clean)
    return Batch(3, clean, noisy, torch.arange(B) % CLASSES)


def denoiser() -> nn.Module:
    torch.manual_seed(13)
    network = dncnn(channels=1, depth=3, width=2, batch_norm=False)
    for p in network.parameters():
        nn.init.normal_(p, std=0.05)
    return network


def gradient(method: Method, network: nn.Module) -> Tensor:
    network = copy.deepcopy(network)
    method(network, batch())
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def compressed() -> Compressed:
    torch.manual_seed(14)
    network = Compressed(denoiser(), Autoencoder((1, 8, 8), latent=4))
    network.autoencoder.decoder.requires_grad_(False)
    return network


def test_white_box_is_plain_backpropagation() -> None:
    network, f, data = denoiser(), classifier(), batch()
    loss = functional.cross_entropy(f(network(data.noisy).clamp(0, 1)), data.targets)
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]
    )

    torch.testing.assert_close(gradient(WhiteBox(f), network), expected, rtol=1e-12, atol=1e-14)


def test_coordinates_at_the_latent_are_backpropagation() -> None:
    # central: mu^2 |f'''| / 6 below 1e-9, float64 rounding 1e-16 / mu = 1e-11
    f, network = classifier(), compressed()

    torch.testing.assert_close(
        gradient(AtLatent(f, mu=1e-5, central=True), network),
        gradient(WhiteBox(f), network),
        rtol=0,
        atol=1e-9,
    )


def test_coordinates_on_the_weights_are_backpropagation() -> None:
    f, network = classifier(), denoiser()
    method = OnWeights(f, Coordinates(mu=1e-5, central=True))

    torch.testing.assert_close(
        gradient(method, network), gradient(WhiteBox(f), network), rtol=0, atol=1e-9
    )


def test_directions_at_the_image_average_to_backpropagation() -> None:
    # relative error of the mean of q directions in 64 dimensions is sqrt(65 / q) = .09 an image,
    # less after averaging: cosine above 1 - .09^2 / 2
    f, network = classifier(), denoiser()

    estimate = gradient(AtImage(f, mu=1e-4, q=8_000), network)

    exact = gradient(WhiteBox(f), network)
    assert functional.cosine_similarity(estimate, exact, dim=0) > 0.99
    assert float(estimate.norm() / exact.norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("surrogate", ["useless", "perfect"])
def test_a_control_variate_with_full_weight_is_unbiased_whatever_the_surrogate(
    surrogate: str,
) -> None:
    f, network = classifier(), denoiser()
    stand_in = f if surrogate == "perfect" else surrogate_network((1, 8, 8), CLASSES, width=4)
    q = 20 if surrogate == "perfect" else 8_000
    learner = Surrogate(copy.deepcopy(stand_in), updates=0)
    learner.covariance = learner.variance = 1.0  # beta = 1, as after steps of agreement
    method = WithSurrogate(f, learner, mu=1e-4, q=q, weight=1.0)

    estimate = gradient(method, network)

    # a perfect surrogate leaves a residual of order mu: exact with 20 directions
    exact = gradient(WhiteBox(f), network)
    tolerance = 1e-3 if surrogate == "perfect" else 0.2
    assert float((estimate - exact).norm() / exact.norm()) < tolerance


def test_beta_is_one_for_a_perfect_surrogate_and_follows_scale() -> None:
    f = classifier()
    surrogate = Surrogate(copy.deepcopy(f), updates=0)
    WithSurrogate(f, surrogate, mu=1e-5, q=50)(denoiser(), batch())

    assert surrogate.beta == pytest.approx(1, abs=1e-3)  # forward bias mu H / 2 of the slopes
    assert Surrogate(f).beta == 0


def test_the_weight_of_the_residual_is_the_one_of_least_error() -> None:
    # E |w r_hat - r|^2 = |r|^2 [(1 - w)^2 + w^2 (d + 1) / q] for Gaussian directions, by
    # simulation: both sides within five standard errors (relative 5 * sqrt(2 / 20,000) at most)
    d, q, n = 6, 3, 20_000
    r = torch.randn(d)
    u = torch.randn(n, q, d)
    r_hat = ((u @ r)[..., None] * u).mean(1)
    w = q / (q + d + 1)
    errors = {
        v: float((v * r_hat - r).square().sum(1).mean() / (r @ r)) for v in (0.5 * w, w, 2 * w)
    }

    for v, error in errors.items():
        assert error == pytest.approx((1 - v) ** 2 + v**2 * (d + 1) / q, rel=0.05)
    assert min(errors, key=errors.__getitem__) == w


@pytest.mark.parametrize(
    ("make", "network", "cost"),
    [
        (lambda f: AtImage(f, mu=0.01, q=4), denoiser, 5),
        (lambda f: AtLatent(f, mu=0.01), compressed, 5),
        (lambda f: AtLatent(f, mu=0.01, central=True), compressed, 9),
        (lambda f: OnWeights(f, Coordinates(mu=0.01)), denoiser, 1 + 77),
        (
            lambda f: WithSurrogate(
                f, Surrogate(surrogate_network((1, 8, 8), CLASSES), updates=1), mu=0.01, q=4
            ),
            denoiser,
            5,
        ),
    ],
    ids=["zo-ds", "zo-ae-ds", "zo-ae-ds central", "deepzero", "zo-cv"],
)
def test_queries_are_as_stated_and_the_black_box_is_never_differentiated(
    make: Callable[[Scores], Method], network: Callable[[], nn.Module], cost: int
) -> None:
    f = classifier()

    def black_box(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        return f(images)

    oracle = Oracle(black_box)
    trained = network()
    make(oracle)(trained, batch())

    assert oracle.meter.spent == B * cost
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
    assert all(p.grad is None for p in f.parameters())


def test_reconstruction_asks_nothing_and_is_the_mean_squared_error() -> None:
    data = batch()

    losses = reconstruction(data.noisy, data.clean)

    expected = [functional.mse_loss(a, b) for a, b in zip(data.noisy, data.clean, strict=True)]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert Reconstruction()(denoiser(), data).loss > 0


def test_the_head_stacks_networks_and_clips_pixels() -> None:
    f, data = classifier(), batch()
    images = torch.stack((data.noisy, data.noisy - 3))

    losses = cross_entropy_head(f, data.targets)(images)

    black = f(torch.zeros(B, 1, 8, 8))
    torch.testing.assert_close(
        losses[1], functional.cross_entropy(black, data.targets, reduction="none")
    )
    torch.testing.assert_close(
        losses[0], functional.cross_entropy(f(data.noisy), data.targets, reduction="none")
    )


def test_the_latent_method_needs_a_latent() -> None:
    with pytest.raises(TypeError, match="network must be Compressed, got _Residual"):
        AtLatent(classifier(), mu=0.1)(denoiser(), batch())
