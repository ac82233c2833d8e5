"""The estimators against gradients known in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepzero_apps.zeroth_order import estimators
from deepzero_apps.zeroth_order.directions import Directions, Gaussian, Rademacher, Sphere
from deepzero_apps.zeroth_order.estimators import Loss, coordinate, randomized

D = 10
LAWS = [Gaussian(), Sphere(), Rademacher()]


def variance(directions: Directions, a: Tensor) -> Tensor:
    """Of one estimate of the gradient a of a linear loss, a coordinate (table in directions.py)."""
    d, square = len(a), a @ a
    if isinstance(directions, Sphere):  # E[(c (a.u) u_i)^2] with E[u_i^2 u_j^2] = 1/(d(d+2))
        return (d * square + 2 * d * a**2) / (d + 2) - a**2
    return square + a**2 if isinstance(directions, Gaussian) else square - a**2


@pytest.mark.parametrize("mu", [1e-1, 1e-3])
def test_forward_coordinate_bias_is_half_mu_curvature(mu: float) -> None:
    h, x = torch.rand(D), torch.randn(D)

    g = coordinate(lambda p: (h * p**2).sum(-1) / 2, x, mu=mu)

    # float64: values of about 10 are rounded to 1e-15, divided by mu = 1e-3
    torch.testing.assert_close(g - h * x, mu * h / 2, rtol=0, atol=1e-11)


def test_central_coordinate_is_exact_on_a_quadratic() -> None:
    h, x = torch.rand(D), torch.randn(D)

    g = coordinate(lambda p: (h * p**2).sum(-1) / 2, x, mu=0.5, central=True)

    torch.testing.assert_close(g, h * x, rtol=0, atol=1e-13)


def test_central_coordinate_error_falls_with_the_square_of_mu() -> None:
    x = torch.randn(D)

    def error(mu: float) -> float:
        g = coordinate(lambda p: p.exp().sum(-1), x, mu=mu, central=True)
        return float((g - x.exp()).abs().max())

    order = torch.tensor(error(2e-2) / error(1e-2)).log2()
    assert order == pytest.approx(2, abs=0.01)  # next term of the series: mu^2 / 20 = 2e-5


def test_coordinate_is_zero_off_its_support_and_exact_on_it() -> None:
    a, x = torch.randn(2, D)
    support = torch.tensor([4, 1])

    g = coordinate(lambda p: p @ a, x, mu=1e-3, support=support)

    expected = torch.zeros(D).index_copy(0, support, a[support])
    torch.testing.assert_close(g, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("directions", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize(("mu", "central"), [(1e-2, False), (1.0, False), (1.0, True)])
def test_randomized_is_within_five_standard_errors(
    directions: Directions, mu: float, central: bool
) -> None:
    a, x = torch.randn(2, D)
    q = 4_000

    g = randomized(lambda p: p @ a, x, mu=mu, q=q, directions=directions, central=central)

    standard_error = (variance(directions, a) / q).sqrt()
    assert ((g - a).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("directions", LAWS, ids=lambda law: type(law).__name__)
def test_variance_of_one_direction_is_the_table_s(directions: Directions) -> None:
    # 40,000 problems of one direction each; the sample variance of a variable with kurtosis
    # below 15 is within 5 * sqrt(14 / 40,000) = 9.4 % of the true one
    n = 40_000
    a = torch.randn(D)
    x = torch.zeros(n, D)

    g = randomized(lambda p: p @ a, x, mu=1.0, q=1, directions=directions, batch_dims=1)

    torch.testing.assert_close(g.var(0), variance(directions, a), rtol=0.094, atol=1e-9)


@pytest.mark.parametrize(
    ("estimate", "cost"),
    [
        (lambda f, x: coordinate(f, x, mu=1e-3), D + 1),
        (lambda f, x: coordinate(f, x, mu=1e-3, central=True), 2 * D),
        (lambda f, x: coordinate(f, x, mu=1e-3, support=torch.arange(3)), 4),
        (lambda f, x: coordinate(f, x, mu=1e-3, base=x.sum()), D),
        (lambda f, x: randomized(f, x, mu=1e-3, q=7), 8),
        (lambda f, x: randomized(f, x, mu=1e-3, q=7, central=True), 14),
        (lambda f, x: randomized(f, x, mu=1e-3, q=7, base=x.sum()), 7),
    ],
)
def test_cost_is_as_stated_and_nothing_is_differentiated_or_changed(
    estimate: Callable[[Loss, Tensor], Tensor], cost: int
) -> None:
    seen: list[int] = []

    def f(p: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not p.requires_grad
        seen.append(len(p))
        return p.sum(-1)

    x = torch.ones(D, requires_grad=True)
    estimate(f, x)

    assert sum(seen) == cost
    assert x.grad is None
    assert torch.equal(x, torch.ones(D))


@pytest.mark.parametrize("central", [False, True])
def test_a_batch_of_problems_is_the_same_as_each_alone(central: bool) -> None:
    h, x = torch.rand(3, 2, 2), torch.randn(3, 2, 2)

    together = coordinate(
        lambda p: (h * p**3).flatten(2).sum(2), x, mu=0.1, central=central, batch_dims=1
    )

    for i in range(3):
        alone = coordinate(
            lambda p, i=i: (h[i] * p**3).flatten(1).sum(1), x[i], mu=0.1, central=central
        )
        torch.testing.assert_close(together[i], alone, rtol=1e-13, atol=1e-13)


def test_problems_of_a_batch_have_directions_of_their_own() -> None:
    g = randomized(lambda p: p.sum(-1), torch.zeros(2, D), mu=1.0, q=1, batch_dims=1)

    assert not torch.allclose(g[0], g[1])


def test_the_same_generator_gives_the_same_bits() -> None:
    def g() -> Tensor:
        source = torch.Generator().manual_seed(3)
        return randomized(lambda p: (p**2).sum(-1), torch.ones(D), mu=0.1, q=5, generator=source)

    assert torch.equal(g(), g())


def test_blocks_of_points_do_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(D)
    whole = coordinate(lambda p: p.exp().sum(-1), x, mu=0.1)

    monkeypatch.setattr(estimators, "BLOCK", 3 * D)

    # the values are computed row by row: only the order of memory differs
    torch.testing.assert_close(
        coordinate(lambda p: p.exp().sum(-1), x, mu=0.1), whole, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("mu", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_bad_step_is_named(mu: float) -> None:
    with pytest.raises(ValueError, match=r"mu must be positive and finite, got"):
        coordinate(lambda p: p.sum(-1), torch.ones(3), mu=mu)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (torch.tensor([0, 3]), r"support must lie in \[0, 3\), got 3"),
        (torch.tensor([-1]), r"support must lie in \[0, 3\), got -1"),
        (torch.tensor([1, 1]), "must not repeat a coordinate"),
        (torch.tensor([1.0]), r"integer indices of shape \(s,\), got torch.float32"),
        (torch.tensor([True, False, True]), "integer indices"),
    ],
)
def test_a_bad_support_is_named(support: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coordinate(lambda p: p.sum(-1), torch.ones(3), mu=1.0, support=support)


def test_other_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="q must be at least 1, got 0"):
        randomized(lambda p: p.sum(-1), torch.ones(3), mu=1.0, q=0)
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        coordinate(lambda p: p.sum(-1), torch.arange(3), mu=1.0)
    with pytest.raises(ValueError, match="an axis more than batch_dims"):
        coordinate(lambda p: p.sum(-1), torch.ones(3), mu=1.0, batch_dims=1)
    with pytest.raises(ValueError, match=r"values of shape \(4,\), got \(\)"):
        coordinate(torch.sum, torch.ones(3), mu=1.0)
    with pytest.raises(ValueError, match=r"base must be of shape \(2,\), got \(3,\)"):
        coordinate(lambda p: p.sum(-1), torch.ones(2, 3), mu=1.0, batch_dims=1, base=torch.ones(3))
