"""Stacked copies against the plain estimate, and the refusal of networks that cannot be stacked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision import adjustable_cnn
from deepzero_apps.zeroth_order.directions import Sphere
from deepzero_apps.zeroth_order.engines import SlowEngineWarning
from deepzero_apps.zeroth_order.gradients import Randomized
from deepzero_apps.zeroth_order.stacked import StackedRandomized

# In float64 both ways agree to a few units of 1e-16 in a loss, divided by mu = 1e-3.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def head(outputs: Tensor) -> Tensor:
    return outputs.square().mean(-1)


def gradient_of(network: nn.Module, estimate: Randomized | StackedRandomized, x: Tensor) -> Tensor:
    network.zero_grad()
    estimate(network, x, head, step=3)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("central", [True, False])
def test_stacked_copies_give_the_plain_estimate(
    training: bool, channels: int, central: bool
) -> None:
    network = adjustable_cnn(2, width=4, channels=channels).train(training)
    x = torch.rand(6, channels, 8, 8)
    plain = Randomized(mu=1e-3, q=7, seed=2, central=central)

    stacked = gradient_of(network, StackedRandomized(plain, copies=3), x)

    torch.testing.assert_close(stacked, gradient_of(network, plain, x), **CLOSE)


def test_what_was_checked_is_believed_in_place_of_a_check() -> None:
    network, x = adjustable_cnn(2, width=4), torch.rand(6, 3, 8, 8)
    first, second = (StackedRandomized(Randomized(mu=1e-3, q=7), copies=3) for _ in range(2))
    gradient_of(network, first, x)
    (key,) = first.checked(network)

    second.believe(network, {key: False})
    alone = second.begin(network, x, head, step=0).lengths
    second.believe(network, first.checked(network))

    assert alone == [1] * 7
    assert second.begin(network, x, head, step=0).lengths == [3, 3, 1]


def test_strides_groups_fixed_weights_and_shared_linear_layers_are_stacked() -> None:
    convolutions = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    convolutions[4].bias.requires_grad_(False)
    plain = Randomized(mu=1e-3, q=5, directions=Sphere())
    for network, x in (
        (convolutions, torch.rand(6, 2, 8, 8)),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.rand(6, 3)),
    ):
        stacked = gradient_of(network, StackedRandomized(plain, copies=2), x)
        torch.testing.assert_close(stacked, gradient_of(network, plain, x), **CLOSE)


def test_a_step_moves_running_statistics_once_and_leaves_weights() -> None:
    network = adjustable_cnn(1, width=3, channels=1)
    twin = adjustable_cnn(1, width=3, channels=1)
    twin.load_state_dict(network.state_dict())
    x = torch.rand(6, 1, 8, 8)

    StackedRandomized(Randomized(mu=1e-3, q=5))(network, x, head, step=0)
    twin(x)

    for name, value in twin.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


class _AcrossChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda: (nn.Conv2d(1, 3, 3), _AcrossChannels(), nn.Flatten()), (4, 1, 5, 5)),
        (lambda: (nn.Linear(3, 3), nn.LayerNorm(3)), (4, 3)),
        (lambda: (nn.Linear(3, 8), nn.Dropout(0.5)), (4, 3)),
    ],
    ids=["mixes channels", "has no rule", "draws numbers"],
)
def test_a_network_that_cannot_be_stacked_is_announced_and_estimated_plainly(
    layers: Callable[[], tuple[nn.Module, ...]], shape: tuple[int, ...]
) -> None:
    network = nn.Sequential(*layers())
    x = torch.rand(shape)
    plain = Randomized(mu=1e-3, q=4)
    torch.manual_seed(1)
    expected = gradient_of(network, plain, x)

    torch.manual_seed(1)
    with pytest.warns(SlowEngineWarning, match="runs once for every direction"):
        actual = gradient_of(network, StackedRandomized(plain), x)

    torch.testing.assert_close(actual, expected, **CLOSE)


def test_a_number_of_copies_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        StackedRandomized(Randomized(mu=1e-3, q=1), copies=0)
