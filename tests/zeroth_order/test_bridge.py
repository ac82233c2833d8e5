"""The bridge against autograd through the same function."""

from functools import partial

import pytest
import torch
from torch import Tensor

from deepzero_apps.zeroth_order.bridge import bridge
from deepzero_apps.zeroth_order.estimators import coordinate, randomized
from deepzero_apps.zeroth_order.oracle import Oracle


def black_box(points: Tensor) -> Tensor:
    """(k, b, 2, 3) -> (k, b, 4); smooth, not linear."""
    w = torch.linspace(-1, 1, 24).view(6, 4)
    return torch.tanh(points.flatten(2) @ w)


def gradients(through: str) -> list[Tensor]:
    torch.manual_seed(1)
    first = torch.nn.Linear(5, 6)
    last = torch.nn.Linear(4, 3)
    x = torch.randn(7, 5)
    hidden = first(x).view(7, 2, 3)
    if through == "bridge":
        y = bridge(black_box, hidden, partial(coordinate, mu=1e-5, central=True))
    else:
        y = black_box(hidden[None])[0]
    loss = torch.nn.functional.cross_entropy(last(y), torch.arange(7) % 3)
    loss.backward()
    return [p.grad for p in (*first.parameters(), *last.parameters()) if p.grad is not None]


def test_gradients_on_both_sides_of_the_black_box_are_autograd_s() -> None:
    for estimated, exact in zip(gradients("bridge"), gradients("autograd"), strict=True):
        # central: mu^2 |f'''| / 6 < 1e-10, and float64 rounding 1e-16 / mu = 1e-11
        torch.testing.assert_close(estimated, exact, rtol=0, atol=1e-9)


def test_the_randomized_backward_has_the_right_scale() -> None:
    # f linear per sample with gradient a_b: five standard errors, variance |a|^2 + a_i^2
    a = torch.randn(2, 6)
    x = torch.zeros(2, 6, requires_grad=True)
    q = 4_000

    bridge(lambda p: (p * a).sum(-1), x, partial(randomized, mu=0.1, q=q)).sum().backward()

    assert x.grad is not None
    error = ((a**2).sum(1, keepdim=True) + a**2).div(q).sqrt()
    assert ((x.grad - a).abs() < 5 * error).all()


def test_cost_is_one_forward_and_the_estimator_s_directions() -> None:
    oracle = Oracle(lambda rows: rows.sum(-1))
    x = torch.ones(3, 4, requires_grad=True)

    y = bridge(
        lambda p: oracle(p.flatten(0, 1)).view(p.shape[:2]), x, partial(randomized, mu=0.1, q=5)
    )
    assert oracle.meter.spent == 3
    y.sum().backward()
    assert oracle.meter.spent == 3 + 3 * 5


def test_the_black_box_is_never_differentiated_twice() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    y = bridge(lambda p: (p**2).sum(-1), x, partial(coordinate, mu=0.1))

    (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
