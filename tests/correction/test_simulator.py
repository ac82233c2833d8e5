"""The one door to a simulator: what it charges, what it refuses, what it keeps."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from deepzero_apps.correction.simulator import Array, Metered, SimulatorFailure
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from tests.simulators import Doubling, Stencil

ONE = np.ones(2)


def states(b: int = 2) -> Array:
    return np.arange(b * 6, dtype=float).reshape(b, 1, 2, 3)


def test_a_step_is_the_simulator_s_own_and_costs_its_states() -> None:
    metered = Metered(Doubling())
    native = np.array([[1], [2]])

    after, kept = metered.step(states(), ONE, native)
    metered.step(states(5), np.ones(5))

    assert np.array_equal(after, 2 * states())
    assert np.array_equal(kept, native)
    assert (metered.steps, metered.meter.spent) == (2, 7)
    assert (metered.shape, metered.reach, metered.accepts_forcing) == ((1, 2, 3), 0, False)


def test_a_forcing_reaches_the_simulator() -> None:
    stencil = Stencil((1, 3), {(0,): 1.0})
    u, f = np.random.default_rng(0).normal(size=(2, 2, 1, 3))
    after, _ = Metered(stencil).step(u, ONE, forcing=f)
    assert np.array_equal(after, u + 0.5 * f)


def test_a_budget_is_hard_and_asked_before_the_step() -> None:
    stencil = Stencil((1, 3), {(0,): 1.0})
    metered = Metered(stencil, meter=Meter(budget=5))
    for _ in range(2):
        metered.step(np.ones((2, 1, 3)), ONE)
    with pytest.raises(BudgetExhausted, match="budget of 5 queries does not cover 2 more"):
        metered.step(np.ones((2, 1, 3)), ONE)
    assert (stencil.calls, metered.steps, metered.meter.spent) == (2, 2, 4)


def test_a_step_that_fails_is_charged() -> None:
    metered = Metered(Doubling(bad=0.0))
    with pytest.raises(SimulatorFailure):
        metered.step(states(), ONE)
    assert (metered.steps, metered.meter.spent) == (0, 2)


def test_numbers_that_are_not_finite_name_step_and_state_and_keep_the_last_good_one() -> None:
    metered = Metered(Doubling(bad=44.0), name="the wake")
    fields, native = states(), np.array([7, 8])
    for _ in range(2):
        fields, native = metered.step(fields, ONE, native)
    with pytest.raises(
        SimulatorFailure,
        match="the wake must answer finite fields, got NaN or infinity in state 1 at step 3;",
    ) as caught:
        metered.step(fields, ONE, native)
    assert caught.value.step == 2
    assert np.array_equal(caught.value.fields, 4 * states())
    assert caught.value.native.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            np.ones((2, 1, 3, 2)),
            r"of shape \(2, 1, 2, 3\), got float64 of \(2, 1, 3, 2\) at step 1",
        ),
        (np.ones((1, 1, 2, 3)), r"got float64 of \(1, 1, 2, 3\)"),
        (np.ones((2, 1, 2, 3), dtype=np.float32), r"got float32 of \(2, 1, 2, 3\)"),
    ],
)
def test_answers_of_another_kind_are_refused(answer: Array, match: str) -> None:
    simulator = SimpleNamespace(
        shape=(1, 2, 3), reach=None, accepts_forcing=False, step=lambda *_: (answer, None)
    )
    with pytest.raises(SimulatorFailure, match=match):
        Metered(simulator).step(states(), ONE)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            (np.ones((2, 1, 3, 2)), ONE),
            r"fields must be of shape \(b, 1, 2, 3\) for the simulator",
        ),
        ((np.ones((0, 1, 2, 3)), np.ones(0)), r"got \(0, 1, 2, 3\)"),
        ((states(), np.ones(3)), r"parameters must be one a state, \(2,\), got \(3,\)"),
    ],
)
def test_states_that_do_not_fit_cost_nothing(arguments: tuple[Array, Array], match: str) -> None:
    metered = Metered(Doubling())
    with pytest.raises(ValueError, match=match):
        metered.step(*arguments)
    assert metered.meter.spent == 0


def test_a_forcing_that_cannot_act_is_refused() -> None:
    with pytest.raises(ValueError, match="forcing must be left out, the simulator takes none"):
        Metered(Doubling()).step(states(), ONE, forcing=states())
    metered = Metered(Stencil((1, 3), {(0,): 1.0}))
    with pytest.raises(ValueError, match=r"forcing must be of shape \(2, 1, 3\), got \(1, 1, 3\)"):
        metered.step(np.ones((2, 1, 3)), ONE, forcing=np.ones((1, 1, 3)))


@pytest.mark.parametrize("missing", ["shape", "reach", "accepts_forcing", "step"])
def test_what_is_no_simulator_is_refused(missing: str) -> None:
    members = dict.fromkeys({"shape", "reach", "accepts_forcing", "step"} - {missing})
    with pytest.raises(TypeError, match=f"simulator must have {missing}, got SimpleNamespace"):
        Metered(SimpleNamespace(**members))


@pytest.mark.parametrize("reach", [-1, 0.5, math.nan])
def test_a_reach_that_makes_no_sense_is_refused(reach: float) -> None:
    stencil = Stencil((1, 3), {(0,): 1.0})
    stencil.reach = reach
    with pytest.raises(ValueError, match="the simulator's reach must be a whole number of cells"):
        _ = Metered(stencil).reach


@pytest.mark.parametrize("reach", [0, 3, math.inf, None])
def test_a_reach_that_makes_sense_is_passed_on(reach: float | None) -> None:
    stencil = Stencil((1, 3), {(0,): 1.0})
    stencil.reach = reach
    assert Metered(stencil).reach == reach
