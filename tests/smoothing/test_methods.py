"""The gradients of the defence table against backpropagation through the same classifier."""

import copy
import math
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
    smallest_step,
)
from deepzero_apps.smoothing.objectives import Answers, loss_head, reconstruction
from deepzero_apps.smoothing.surrogate import Surrogate, WithSurrogate, surrogate_network
from deepzero_apps.zeroth_order.estimators import randomized
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
    make: Callable[[Answers], Method], network: Callable[[], nn.Module], cost: int
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

    losses = loss_head(f, data.targets)(images)

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


class Shift(nn.Module):
    """Adds one trainable image: its gradient is the mean gradient at the images."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(1, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.by


def brighter(images: Tensor) -> Tensor:
    """Labels alone: 1 above half of the brightness, 0 below."""
    return (images.flatten(1).mean(1) > 0.5).long()


@pytest.mark.parametrize("surrogate", ["useless", "good"])
@pytest.mark.parametrize("name", ["zo-ds", "zo-cv"])
def test_with_labels_the_gradient_is_that_of_the_smoothed_error(name: str, surrogate: str) -> None:
    # Along a = 1/8, images of mean .5 + s have P[error] = Phi(-8 s / mu) for target 1: slope
    # -phi(8 s / mu) / mu. A term of the estimate along a has a variance below
    # (1 / mu + |predicted|)^2, predicted slopes below 6 here; b q terms; five standard errors
    mu, q, s = 0.02, 4_000, 0.002
    images = torch.full((B, 1, 8, 8), 0.5 + s)
    stand_in = surrogate_network((1, 8, 8), 2, width=4)
    if surrogate == "good":
        stand_in = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
        stand_in[1].weight.data = torch.stack((-torch.ones(64), torch.ones(64)))
    learner = Surrogate(stand_in, updates=0)
    learner.covariance = learner.variance = 1.0  # beta = 1
    method: Method = AtImage(brighter, mu=mu, q=q)
    if name == "zo-cv":
        method = WithSurrogate(brighter, learner, mu=mu, q=q, weight=1.0)
    network = Shift()

    method(network, Batch(0, images, images, torch.ones(B, dtype=torch.int64)))

    assert network.by.grad is not None
    t = 8 * s / mu
    slope = -math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) / mu
    error = 5 * (1 / mu + 6) / math.sqrt(B * q)
    assert float(network.by.grad.sum() / 8) == pytest.approx(slope, abs=error)
    assert error < abs(slope) / 4


def test_with_labels_the_free_gradient_is_that_of_the_expected_error() -> None:
    # eq. (1) with w = 0, (3): what remains is beta times the gradient through the surrogate
    stand_in, network, data = classifier(), denoiser(), batch()
    learner = Surrogate(stand_in, updates=0)
    learner.covariance, learner.variance = 0.5, 1.0

    def labels(images: Tensor) -> Tensor:
        return stand_in(images).argmax(1)

    found = gradient(WithSurrogate(labels, learner, mu=0.1, q=1, weight=0.0), network)

    chances = stand_in(network(data.noisy).clamp(0, 1)).softmax(1)
    loss = (1 - chances[torch.arange(B), data.targets]).mean()
    exact = torch.autograd.grad(loss, list(network.parameters()))
    expected = 0.5 * torch.cat([g.flatten() for g in exact])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["zo-ds", "zo-ae-ds", "deepzero", "zo-cv"])
def test_labels_of_which_some_are_lost_train_every_method(name: str) -> None:
    def losing(images: Tensor) -> Tensor:
        labels = classifier()(images).argmax(1)
        return labels.masked_fill(torch.arange(len(images)) % 3 == 0, -1)

    learner = Surrogate(surrogate_network((1, 8, 8), CLASSES, width=4), updates=1)
    methods: dict[str, Method] = {
        "zo-ds": AtImage(losing, mu=0.5, q=20),
        "zo-ae-ds": AtLatent(losing, mu=5.0),
        "deepzero": OnWeights(losing, Coordinates(mu=0.5)),
        "zo-cv": WithSurrogate(losing, learner, mu=0.5, q=20),
    }

    found = gradient(methods[name], compressed() if name == "zo-ae-ds" else denoiser())

    assert found.isfinite().all()
    assert float(found.abs().sum()) > 0


def rounded_gradient(f: Callable[[Tensor], Tensor], z: float, mu: float) -> float:
    """E[f(Q(z + mu u)) u] / mu on the grid of 1/255, cell by cell: no sampling, no series."""
    cells = torch.arange(-400, 400) / 255
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = ((cells + side / 510 - z) / mu for side in (-1, 1))
    mass = normal.log_prob(low).exp() - normal.log_prob(high).exp()
    return float((f(cells) * mass).sum()) / mu


@pytest.mark.parametrize("z", [0.0, 0.0013, 0.3, 0.9981])
def test_rounding_biases_as_its_series_says_and_not_at_two_levels(z: float) -> None:
    # eq. (4): 2 exp(-2 pi^2 mu^2 / step^2) is 1e-34 at two steps
    assert smallest_step(8) == 2 / 255

    found = rounded_gradient(lambda t: t**2 / 2 + t, z, smallest_step(8))

    assert found == pytest.approx(z + 1, abs=1e-9)
    for share in (0.25, 0.5, 1.0):
        series = 1 + 2 * sum(
            (-1) ** k
            * math.cos(2 * math.pi * k * z * 255)
            * math.exp(-2 * (math.pi * k * share) ** 2)
            for k in range(1, 9)
        )
        linear = rounded_gradient(lambda t: t, z, share / 255)
        assert linear == pytest.approx(series, abs=1e-9)


def test_differences_through_rounding_are_the_gradient_and_seen_displacements_turn_it() -> None:
    # f = a.Q: one term (a.v) u_i has mean a_i and a variance below (1 + 1/24 + |rho|^2 / mu^2)
    # times 2 |a|^2 with |rho|^2 <= d step^2 / 4 = d mu^2 / 16; five standard errors
    d, q, step = 16, 40_000, 1 / 15
    mu = smallest_step(4)
    a = torch.ones(d)
    z = torch.full((d,), 7.4 * step)  # all pixels are off their level alike

    def rounded(points: Tensor) -> Tensor:
        return (points / step).round() * step

    source = torch.Generator().manual_seed(2)
    g = randomized(lambda p: rounded(p) @ a, z, mu=mu, q=q, generator=source)

    error = 5 * math.sqrt(2 * d * (1 + 1 / 24 + d / 16) / q)
    torch.testing.assert_close(g, a, rtol=0, atol=error)
    v = (rounded(z + mu * torch.randn(q, d, generator=source)) - rounded(z)) / mu
    turned = ((v @ a)[:, None] * v).mean(0)
    rho = z - rounded(z)
    expected = (1 + step**2 / (12 * mu**2)) * a + rho * (rho @ a) / mu**2
    torch.testing.assert_close(turned, expected, rtol=0, atol=2 * error)
    assert float((expected - a).abs().min()) > 0.3 * float(rho @ rho) / mu**2
