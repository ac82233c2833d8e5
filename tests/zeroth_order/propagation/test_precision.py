"""What float32 and bfloat16 leave of differences, against float64 and against autograd."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.vision.classifiers import resnet
from deepzero_apps.zeroth_order.differences import Engine, Sequential
from deepzero_apps.zeroth_order.engines import DifferencePropagation
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.propagation.fused import groups_of
from deepzero_apps.zeroth_order.state import Weights

BATCH = 16
MU = 1e-4


@pytest.fixture(params=[True, False], ids=["train", "eval"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A ResNet-20 after some steps: its norms have statistics, its gradient a size."""
    generator = torch.Generator().manual_seed(0)
    network = resnet(20, generator=generator).float()
    labels = torch.arange(BATCH) % 10
    patterns = torch.randn(10, 3, 16, 16, dtype=torch.float32, generator=generator)
    noise = torch.randn(BATCH, 3, 16, 16, dtype=torch.float32, generator=generator)
    images = patterns[labels] + noise
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.train(request.param), images, labels


def exact(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    network = copy.deepcopy(network).double()
    loss = functional.cross_entropy(network(images.double()), labels)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([g.flatten() for g in gradients])


def some(network: nn.Module) -> Tensor:
    total = Weights(network).total
    return torch.randperm(total, generator=torch.Generator().manual_seed(1))[:150]


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_the_floor_of_float32_is_ten_times_below_that_of_differences_of_losses(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, images, labels = trained
    coordinates, head = some(network)[:40], CrossEntropy(labels)
    g = exact(network, images, labels)[coordinates]

    def errors(engine: Engine) -> list[float]:
        evaluation = engine.prepare(network, images, head)
        steps = (1e-3, 1e-4, 1e-5, 1e-6)
        return [relative(evaluation.differences(coordinates, mu=mu) / mu, g) for mu in steps]

    propagated = errors(DifferencePropagation())
    assert min(propagated) < min(errors(Sequential())) / 10
    # the share of curvature and of crossed kinks falls with mu, if in jumps
    assert propagated[2] < propagated[0] / 10


def test_bfloat16_convolutions_cost_no_more_than_two_percent(
    trained: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, images, labels = trained
    coordinates = some(network)
    g = exact(network, images, labels)[coordinates]
    engine = DifferencePropagation(precision=torch.bfloat16)
    evaluation = engine.prepare(network, images, CrossEntropy(labels))
    assert relative(evaluation.differences(coordinates, mu=MU) / MU, g) < 0.02


def test_groups_of_a_resnet_hold_norm_shortcut_and_relu() -> None:
    from deepzero_apps.zeroth_order.base_pass import BasePass
    from deepzero_apps.zeroth_order.graph import trace

    network = resnet(8)
    with torch.no_grad():
        base = BasePass(trace(network), network, torch.randn(2, 3, 8, 8), moves=False)
    groups = groups_of(base).values()
    assert len(groups) == 7  # the stem, and two a block
    assert sum(group.total is not None for group in groups) == 3
    assert all(group.relu is not None for group in groups)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_kernels_equal_rules(training: bool) -> None:
    """The same network in float64 goes through the rules, in float32 through the kernels."""
    network = resnet(8, channels=2).train(training)
    images, labels = torch.randn(5, 2, 8, 8), torch.arange(5)
    coordinates = torch.arange(0, Weights(network).total, 401)
    by_rules = DifferencePropagation().prepare(network, images, CrossEntropy(labels))
    expected = by_rules.differences(coordinates, mu=1e-2)

    by_kernels = DifferencePropagation().prepare(
        copy.deepcopy(network).float(), images.float(), CrossEntropy(labels)
    )
    got = by_kernels.differences(coordinates, mu=1e-2)

    # float32 rounding, 6e-8 an operation, of some tens of operations of norms over five images
    assert relative(got, expected) < 2e-5


def test_a_shortcut_that_differs_on_another_dimension_joins_before_the_relu() -> None:
    class Sideways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.columns = nn.Linear(6, 6)
            self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.columns(x)
            return torch.relu(self.norm(self.conv(y)) + y).mean((2, 3))

    network, images = Sideways(), torch.randn(5, 2, 6, 6)
    labels, coordinates = torch.arange(5) % 2, torch.arange(0, 42, 5)
    head = CrossEntropy(labels)
    expected = Sequential().prepare(network, images, head).differences(coordinates, mu=0.1)

    single = copy.deepcopy(network).float()
    evaluation = DifferencePropagation().prepare(single, images.float(), head)

    assert relative(evaluation.differences(coordinates, mu=0.1), expected) < 2e-5
