"""Gradients from moved outputs against autograd, on networks of every kind."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.gradients import FirstOrder, WeightGradient
from tests.networks import BATCH, Mixing, images, make

TARGETS = torch.arange(BATCH) % 3


def head(outputs: Tensor) -> Tensor:
    k = len(outputs)
    return functional.cross_entropy(
        outputs.flatten(0, 1), TARGETS.repeat(k), reduction="none"
    ).view(k, BATCH)


def flat_gradient(network: nn.Module, gradient: WeightGradient, x: Tensor) -> Tensor:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.zero_grad()
    torch.manual_seed(1)
    gradient(network, x, head, step=0)
    network.load_state_dict(state)
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in network.parameters()]
    return torch.cat([g.flatten() for g in grads])


def small() -> nn.Module:
    """Two convolutions of more weights than outputs behind each other, batch norm after both."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=4),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 8, 2),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "name",
    ["plain", "residual", "dncnn", "unet", "transformer", "dropout", "tied", "odd"],
)
def test_the_gradient_is_autograd_s(name: str, training: bool) -> None:
    network, x = make(name, training=training), images()
    if name in ("dncnn", "unet"):
        network = nn.Sequential(network, nn.Flatten(), nn.Linear(128, 3)).train(training)

    estimate = flat_gradient(network, Activations(mu=1e-6, mu_outputs=1e-6), x)

    # forward bias mu l'' / 2, rounding 1e-16 / mu a move and sample, slopes and curvatures being
    # of order 1 to 100 in these networks of large random weights
    exact = flat_gradient(network, FirstOrder(), x)
    torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=1e-4)


def test_batch_statistics_are_accounted_for() -> None:
    # Without the multipliers the slopes of both convolutions are off by as much as their size.
    torch.manual_seed(2)
    network, x = small(), images()
    exact = flat_gradient(network, FirstOrder(), x)

    errors = [
        float((flat_gradient(network, Activations(mu=mu, mu_outputs=mu), x) - exact).norm())
        for mu in (2e-5, 1e-5)
    ]

    assert errors[1] < 1e-3 * float(exact.norm())
    assert errors[0] / errors[1] == pytest.approx(
        2, rel=0.05
    )  # linear in mu: nothing is left over


def test_a_layer_costs_its_outputs_or_its_weights_whichever_is_fewer() -> None:
    # outputs 32 of 152 weights, 8 of 264, 3 of 27; batch norms 16 each; the loss twice
    network, x = small(), images()
    seen: list[int] = []

    def counting(outputs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(len(outputs))
        return head(outputs)

    gradient = Activations(mu=1e-3)
    gradient(network, x, counting, step=0)

    assert gradient.queries(network, x) == sum(seen) == 32 + 8 + 3 + 2 * 16 + 2


def test_a_layer_of_many_outputs_is_moved_by_its_weights() -> None:
    # 4 x 8 x 8 outputs of 76 weights
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))

    assert Activations(mu=1e-3).queries(network, images()) == 76 + 3 + 2


def test_a_share_is_unbiased_and_always_moves_batch_norm() -> None:
    torch.manual_seed(2)
    network, x = nn.Sequential(nn.Conv2d(2, 2, 1), small()), images()
    exact = flat_gradient(network, FirstOrder(), x)
    gradient = Activations(mu=1e-6, mu_outputs=1e-6, share=0.5)

    draws = []
    for step in range(40):
        network.zero_grad()
        gradient(network, x, head, step=step)
        draws.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        )
    found = torch.stack(draws)

    error = found.std(0) / len(draws) ** 0.5
    assert ((found.mean(0) - exact).abs() < 5 * error + 1e-4).all()
    assert gradient.queries(network, x) == 2 + 1 + 16 + 4 + 2 + 2 * 16 + 2


def test_step_and_seed_decide_the_draw_and_surroundings_move_as_in_one_pass() -> None:
    first, second, plain = small(), small(), small()
    second.load_state_dict(first.state_dict())
    plain.load_state_dict(first.state_dict())
    x = images()
    plain(x)
    found = []
    for network, gradient in (
        (first, Activations(1e-3, share=0.3)),
        (second, Activations(1e-3, share=0.3, budget=1)),
    ):
        gradient(network, x, head, step=7)
        found.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        )

    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    for buffer, expected in zip(first.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected)
    assert all(module.training for module in first.modules())
    assert not any(module._forward_hooks for module in first.modules())


def test_operations_in_place_are_no_obstacle() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(128, 3), nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x.flatten(1))
            y += torch.tanh(self.b(x.flatten(1)))
            return y

    network, x = Added(), images()
    estimate = flat_gradient(network, Activations(mu=1e-6, mu_outputs=1e-6), x)
    torch.testing.assert_close(
        estimate, flat_gradient(network, FirstOrder(), x), rtol=0, atol=1e-5
    )


def test_what_a_layer_took_may_be_overwritten_later() -> None:
    class Overwriting(nn.Module):
        def __init__(self, *, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.a, self.b, self.in_place = nn.Linear(128, 3), nn.Linear(3, 3), in_place

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x.flatten(1)))
            y: Tensor = self.b(h)
            return y + (h.mul_(2) if self.in_place else h * 2)

    x, gradient = images(), Activations(mu=1e-6, mu_outputs=1e-6)
    found, expected = (
        flat_gradient(network, kind, x)
        for network, kind in (
            (Overwriting(in_place=True), gradient),
            (Overwriting(in_place=False), FirstOrder()),
        )
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_samples_that_meet_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="treat samples apart, batch norm excepted"):
        Activations(mu=1e-3).queries(Mixing(), images())


def test_batch_norm_without_weights_of_its_own_is_refused_in_train_mode_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match="must have a trainable weight and bias, got '2'"):
        Activations(mu=1e-3).queries(network, images())
    assert Activations(mu=1e-3).queries(network.eval(), images()) == 3 + 2

    norm = nn.BatchNorm1d(3)
    twice = nn.Sequential(nn.Flatten(), nn.Linear(128, 3), norm, nn.Linear(3, 3), norm)
    with pytest.raises(ValueError, match="must run once in a pass, got '2'"):
        Activations(mu=1e-3).queries(twice, images())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mu": 0}, "mu must be positive, got 0"),
        ({"mu_outputs": float("nan")}, "mu_outputs must be positive, got nan"),
        ({"budget": 0}, "budget must be positive, got 0"),
        ({"share": 0}, r"share must lie in \(0, 1\], got 0"),
        ({"share": 1.5}, r"share must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Activations(**{"mu": 1e-3, **fields})


def test_a_head_that_averages_is_refused() -> None:
    with pytest.raises(ValueError, match="one loss a network and sample"):
        Activations(mu=1e-3)(small(), images(), lambda outputs: head(outputs).mean(), step=0)
