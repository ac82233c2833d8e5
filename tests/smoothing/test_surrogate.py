"""A surrogate learns what it is shown, remembers within bounds, and resumes."""

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.surrogate import Surrogate, surrogate_network


def teacher(images: Tensor) -> Tensor:
    torch.manual_seed(1)
    return images.flatten(1) @ torch.randn(64, 4)


def network() -> nn.Module:
    return surrogate_network((1, 8, 8), 4, width=4)


def test_the_divergence_falls_by_half_within_a_hundred_updates() -> None:
    surrogate = Surrogate(network(), updates=5, rows=64)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 8, 8, generator=source)

    divergences = [surrogate.learn(x, teacher(x), source) for _ in range(20)]

    assert divergences[-1] < divergences[0] / 2


def test_memory_keeps_the_newest_answers_only() -> None:
    surrogate = Surrogate(network(), updates=0, capacity=10)
    x = torch.arange(25.0).view(25, 1, 1, 1).expand(25, 1, 8, 8)
    source = torch.Generator()
    for part in (x[:4], x[4:8], x[8:25]):
        surrogate.learn(part, part[:, 0, 0, :4] + torch.arange(4), source)

    assert surrogate.images is not None
    assert sorted(surrogate.images[:, 0, 0, 0].tolist()) == list(range(15, 25))
    assert surrogate.answers is not None
    assert torch.equal(surrogate.answers[:, 0], surrogate.images[:, 0, 0, 0])


def test_a_restored_surrogate_goes_on_with_the_same_bits() -> None:
    x = torch.rand(30, 1, 8, 8)

    def learn(surrogate: Surrogate, step: int) -> None:
        surrogate.learn(
            x[step * 10 :][:10], teacher(x[step * 10 :][:10]), torch.Generator().manual_seed(step)
        )
        surrogate.compare(x[step], 2 * x[step])

    whole = Surrogate(network())
    for step in range(3):
        learn(whole, step)
    first = Surrogate(network())
    learn(first, 0)
    second = Surrogate(surrogate_network((1, 8, 8), 4, width=4, seed=9))
    second.load_state_dict(first.state_dict())
    learn(second, 1)
    learn(second, 2)

    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.beta == whole.beta == 0.5


def test_building_a_surrogate_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    network()

    assert torch.equal(torch.rand(1), expected)


def test_labels_are_learnt_as_well_as_scores() -> None:
    surrogate = Surrogate(network(), updates=5, rows=64)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(200, 1, 8, 8, generator=source)
    labels = teacher(x).argmax(1)

    entropies = [surrogate.learn(x, labels, source) for _ in range(30)]

    assert entropies[-1] < entropies[0] / 2
    right = (surrogate.network(x).argmax(1) == labels).double().mean()
    assert float(right) > 0.75  # of four classes


@pytest.mark.parametrize("labels", [True, False])
def test_lost_answers_are_not_remembered(labels: bool) -> None:
    surrogate = Surrogate(network(), updates=1)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8)
    lost = torch.full((3,), -1) if labels else torch.zeros(3, 4)
    mixed = lost.clone()
    mixed[1] = 2 if labels else torch.arange(4.0)

    assert surrogate.learn(x, lost, source) == 0
    surrogate.learn(x, mixed, source)

    assert surrogate.seen == 1
    assert surrogate.images is not None
    assert torch.equal(surrogate.images[0], x[1])
