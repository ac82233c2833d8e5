"""Sparse supports of a classifier: sizes, prices, refusals."""

import pytest
import torch

from deepzero_apps.vision.supports import ALLOCATIONS, Sparsity, support_schedule
from deepzero_apps.vision.training import Recipe
from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.state import Weights
from tests.tiny_images import Small, images


@pytest.mark.parametrize(
    ("allocation", "queries"),
    [("uniform", 0), ("energy", 6 * 4 + 1), ("zo-grasp", 2 * 5), ("grasp", 2)],
)
def test_a_sparse_support_has_the_stated_size_and_price(allocation: str, queries: int) -> None:
    assert allocation in ALLOCATIONS
    network, meter = Small(), Meter()
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
    network = Small()
    with torch.no_grad():
        network.linear.weight.zero_()  # nothing before the last layer then has a gradient
    schedule = support_schedule(
        network, images(), Sparsity(0.8, "energy", q=4), Recipe(steps=4, batch=8), mu=1e-4
    )

    assert isinstance(schedule, SupportSchedule)
    assert schedule.shares[:4] == (0, 0, 0, 0)


def test_a_cyclic_order_walks_the_same_shares() -> None:
    recipe = Recipe(steps=4, batch=8)
    drawn = support_schedule(Small(), images(), Sparsity(0.9), recipe, mu=1e-4)
    walked = support_schedule(Small(), images(), Sparsity(0.9, order="cyclic"), recipe, mu=1e-4)

    assert isinstance(walked, CyclicSchedule)
    assert walked.plain == drawn
    # 75 weights, 7 a draw: a layer's cycle is 75 / 7 draws, and one more for the rounding
    assert len(torch.cat([walked.at(step) for step in range(12)]).unique()) == 75


def test_a_dense_gradient_has_no_schedule_and_a_budget_covers_scores() -> None:
    recipe = Recipe(steps=4, batch=8)
    assert support_schedule(Small(), images(), Sparsity(0.0), recipe, mu=1e-3) is None
    with pytest.raises(BudgetExhausted, match="does not cover 25 more"):
        support_schedule(
            Small(), images(), Sparsity(0.5, "energy", q=4), recipe, mu=1e-3, meter=Meter(24)
        )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"share": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"share": float("nan")}, r"sparsity must lie in \[0, 1\), got nan"),
        ({"share": 0.5, "allocation": "best"}, "allocation must be one of uniform, .* got 'best'"),
        ({"share": 0.5, "order": "sorted"}, "order must be random or cyclic, got 'sorted'"),
        ({"share": 0.5, "interval": 0}, "interval must be at least 1, got 0"),
        ({"share": 0.5, "q": 0}, "q must be at least 1, got 0"),
    ],
)
def test_a_sparsity_out_of_range_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sparsity(**fields)
