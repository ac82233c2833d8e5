"""Classifier training: the loss, its price, sparse supports, and CGE against backpropagation."""

import math

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision.images import Images
from deepzero_apps.vision.training import (
    ALLOCATIONS,
    Recipe,
    Sparsity,
    accuracy,
    classifier_training,
    cross_entropy,
    queries_a_step,
    support_schedule,
)
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    Randomized,
    WeightGradient,
)
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.stacked import StackedRandomized
from deepzero_apps.zeroth_order.state import Weights

CLASSES = ("a", "b", "c")


def images(count: int = 24) -> Images:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.rand(count, 1, 4, 4, dtype=torch.float32, generator=generator)
    return Images(pixels, torch.arange(count) % 3, CLASSES)


class _Small(nn.Module):
    """Float64 on the float32 pixels, so that both gradients can be compared closely."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.linear = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.conv(x.double())))
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def trained(gradient: WeightGradient, recipe: Recipe) -> Tensor:
    network = _Small()
    for _ in classifier_training(network, images(), gradient, recipe).run(recipe.steps):
        pass
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_loss_is_cross_entropy_for_each_network_and_sample() -> None:
    logits = torch.randn(4, 5, 3, dtype=torch.float32)
    labels = torch.tensor([0, 2, 1, 1, 0])

    losses = cross_entropy(labels)(logits)

    assert losses.dtype == torch.float64
    for k in range(4):
        expected = nn.functional.cross_entropy(logits[k].double(), labels, reduction="none")
        torch.testing.assert_close(losses[k], expected)


def test_cge_trains_as_backpropagation_does() -> None:
    # Central differences are off by mu^2 l''' / 6 ~ 1e-9; five steps of rate 0.1 with momentum
    # amplify that, l''' and the Hessian being of order 1 to 10 here, by less than 1e3.
    recipe = Recipe(steps=5, batch=8, lr=0.1)

    cge = trained(Coordinates(mu=1e-5, central=True), recipe)

    torch.testing.assert_close(cge, trained(FirstOrder(), recipe), rtol=0, atol=1e-6)
    assert (cge - torch.cat([p.detach().flatten() for p in _Small().parameters()])).norm() > 0.1


def test_a_first_step_of_sgd_is_the_rate_times_the_gradient() -> None:
    network, recipe = _Small(), Recipe(steps=4, batch=24, lr=0.3, momentum=0.0, weight_decay=0.2)
    data = images()
    loss = nn.functional.cross_entropy(network(data.pixels()), data.labels)
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(network.parameters()))])
    theta = torch.cat([p.detach().flatten() for p in network.parameters()])

    other = _Small()
    next(classifier_training(other, data, FirstOrder(), recipe).run(4))

    after = torch.cat([p.detach().flatten() for p in other.parameters()])
    torch.testing.assert_close(after, theta - 0.3 * (g + 0.2 * theta), rtol=0, atol=1e-12)


def test_the_rate_rises_in_the_warm_up_and_falls_along_a_half_cosine() -> None:
    recipe = Recipe(steps=10, batch=8, lr=0.4, warmup=2)
    rates = [
        m["lr"] for m in classifier_training(_Small(), images(), FirstOrder(), recipe).run(10)
    ]

    cosine = [0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx([0.2, 0.4, *cosine])


@pytest.mark.parametrize(
    ("gradient", "queries"),
    [
        (FirstOrder(), 1),
        (Coordinates(mu=1e-3), 101),
        (Coordinates(mu=1e-3, central=True), 201),
        (Coordinates(mu=1e-3, schedule=SupportSchedule((3, 2), (60, 40))), 6),
        (Randomized(mu=1e-3, q=7), 8),
        (StackedRandomized(Randomized(mu=1e-3, q=7, central=True)), 15),
    ],
)
def test_queries_of_a_step(gradient: WeightGradient, queries: int) -> None:
    assert queries_a_step(gradient, 100) == queries


def test_queries_are_charged_and_a_budget_ends_the_run_before_it_is_exceeded() -> None:
    meter = Meter(budget=20)
    recipe = Recipe(steps=9, batch=8)
    gradient = Randomized(mu=1e-3, q=7)

    run = classifier_training(_Small(), images(), gradient, recipe, meter=meter)

    assert [m["queries"] for m in run.run(9)] == [8, 16]


def test_accuracy_is_the_share_of_right_answers_and_modes_are_put_back() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(x), -1)

    network = nn.Sequential(Constant(), nn.Dropout())
    network[1].eval()

    assert accuracy(network, images(10), rows=4) == pytest.approx(30.0)  # labels 1, 4, 7
    assert [m.training for m in network] == [True, False]


@pytest.mark.parametrize(
    ("allocation", "queries"),
    [("uniform", 0), ("energy", 6 * 4 + 1), ("zo-grasp", 2 * 5), ("grasp", 2)],
)
def test_a_sparse_support_has_the_stated_size_and_price(allocation: str, queries: int) -> None:
    assert allocation in ALLOCATIONS
    network, meter = _Small(), Meter()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sparsity = Sparsity(0.75, allocation, interval=2, q=4)

    schedule = support_schedule(
        network, images(), sparsity, Recipe(steps=4, batch=8), mu=1e-4, meter=meter
    )

    assert schedule is not None
    assert schedule.total == round(0.25 * Weights(network).total)
    assert torch.equal(schedule.at(0), schedule.at(1))
    assert not torch.equal(schedule.at(1), schedule.at(2))
    assert meter.spent == queries
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_energies_find_the_layer_that_matters() -> None:
    network = _Small()
    with torch.no_grad():
        network.linear.weight.zero_()  # nothing before the last layer then has a gradient
    schedule = support_schedule(
        network, images(), Sparsity(0.8, "energy", q=4), Recipe(steps=4, batch=8), mu=1e-4
    )

    assert schedule is not None
    assert schedule.shares[:4] == (0, 0, 0, 0)


def test_a_dense_gradient_has_no_schedule_and_a_budget_covers_scores() -> None:
    recipe = Recipe(steps=4, batch=8)
    assert support_schedule(_Small(), images(), Sparsity(0.0), recipe, mu=1e-3) is None
    with pytest.raises(BudgetExhausted, match="does not cover 25 more"):
        support_schedule(
            _Small(), images(), Sparsity(0.5, "energy", q=4), recipe, mu=1e-3, meter=Meter(24)
        )


def test_augmentation_depends_on_seed_and_step_alone() -> None:
    plain = trained(FirstOrder(), Recipe(steps=2, batch=8))
    first, second = (trained(FirstOrder(), Recipe(steps=2, batch=8, augment=True)) for _ in "ab")

    assert torch.equal(first, second)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", 0, "steps must be at least 1, got 0"),
        ("batch", 0, "batch must be at least 1 image, got 0"),
        ("lr", float("nan"), "lr must be positive and finite, got nan"),
        ("momentum", 1.0, r"momentum must be in \[0, 1\), got 1.0"),
        ("weight_decay", -1.0, "weight_decay must be at least 0 and finite, got -1.0"),
        ("warmup", 5, r"warmup must be in \[0, steps\), steps being 5, got 5"),
        ("optimizer", "adagrad", "optimizer must be 'sgd' or 'adam', got 'adagrad'"),
        ("seed", -1, "seed must be at least 0, got -1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**{"steps": 5, field: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"share": float("nan")}, r"sparsity must lie in \[0, 1\), got nan"),
        ({"share": 0.5, "allocation": "best"}, "allocation must be one of uniform, .* got 'best'"),
        ({"share": 0.5, "interval": 0}, "interval must be at least 1, got 0"),
        ({"share": 0.5, "q": 0}, "q must be at least 1, got 0"),
    ],
)
def test_a_sparsity_out_of_range_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sparsity(**fields)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch must be at most the number of training images, 24"
    ):
        classifier_training(_Small(), images(), FirstOrder(), Recipe(steps=2, batch=25))
    with pytest.raises(ValueError, match="got 0 rows"):
        accuracy(_Small(), images(), rows=0)
    with pytest.raises(TypeError, match=r"gradient must be FirstOrder, .* got object"):
        queries_a_step(object(), 3)
