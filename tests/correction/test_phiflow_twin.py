"""The twin against the numpy solver: its values, and central differences of them."""

from collections.abc import Callable

import numpy as np
import phiml.math
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.phiflow_twin import PhiFlowTwin
from solvers.phiflow_burgers import PhiFlowBurgers
from solvers.phiflow_smoke import PhiFlowSmoke
from solvers.phiflow_wake import PhiFlowWake

Array = NDArray[np.float64]
Simulator = PhiFlowWake | PhiFlowBurgers | PhiFlowSmoke

MAKERS: dict[str, tuple[Callable[[], Simulator], list[float]]] = {
    "wake": (lambda: PhiFlowWake(8, 16, tolerance=1e-13), [60.0, 300.0]),
    "burgers 1-D": (lambda: PhiFlowBurgers(12, dimensions=1), [0.1, 0.5]),
    "burgers 2-D": (lambda: PhiFlowBurgers(8), [0.1, 0.5]),
    "smoke": (lambda: PhiFlowSmoke(8, 6, tolerance=1e-13), [0.05, 0.1]),
}


def arguments(simulator: Simulator, values: list[float]) -> list[Array | None]:
    """Fields, parameters, native part and forcing, of a flow that moves."""
    parameters = np.array(values)
    start = simulator.initial(parameters, seed=1)
    fields, native = start if isinstance(start, tuple) else (start, None)
    fields, native = simulator.step(fields, parameters, native)
    forcing = 0.1 * np.random.default_rng(0).standard_normal(fields.shape)
    return [fields, parameters, native, forcing]


def tensors(arrays: list[Array | None], *, grad: bool = False) -> list[Tensor | None]:
    return [None if x is None else torch.tensor(x, requires_grad=grad) for x in arrays]


def stepped(simulator: Simulator, given: list[Array | None]) -> list[Array]:
    fields, parameters, native, forcing = given
    assert fields is not None
    assert parameters is not None
    answers = simulator.step(fields, parameters, native, forcing=forcing)
    return [answer for answer in answers if answer is not None]


def called(twin: PhiFlowTwin, given: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    fields, parameters, native, forcing = given
    assert fields is not None
    assert parameters is not None
    return twin(fields, parameters, native, forcing=forcing)


@pytest.mark.parametrize("name", MAKERS)
def test_values_are_those_of_numpy_and_gradients_their_central_differences(name: str) -> None:
    make, values = MAKERS[name]
    simulator = make()
    given = arguments(simulator, values)
    leaves = tensors(given, grad=True)
    expected = stepped(simulator, given)
    draw = np.random.default_rng(1)
    weights = [draw.standard_normal(value.shape) for value in expected]

    answers = [a for a in called(PhiFlowTwin(simulator), leaves) if a is not None]
    sums = [(a * torch.tensor(w)).sum() for a, w in zip(answers, weights, strict=True)]
    torch.stack(sums).sum().backward()

    for answer, value in zip(answers, expected, strict=True):
        # Two conjugate gradients to 1e-13 of a divergence of order one.
        np.testing.assert_allclose(answer.detach().numpy(), value, rtol=0, atol=1e-11)

    def loss(arrays: list[Array | None]) -> float:
        found = stepped(simulator, arrays)
        return float(sum((f * w).sum() for f, w in zip(found, weights, strict=True)))

    for i, (leaf, array) in enumerate(zip(leaves, given, strict=True)):
        if array is None or leaf is None:
            continue
        step = 1e-4 * np.abs(array).mean() * draw.standard_normal(array.shape)
        sides = [[*given[:i], array + s * step, *given[i + 1 :]] for s in (1, -1)]
        slope = (loss(sides[0]) - loss(sides[1])) / 2
        assert leaf.grad is not None
        # Curvature of relative size 1e-4 squared, kinks of the interpolation where a lookup
        # crosses a cell (few, each of size step^2), and a solve of 1e-13 over steps of 1e-4.
        found = float((leaf.grad.numpy() * step).sum())
        scale = np.linalg.norm(leaf.grad.numpy()) * np.linalg.norm(step)
        assert abs(found - slope) < 1e-4 * scale


def test_two_steps_chain_through_the_native_part() -> None:
    smoke = PhiFlowSmoke(6, 5)
    beta = torch.tensor([0.1])
    fields, native = (torch.tensor(x) for x in smoke.initial(np.array([0.1])))
    native.requires_grad_()
    twin = PhiFlowTwin(smoke)

    once, kept = twin(fields, beta, native)
    twice, _ = twin(once, beta, kept)
    (grad,) = torch.autograd.grad(twice.pow(2).sum(), native)

    step = 1e-5 * torch.randn(native.shape)
    losses = []
    for density in (native + step, native - step):
        state: tuple[Array, Array | None] = (fields.numpy(), density.detach().numpy())
        for _ in range(2):
            state = smoke.step(state[0], beta.numpy(), state[1])
        losses.append((state[0] ** 2).sum())
    # As above: differences of relative size 1e-5 squared.
    assert float((grad * step).sum()) == pytest.approx((losses[0] - losses[1]) / 2, rel=1e-4)


def test_settings_of_phiflow_are_left_alone_on_both_ways() -> None:
    wake = PhiFlowWake(8, 16)
    reynolds = torch.tensor([100.0])
    fields = torch.tensor(wake.initial(reynolds.numpy())).requires_grad_()
    kept = fields.detach().clone()

    after, _ = PhiFlowTwin(wake)(fields, reynolds)
    after.sum().backward()

    assert phiml.math.get_precision() == 32
    assert phiml.backend.default_backend().name == "numpy"
    assert torch.equal(fields, kept)
    assert reynolds.grad is None


def test_single_precision_is_refused() -> None:
    twin = PhiFlowTwin(PhiFlowBurgers(8))

    with pytest.raises(TypeError, match=r"fields must be float64, got torch\.float32"):
        twin(torch.zeros(1, 2, 8, 8, dtype=torch.float32), torch.zeros(1))


def test_what_cannot_advance_is_refused() -> None:
    with pytest.raises(TypeError, match="simulator must have a method advance, got int"):
        PhiFlowTwin(3)  # type: ignore[arg-type]


def test_a_pressure_solve_that_fails_is_an_error_that_says_so() -> None:
    # The square of this tolerance is zero, which no residual reaches.
    smoke = PhiFlowSmoke(8, 6, tolerance=1e-300)
    fields, native = (torch.tensor(x) for x in smoke.initial(np.array([0.1])))

    with pytest.raises(FloatingPointError, match="pressure solve must converge"):
        PhiFlowTwin(smoke)(fields, torch.tensor([0.1]), native)
