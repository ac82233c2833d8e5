"""Scores against autograd, allocations against arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import (
    SupportSchedule,
    counts_by_energy,
    counts_by_score,
    counts_by_size,
    draw,
    grasp,
    layer_energies,
    shares_by_size,
    zo_grasp,
)

layers = st.lists(st.integers(1, 50), min_size=1, max_size=8)


def test_zo_grasp_is_grasp_on_a_quadratic() -> None:
    # f = x.Hx/2: an RGE of g - g' from the same directions is (1/q) sum u u^T H mu g_hat, exactly
    # (the forward bias cancels), so scores average to -x * H E[g_hat]-ish; with many directions
    # it is -x * H H x within five standard errors of the two products of means
    d, q = 4, 200_000
    h = torch.randn(d, d)
    h = h @ h.T
    x = torch.randn(d)

    s = zo_grasp(
        lambda p: ((p @ h) * p).sum(-1) / 2,
        x,
        mu=1e-3,
        q=q,
        generator=torch.Generator().manual_seed(1),
    )

    g = h @ x
    # entry i of (1/q) sum u u^T a has standard error sqrt((|a|^2 + a_i^2) / q); a = H g_hat, and
    # g_hat's own error is carried through H
    exact = h @ g
    error = ((exact @ exact + exact**2) / q).sqrt() + h.abs() @ ((g @ g + g**2) / q).sqrt()
    assert ((s + x * exact).abs() < 5 * x.abs() * error + 1e-6).all()


def test_both_gradients_use_the_same_directions() -> None:
    # on a linear loss the two estimates are the same number: scores vanish but for rounding
    # (1e-16 / mu^2); with other directions they would be of the order |x||a| / mu
    a, x = torch.randn(2, 20)

    s = zo_grasp(lambda p: p @ a, x, mu=1e-3, q=3, generator=torch.Generator().manual_seed(0))

    assert s.abs().max() < 1e-6


def test_first_order_grasp_is_minus_theta_hessian_gradient() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    inputs = torch.randn(5, 3)
    parameters = list(network.parameters())
    names = [name for name, _ in network.named_parameters()]

    def f(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([p.numel() for p in parameters])
        values = {n: v.view_as(p) for n, v, p in zip(names, parts, parameters, strict=True)}
        return torch.func.functional_call(network, values, (inputs,)).square().mean()

    theta = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(f, theta)
    gradient = torch.func.grad(f)(theta)

    scores = grasp(network(inputs).square().mean(), parameters)

    torch.testing.assert_close(scores, -theta * (hessian @ gradient), rtol=1e-10, atol=1e-12)


def test_layer_energies_are_squared_gradient_norms() -> None:
    # linear loss: slopes are N(0, |g_l|^2), their squares have variance 2 |g_l|^4
    sizes, q = [3, 10, 1], 20_000
    a = torch.randn(14)
    calls: list[int] = []

    def f(p: torch.Tensor) -> torch.Tensor:
        calls.append(len(p))
        return p @ a

    e = layer_energies(
        f, torch.zeros(14), sizes, mu=0.1, q=q, generator=torch.Generator().manual_seed(0)
    )

    exact = torch.stack([part.square().sum() for part in a.split(sizes)])
    assert ((e - exact).abs() < 5 * exact * (2 / q) ** 0.5).all()
    assert sum(calls) == 3 * q + 1


def test_counts_by_score_keep_the_smallest_with_their_sign() -> None:
    scores = torch.tensor([-5.0, 1.0, 9.0, -1.0, 0.5, -9.0])

    assert counts_by_score(scores, [2, 2, 2], 3) == [1, 1, 1]
    assert counts_by_score(scores, [2, 2, 2], 2) == [1, 0, 1]


@given(layers, st.floats(0, 1), st.floats(0, 3), st.integers(0, 2**31))
def test_counts_add_up_and_fit(sizes: list[int], share: float, p: float, seed: int) -> None:
    kept = max(1, round(share * sum(sizes)))
    energies = torch.rand(len(sizes), generator=torch.Generator().manual_seed(seed)) ** 4

    for counts in (
        counts_by_size(sizes, kept),
        counts_by_energy(energies, sizes, kept, exponent=p),
    ):
        assert sum(counts) == kept
        assert all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_counts_by_energy_at_the_exponents_of_the_docstring() -> None:
    energies, sizes = torch.tensor([4.0, 1.0]), [100, 100]

    assert counts_by_energy(energies, sizes, 30, exponent=0) == [15, 15]
    assert counts_by_energy(energies, sizes, 30, exponent=0.5) == [20, 10]
    assert counts_by_energy(energies, sizes, 30, exponent=1) == [24, 6]
    assert counts_by_energy(energies, sizes, 150, exponent=50) == [100, 50]
    assert counts_by_energy(torch.zeros(2), sizes, 30) == [15, 15]


def test_draw_respects_the_counts_and_never_repeats() -> None:
    sizes, counts = [5, 7, 3], [2, 7, 0]

    support = draw(counts, sizes, generator=torch.Generator().manual_seed(0))

    layer = torch.bucketize(support, torch.tensor([5, 12, 15]), right=True)
    assert layer.bincount(minlength=3).tolist() == counts
    assert support.unique().numel() == 9


def test_draws_are_uniform_inside_a_layer() -> None:
    n, size, count = 4_000, 10, 3
    schedule = SupportSchedule((count,), (size,))

    hits = torch.cat([schedule.at(step) for step in range(n)]).bincount(minlength=size) / n

    p = count / size
    assert ((hits - p).abs() < 5 * (p * (1 - p) / n) ** 0.5).all()


def test_fractional_shares_leave_no_layer_out() -> None:
    # every weight of every layer is drawn with probability k / d = .04, whatever the layer's size
    sizes, n = (72, 8, 19, 1), 4_000
    schedule = SupportSchedule(tuple(shares_by_size(sizes, 4)), sizes)

    draws = [schedule.at(step) for step in range(n)]

    assert {len(support) for support in draws} == {schedule.total} == {4}
    hits = torch.cat(draws).bincount(minlength=100) / n
    assert ((hits - 0.04).abs() < 5 * (0.04 * 0.96 / n) ** 0.5).all()


def test_a_schedule_redraws_every_interval() -> None:
    schedule = SupportSchedule((5,), (1_000,), interval=3)

    assert torch.equal(schedule.at(0), schedule.at(2))
    assert not torch.equal(schedule.at(2), schedule.at(3))


def test_generators_depend_on_every_argument() -> None:
    draws = [
        torch.rand(1, generator=generator_for(*arguments)).item()
        for arguments in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a", 1, 0))
    ]

    assert len(set(draws)) == 5


def test_bad_arguments_are_named() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"kept must lie in \[1, 4\], got 5"):
        counts_by_size([2, 2], 5)
    with pytest.raises(ValueError, match="exponent must be at least 0, got -1"):
        counts_by_energy(torch.ones(2), [2, 2], 1, exponent=-1)
    with pytest.raises(ValueError, match="energies must be finite"):
        counts_by_energy(torch.tensor([1.0, float("nan")]), [2, 2], 1)
    with pytest.raises(ValueError, match="sizes must add up to 3, got 4"):
        layer_energies(lambda p: p.sum(-1), torch.ones(3), [2, 2], mu=1, q=1, generator=generator)
    with pytest.raises(ValueError, match="q must be at least 1, got 0"):
        layer_energies(lambda p: p.sum(-1), torch.ones(3), [3], mu=1, q=0, generator=generator)
    with pytest.raises(ValueError, match="interval must be at least 1 step, got 0"):
        SupportSchedule((1,), (1,), interval=0)
    with pytest.raises(ValueError, match=r"shares must lie in \[0, size\], got 2 of 1"):
        SupportSchedule((2,), (1,))
    with pytest.raises(ValueError, match=r"shares must add up to a whole number, got 0\.5"):
        SupportSchedule((0.5,), (1,))
    with pytest.raises(ValueError, match="seed and counters must be at least 0, got"):
        generator_for(-1, "noise")
