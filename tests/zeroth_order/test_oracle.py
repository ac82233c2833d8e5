"""The meter to the query, and the refusals."""

import pytest
import torch
from torch import Tensor

from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter, NonFiniteAnswer, Oracle


def test_rows_are_counted_and_split_by_memory() -> None:
    sizes: list[int] = []

    def f(points: Tensor) -> Tensor:
        sizes.append(len(points))
        return points.sum(-1)

    points = torch.randn(10, 4)
    oracle = Oracle(f, memory=3 * 4 * 8)  # three rows of four float64

    assert torch.equal(oracle(points), points.sum(-1))
    assert sizes == [3, 3, 3, 1]
    assert oracle.meter.spent == 10


def test_the_budget_is_hard_and_nothing_is_asked_beyond_it() -> None:
    asked: list[int] = []
    oracle = Oracle(lambda p: asked.append(len(p)) or p.sum(-1), meter=Meter(budget=10))
    oracle(torch.ones(8, 3))

    with pytest.raises(BudgetExhausted, match="10 queries does not cover 3 more: 8 are spent"):
        oracle(torch.ones(3, 3))

    assert asked == [8]
    assert oracle.meter.spent == 8
    assert oracle.meter.remaining == 2


def test_a_failing_call_is_still_paid_for() -> None:
    def f(_: Tensor) -> Tensor:
        raise ConnectionError

    oracle = Oracle(f)
    with pytest.raises(ConnectionError):
        oracle(torch.ones(2, 1))
    assert oracle.meter.spent == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_answers_are_named(bad: float) -> None:
    def f(points: Tensor) -> Tensor:
        return torch.where(torch.arange(len(points)) == 2, bad, 1.0)

    with pytest.raises(NonFiniteAnswer, match=r"the service must answer finite values.*row 2"):
        Oracle(f, name="the service")(torch.ones(4, 1))


def test_non_finite_scores_are_named_by_row() -> None:
    def f(points: Tensor) -> Tensor:
        return points.clone().index_fill_(0, torch.tensor([1]), float("nan"))

    with pytest.raises(NonFiniteAnswer, match=r"got \[nan, nan\] at row 1 \(1 of 3"):
        Oracle(f)(torch.ones(3, 2))


def test_a_wrong_number_of_answers_is_named() -> None:
    with pytest.raises(ValueError, match="one value a point, got 1 for 3"):
        Oracle(lambda p: p.sum()[None])(torch.ones(3, 2))


def test_autograd_is_kept_out() -> None:
    def f(points: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not points.requires_grad
        return points.sum(-1)

    assert not Oracle(f)(torch.ones(2, 2, requires_grad=True)).requires_grad


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="budget must be at least 0 queries, got -1"):
        Meter(budget=-1)
    with pytest.raises(ValueError, match="memory must be at least 1 byte, got 0"):
        Oracle(lambda p: p, memory=0)
