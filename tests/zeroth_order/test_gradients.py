"""The three gradients of a network's weights against autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.engines import Fastest
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    Randomized,
    WeightGradient,
    network_loss,
)
from deepzero_apps.zeroth_order.sparsity import SupportSchedule, grasp, layer_energies, zo_grasp
from deepzero_apps.zeroth_order.state import Weights

TARGETS = torch.arange(6) % 3


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )


def inputs() -> Tensor:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def head(outputs: Tensor) -> Tensor:
    k, b = outputs.shape[:2]
    losses = functional.cross_entropy(outputs.flatten(0, 1), TARGETS.repeat(k), reduction="none")
    return losses.view(k, b)


def flat_gradient(gradient: WeightGradient, step: int = 0) -> Tensor:
    net = network()
    gradient(net, inputs(), head, step=step)
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def test_central_coordinates_are_autograd_s() -> None:
    # mu^2 |f'''| / 6 ~ 1e-9 and rounding 1e-16 / mu ~ 1e-11
    exact = flat_gradient(FirstOrder())

    torch.testing.assert_close(
        flat_gradient(Coordinates(mu=3e-5, central=True)), exact, rtol=0, atol=1e-8
    )


def test_forward_coordinates_have_an_error_of_order_mu() -> None:
    exact = flat_gradient(FirstOrder())
    errors = [float((flat_gradient(Coordinates(mu=mu)) - exact).norm()) for mu in (2e-3, 1e-3)]

    assert errors[0] / errors[1] == pytest.approx(2, rel=0.01)  # the next term is mu/6 |f'''|


def test_sparse_gradients_agree_on_the_same_support_and_vanish_off_it() -> None:
    sizes = Weights(network()).sizes
    schedule = SupportSchedule(tuple(min(s, 2) for s in sizes), sizes)

    exact = flat_gradient(FirstOrder(schedule), step=5)
    estimate = flat_gradient(Coordinates(mu=3e-5, central=True, schedule=schedule), step=5)

    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-8)
    off = torch.ones_like(exact).index_fill_(0, schedule.at(5), 0)
    assert (exact * off).abs().max() == 0


def test_randomized_is_within_five_standard_errors() -> None:
    # directional slopes of a smooth loss at mu = 1e-4 are linear to 1e-4; variance |g|^2 + g_i^2
    exact = flat_gradient(FirstOrder())
    q = 400

    estimate = flat_gradient(Randomized(mu=1e-4, q=q))

    error = ((exact @ exact + exact**2) / q).sqrt()
    assert ((estimate - exact).abs() < 5 * error + 1e-3).all()


def test_directions_are_others_in_every_step_and_number() -> None:
    plain, like = Randomized(mu=1e-3, q=2), torch.empty(500)
    drawn = [plain.direction(step, number, like=like) for step, number in ((0, 0), (0, 1), (1, 0))]

    # correlations of independent Gaussian numbers: 1/sqrt(500) = .045, times 4
    assert (torch.corrcoef(torch.stack(drawn)) - torch.eye(3)).abs().max() < 0.18
    assert not torch.equal(flat_gradient(plain, step=0), flat_gradient(plain, step=1))


@pytest.mark.parametrize(
    ("gradient", "cost"),
    [
        (Coordinates(mu=1e-3), 51 + 1),
        (Coordinates(mu=1e-3, central=True), 2 * 51 + 1),
        (Randomized(mu=1e-3, q=4), 5),
        (Randomized(mu=1e-3, q=4, central=True), 9),
    ],
    ids=str,
)
def test_cost_is_as_stated_and_the_head_is_never_differentiated(
    gradient: WeightGradient, cost: int
) -> None:
    seen: list[int] = []

    def counting(outputs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not outputs.requires_grad
        seen.append(len(outputs))
        return head(outputs)

    gradient(network(), inputs(), counting, step=0)  # weights: 18 + 2, 2 + 2 and 24 + 3

    assert sum(seen) == cost


def test_running_statistics_move_once_a_step_as_in_first_order_training() -> None:
    nets = [network(), network(), network()]
    for net, gradient in zip(
        nets, (FirstOrder(), Coordinates(mu=1e-3), Randomized(mu=1e-3, q=3)), strict=True
    ):
        gradient(net, inputs(), head, step=0)

    for net in nets[1:]:
        for buffer, expected in zip(net.buffers(), nets[0].buffers(), strict=True):
            assert torch.equal(buffer, expected)


def test_scores_of_a_network_by_values_follow_autograd_s() -> None:
    net = network().eval()
    evaluation = Fastest().prepare(net, inputs(), head)
    weights = Weights(net)
    theta = torch.cat([p.detach().flatten() for p in weights.parameters])
    generator = torch.Generator().manual_seed(0)

    scores = zo_grasp(
        network_loss(evaluation, weights), theta, mu=1e-3, q=1_000, generator=generator
    )
    exact = grasp(head(net(inputs())[None])[0].mean(), weights.parameters)

    # relative noise of two chained estimates is about sqrt(2 d / q) = .32: cosine near .95
    assert functional.cosine_similarity(scores, exact, dim=0) > 0.8


def test_layer_energies_of_a_network_are_squared_gradient_norms() -> None:
    net = network()
    weights = Weights(net)
    evaluation = Fastest().prepare(net, inputs(), head)
    theta = torch.cat([p.detach().flatten() for p in weights.parameters])
    q = 400

    energies = layer_energies(
        network_loss(evaluation, weights),
        theta,
        weights.sizes,
        mu=1e-4,
        q=q,
        generator=torch.Generator().manual_seed(0),
    )

    exact = torch.stack(
        [part.square().sum() for part in flat_gradient(FirstOrder()).split(list(weights.sizes))]
    )
    # squares of N(0, |g_l|^2) have variance 2 |g_l|^4; finite mu adds relative 1e-4 of the scale
    # (the bias of a convolution before batch norm has no gradient at all: only that remains)
    assert ((energies - exact).abs() < 5 * exact * (2 / q) ** 0.5 + 1e-5).all()


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="mu must be positive, got 0"):
        Coordinates(mu=0)
    with pytest.raises(ValueError, match="q must be positive, got 0"):
        Randomized(mu=1e-3, q=0)


def test_a_head_that_averages_is_refused() -> None:
    def averaging(outputs: Tensor) -> Tensor:
        return head(outputs).mean()

    bad: Head = averaging
    with pytest.raises(ValueError, match="one loss a network and sample"):
        Coordinates(mu=1e-3)(network(), inputs(), bad, step=0)
