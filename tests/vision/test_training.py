"""Classifier training: the loss, its price, sparse supports, and CGE against backpropagation."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision.classifiers import resnet
from deepzero_apps.vision.training import (
    Recipe,
    accuracy,
    classifier_training,
    queries_a_step,
)
from deepzero_apps.workers import Sharded
from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.gradients import (
    Coordinates,
    FirstOrder,
    Randomized,
    WeightGradient,
)
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.stacked import StackedRandomized
from deepzero_apps.zeroth_order.stale import Remembered
from deepzero_apps.zeroth_order.training import Training
from tests.tiny_images import Small, images


def trained(gradient: WeightGradient, recipe: Recipe) -> Tensor:
    network = Small()
    for _ in classifier_training(network, images(), gradient, recipe).run(recipe.steps):
        pass
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_cge_trains_as_backpropagation_does() -> None:
    # Central differences are off by mu^2 l''' / 6 ~ 1e-9; five steps of rate 0.1 with momentum
    # amplify that, l''' and the Hessian being of order 1 to 10 here, by less than 1e3.
    recipe = Recipe(steps=5, batch=8, lr=0.1)

    cge = trained(Coordinates(mu=1e-5, central=True), recipe)

    torch.testing.assert_close(cge, trained(FirstOrder(), recipe), rtol=0, atol=1e-6)
    assert (cge - torch.cat([p.detach().flatten() for p in Small().parameters()])).norm() > 0.1


def test_a_first_step_of_sgd_is_the_rate_times_the_gradient() -> None:
    network, recipe = Small(), Recipe(steps=4, batch=24, lr=0.3, momentum=0.0, weight_decay=0.2)
    data = images()
    loss = nn.functional.cross_entropy(network(data.pixels()), data.labels)
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(network.parameters()))])
    theta = torch.cat([p.detach().flatten() for p in network.parameters()])

    other = Small()
    next(classifier_training(other, data, FirstOrder(), recipe).run(4))

    after = torch.cat([p.detach().flatten() for p in other.parameters()])
    torch.testing.assert_close(after, theta - 0.3 * (g + 0.2 * theta), rtol=0, atol=1e-12)


def test_an_optimizer_that_forgets_at_every_draw_has_no_momentum() -> None:
    schedule = SupportSchedule((9, 1, 2, 2, 20, 1), (27, 3, 3, 3, 36, 3))
    recipe = Recipe(steps=5, batch=8, lr=0.1)
    forgetful, plain, other = (
        trained(FirstOrder(schedule), replace(recipe, **fields))
        for fields in ({"forget_at_redraw": True}, {"momentum": 0.0}, {})
    )

    torch.testing.assert_close(forgetful, plain, rtol=0, atol=1e-12)
    assert not torch.allclose(forgetful, other)


def test_momentum_lasts_as_long_as_a_draw() -> None:
    schedule = SupportSchedule((9, 1, 2, 2, 20, 1), (27, 3, 3, 3, 36, 3), interval=2)
    recipe = Recipe(steps=2, batch=8, lr=0.1)

    kept, forgetful = (
        trained(FirstOrder(schedule), replace(recipe, forget_at_redraw=forget))
        for forget in (False, True)
    )

    assert torch.equal(kept, forgetful)


def test_a_run_stores_remembered_slopes_and_what_was_checked() -> None:
    schedule = SupportSchedule((5,), (75,))
    kinds: dict[str, tuple[WeightGradient, set[str]]] = {
        "fo": (FirstOrder(schedule), set()),
        "cge": (Coordinates(mu=1e-3, schedule=schedule), {"checks"}),
        "stale": (Remembered(Coordinates(1e-3, schedule), 0.9), {"remembered", "checks"}),
        "spread": (Sharded(Coordinates(1e-3, schedule), None), {"checks"}),  # type: ignore[arg-type]
    }

    for gradient, stored in kinds.values():
        run = classifier_training(Small(), images(), gradient, Recipe(steps=3, batch=8))
        assert set(run.state_dict()["companion"] or ()) == stored


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_run_that_is_restored_ends_with_the_same_bits(decay: float | None) -> None:
    def run() -> Training:
        plain = Coordinates(mu=1e-3, schedule=SupportSchedule((5,), (75,)))
        gradient = plain if decay is None else Remembered(plain, decay)
        return classifier_training(Small(), images(), gradient, Recipe(steps=4, batch=8))

    whole, stopped, restored = run(), run(), run()
    list(whole.run(4))
    list(stopped.run(2))
    restored.load_state_dict(stopped.state_dict())
    list(restored.run(4))

    assert restored.companion is not None
    assert restored.state_dict()["companion"]["checks"]
    ended = zip(whole.network.parameters(), restored.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in ended)


def test_the_rate_rises_in_the_warm_up_and_falls_along_a_half_cosine() -> None:
    recipe = Recipe(steps=10, batch=8, lr=0.4, warmup=2)
    rates = [m["lr"] for m in classifier_training(Small(), images(), FirstOrder(), recipe).run(10)]

    cosine = [0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx([0.2, 0.4, *cosine])


@pytest.mark.parametrize(
    ("gradient", "queries"),
    [
        (FirstOrder(), 1),
        (Coordinates(mu=1e-3), 76),
        (Coordinates(mu=1e-3, central=True), 151),
        (Coordinates(mu=1e-3, schedule=SupportSchedule((3, 2), (60, 15))), 6),
        (Remembered(Coordinates(mu=1e-3, schedule=SupportSchedule((3,), (75,))), 0.9), 4),
        (Randomized(mu=1e-3, q=7), 8),
        (StackedRandomized(Randomized(mu=1e-3, q=7, central=True)), 15),
        # three logits for the linear layer of 39 weights; the convolution's 12 outputs of 30
        (Activations(mu=1e-3), 3 + 12 + 6 + 2),
        (Activations(mu=1e-3, share=0.5), 2 + 6 + 6 + 2),
    ],
)
def test_queries_of_a_step(gradient: WeightGradient, queries: int) -> None:
    assert queries_a_step(gradient, Small(), images().pixels()) == queries


@pytest.mark.parametrize(
    ("depth", "shape", "outputs", "weights"),
    [
        # stem and stage 1 by weights, 432 + 6 x 2,304; stage 2 4,608 + 5 x 8,192, stage 3
        # 6 x 4,096, the linear layer 10 outputs, 688 channels of batch norm twice, the loss twice
        (20, (2, 3, 32, 32), 432 + 13_824 + 45_568 + 24_576 + 10 + 1_376 + 2, 269_723),
        # stem by weights; 2 x 1,024, 2 x 512 and 2 x 256 outputs
        (8, (2, 1, 8, 8), 144 + 2_048 + 1_024 + 512 + 10 + 480 + 2, 75_003),
    ],
)
def test_outputs_of_a_resnet_are_fewer_than_its_weights(
    depth: int, shape: tuple[int, ...], outputs: int, weights: int
) -> None:
    network, inputs = resnet(depth, channels=shape[1]), torch.rand(shape)

    assert queries_a_step(Activations(mu=1e-3), network, inputs) == outputs
    assert queries_a_step(Coordinates(mu=1e-3), network, inputs) == weights


def test_queries_are_charged_and_a_budget_ends_the_run_before_it_is_exceeded() -> None:
    meter = Meter(budget=20)
    recipe = Recipe(steps=9, batch=8)
    gradient = Randomized(mu=1e-3, q=7)

    run = classifier_training(Small(), images(), gradient, recipe, meter=meter)

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


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch must be at most the number of training images, 24"
    ):
        classifier_training(Small(), images(), FirstOrder(), Recipe(steps=2, batch=25))
    with pytest.raises(ValueError, match="got 0 rows"):
        accuracy(Small(), images(), rows=0)
    with pytest.raises(TypeError, match=r"gradient must be FirstOrder, .* got object"):
        queries_a_step(object(), Small(), images().pixels())
