"""The wake's twin against the solver that it repeats."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepzero_apps.correction.wake_twin import WakeTwin
from solvers.navier_stokes import Wake

Array = NDArray[np.float64]

# 2 needs five diffusion sub-steps on the finest of these grids, the others one.
RE = np.array([2.0, 100.0, 1000.0])
CASES = pytest.mark.parametrize(
    "settings",
    [
        {"rows": 20, "columns": 40},
        {"rows": 12, "columns": 40, "dt": 1.5, "inflow": 0.7},
        {"rows": 16, "columns": 24, "disc": False},
        {"rows": 20, "columns": 40, "advection": "maccormack"},
        {"rows": 12, "columns": 40, "advection": "maccormack", "dt": 5.0},
    ],
    ids=str,
)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def developed(wake: Wake) -> Array:
    fields = wake.initial(RE)
    for _ in range(10):
        fields, _ = wake.step(fields, RE)
    return fields


@CASES
def test_twin_is_the_solver_within_rounding(settings: dict[str, Any]) -> None:
    wake = Wake(**settings)
    fields, forcing = developed(wake), 0.02 * noise(3, *wake.shape)

    stepped, native = WakeTwin(wake)(
        torch.tensor(fields), torch.tensor(RE), forcing=torch.tensor(forcing)
    )

    expected, _ = wake.step(fields, RE, forcing=forcing)
    assert native is None
    # The same sums in the same order but for matrix products: units of 1e-16.
    np.testing.assert_allclose(stepped.numpy(), expected, rtol=0, atol=1e-13)


@CASES
def test_twin_stays_the_solver_over_many_steps(settings: dict[str, Any]) -> None:
    wake = Wake(**settings)
    twin, fields = WakeTwin(wake), wake.initial(RE)
    copies, reynolds = torch.tensor(fields), torch.tensor(RE)

    for _ in range(20):
        fields, _ = wake.step(fields, RE)
        copies, _ = twin(copies, reynolds)

    # Rounding grows with the flow's own instability, by less than 10 in 20 steps.
    np.testing.assert_allclose(copies.numpy(), fields, rtol=0, atol=1e-12)


@CASES
def test_gradient_is_the_solvers_by_central_differences(settings: dict[str, Any]) -> None:
    wake = Wake(**settings)
    fields, weights = developed(wake), noise(3, *wake.shape, seed=1)
    moves = 0.1 * noise(3, *wake.shape, seed=2), RE * noise(3, seed=3), noise(3, *wake.shape)
    points = [torch.tensor(at, requires_grad=True) for at in (fields, RE, 0 * fields)]

    stepped, _ = WakeTwin(wake)(points[0], points[1], forcing=points[2])
    gradients = torch.autograd.grad((stepped * torch.tensor(weights)).sum(), points)

    # Small enough to cross few kinks; rounding is 1e-16 sqrt(5000) / mu = 1e-7.
    mu = 1e-7
    for which, (gradient, move) in enumerate(zip(gradients, moves, strict=True)):
        ahead, behind = ([fields, RE, 0 * fields] for _ in range(2))
        ahead[which], behind[which] = ahead[which] + mu * move, behind[which] - mu * move
        difference = (
            wake.step(ahead[0], ahead[1], forcing=ahead[2])[0]
            - wake.step(behind[0], behind[1], forcing=behind[2])[0]
        )
        slope = (difference * weights).sum() / (2 * mu)
        assert float((gradient.numpy() * move).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_gradient_reaches_back_through_several_steps() -> None:
    wake = Wake(20, 40)
    fields, weights, move = developed(wake), noise(3, *wake.shape), noise(3, *wake.shape, seed=1)
    start = torch.tensor(fields, requires_grad=True)

    state = start
    for _ in range(4):
        state, _ = WakeTwin(wake)(state, torch.tensor(RE))
    (state * torch.tensor(weights)).sum().backward()

    assert start.grad is not None
    ends = []
    for sign in (1, -1):
        state_np = fields + sign * 1e-7 * move
        for _ in range(4):
            state_np, _ = wake.step(state_np, RE)
        ends.append((state_np * weights).sum())
    slope = (ends[0] - ends[1]) / 2e-7
    assert float((start.grad.numpy() * move).sum()) == pytest.approx(slope, rel=1e-5)


def test_inputs_stay_as_they_were() -> None:
    wake = Wake(20, 40)
    fields, reynolds = torch.tensor(developed(wake)), torch.tensor(RE)
    before = fields.clone()

    WakeTwin(wake)(fields, reynolds, forcing=torch.ones_like(fields))

    assert torch.equal(fields, before)
    assert reynolds.tolist() == RE.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": torch.zeros(3, 2, 20, 40, dtype=torch.float32)}, r"fields must be float64"),
        ({"fields": torch.zeros(3, 2, 40, 20)}, r"fields .* of shape \(b, 2, 20, 40\), got"),
        ({"parameters": torch.ones(2)}, r"parameters must have shape \(3,\), got \(2,\)"),
        ({"native": torch.ones(3, 1)}, r"native must be None, got shape \(3, 1\)"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    given = {"fields": torch.zeros(3, 2, 20, 40), "parameters": torch.tensor(RE), **arguments}

    with pytest.raises(ValueError, match=message):
        WakeTwin(Wake(20, 40))(**given)
