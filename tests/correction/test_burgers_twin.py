import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.correction.burgers_twin import BurgersTwin
from solvers.burgers import Burgers


def pair(
    dimensions: int, *, substeps: int = 1, forced: bool = True
) -> tuple[Burgers, BurgersTwin]:
    settings = {"dimensions": dimensions, "length": 7.0, "dt": 0.15, "substeps": substeps}
    return Burgers(9, **settings, forced=forced), BurgersTwin(9, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("forced", [True, False])
def test_twin_equals_the_solver_over_twenty_steps(dimensions: int, forced: bool) -> None:
    solver, twin = pair(dimensions, substeps=2, forced=forced)
    nu = np.array([0.0, 0.1, 0.4])
    fields, native = solver.initial(nu, seed=0)
    forcing = np.random.default_rng(0).normal(size=fields.shape)
    u, state = torch.tensor(fields), None if native is None else torch.tensor(native)
    for _ in range(20):
        fields, native = solver.step(fields, nu, native, forcing=forcing)
        u, state = twin(u, torch.tensor(nu), state, forcing=torch.tensor(forcing))
    # Monotone steps do not amplify rounding: 20 steps of a few units of 1e-16 at size 3.
    assert np.abs(u.numpy() - fields).max() < 1e-12
    if native is not None:
        assert state is not None
        np.testing.assert_array_equal(state.numpy(), native)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_gradients_equal_central_differences_of_the_solver(dimensions: int) -> None:
    solver, twin = pair(dimensions)
    nu = np.array([0.1, 0.3])
    fields, native = solver.initial(nu, seed=1)
    rng = np.random.default_rng(0)
    forcing, cotangent = rng.normal(size=fields.shape), torch.tensor(rng.normal(size=fields.shape))
    arguments = [fields, nu, native, forcing]
    leaves = [torch.tensor(value, requires_grad=True) for value in arguments]
    after, _ = twin(leaves[0], leaves[1], leaves[2], forcing=leaves[3])
    gradients = torch.autograd.grad((after * cotangent).sum(), leaves)

    mu = 1e-5
    for which, gradient in enumerate(gradients):
        direction = rng.normal(size=arguments[which].shape)
        ends = []
        for sign in (1, -1):
            moved = list(arguments)
            moved[which] = moved[which] + sign * mu * direction
            ends.append(solver.step(*moved[:3], forcing=moved[3])[0])  # type: ignore[arg-type]
        slope = float((cotangent.numpy() * (ends[0] - ends[1])).sum() / (2 * mu))
        # mu^2 times third derivatives below 100, and rounding 1e-16 * 200 / mu.
        assert slope == pytest.approx(float((gradient.numpy() * direction).sum()), abs=3e-8)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_gradient_at_a_cell_at_rest_is_the_central_difference_of_the_kink(
    dimensions: int,
) -> None:
    solver, twin = pair(dimensions, forced=False)
    cell, nu, mu = (0, 0, *(4,) * dimensions), np.array([0.2]), 1e-6
    start = np.random.default_rng(0).normal(size=(1, *solver.shape))
    start[cell] = 0.0
    fields = torch.tensor(start, requires_grad=True)
    gradient = torch.autograd.grad(twin(fields, torch.tensor(nu))[0][cell], fields)[0]
    ends = []
    for moved in (start.copy(), start.copy()):
        moved[cell] = mu * (-1) ** len(ends)
        ends.append(float(solver.step(moved, nu)[0][cell]))
    # Second derivatives, at most 4 h / dx, jump at rest; and rounding 1e-16 / mu.
    assert (ends[0] - ends[1]) / (2 * mu) == pytest.approx(float(gradient[cell]), abs=mu)


def test_autograd_agrees_with_torch_own_differences() -> None:
    _, twin = pair(2)
    u = torch.randn(1, *twin.shape, requires_grad=True)
    nu = torch.tensor([0.1], requires_grad=True)

    def step(u: Tensor, nu: Tensor) -> Tensor:
        return twin(u, nu)[0]

    assert torch.autograd.gradcheck(step, (u, nu))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fields": torch.zeros(1, 2, 9, 8)}, "fields must have shape"),
        ({"parameters": torch.zeros(2)}, r"parameters must have shape \(1,\), got \(2,\)"),
        ({"native": torch.zeros(1, 82)}, r"native must have shape \(1, 1 \+ W \* 6\), got"),
        ({"native": torch.zeros(2, 121)}, "native must have shape"),
        ({"forcing": torch.zeros(2, 9, 9)}, "forcing must have shape"),
    ],
)
def test_states_that_do_not_fit_are_refused(change: dict[str, Tensor], match: str) -> None:
    state = {"fields": torch.zeros(1, 2, 9, 9), "parameters": torch.zeros(1)} | change
    with pytest.raises(ValueError, match=match):
        pair(2)[1](**state)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cells": 2}, "cells must be at least 3, got 2"),
        ({"dimensions": 3}, "dimensions must be 1 or 2, got 3"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
        ({"dt": 0.0}, r"dt must be positive and finite, got 0\.0"),
        ({"length": float("inf")}, "length must be positive and finite, got inf"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BurgersTwin(**{"cells": 8, **arguments})
