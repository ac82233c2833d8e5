"""Training in the loop: which pieces are drawn, that a killed run resumes exactly, that it learns."""

import copy
import math

import numpy as np
import pytest
import torch

from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import Method, ThroughTwin, WithoutSolver
from deepzero_apps.correction.simulator import Metered
from deepzero_apps.correction.training import (
    Recipe,
    correction_training,
    one_step_error,
    pieces,
)
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective, loss_weights
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.training import Training
from tests.simulators import Stencil, corrector_for

RECIPE = Recipe(unrolled=3, batch=4, updates=6, lr=0.01, seed=5)


def numbered(frames: int = 8, simulations: int = 5) -> Trajectories:
    """A field says simulation (hundreds) and frame, the native part both with a minus."""
    frame = np.add.outer(100.0 * np.arange(simulations), np.arange(frames))
    fields = np.broadcast_to(frame[:, :, None, None], (simulations, frames, 1, 9)).copy()
    return Trajectories(fields, np.arange(1.0, simulations + 1), -frame[:, :, None])


def test_a_piece_is_a_start_and_the_frames_after_it() -> None:
    for step in range(20):
        windows = pieces(numbered(), RECIPE, step)
        assert windows.fields.shape == (4, 1, 9)
        assert windows.references.shape == (4, 3, 1, 9)
        start = windows.fields[:, 0, 0]
        assert windows.parameters.tolist() == (start // 100 + 1).tolist()
        assert windows.native[:, 0].tolist() == (-start).tolist()
        for t in range(3):
            assert windows.references[:, t, 0, 4].tolist() == (start + t + 1).tolist()
        assert (start % 100 <= 4).all()


def test_pieces_are_a_function_of_seed_and_step_and_come_from_everywhere() -> None:
    def start(recipe: Recipe, step: int) -> list[float]:
        return pieces(numbered(), recipe, step).fields[:, 0, 0].tolist()

    other = Recipe(unrolled=3, batch=4, updates=6, lr=0.01, seed=6)
    assert start(RECIPE, 3) == start(RECIPE, 3)
    torch.rand(7)
    assert start(RECIPE, 3) == start(RECIPE, 3)
    assert start(RECIPE, 3) != start(RECIPE, 4)
    assert start(RECIPE, 3) != start(other, 3)
    # 25 places, 400 draws: that one is missed has a probability below 25 * (24 / 25)^400 = 2e-6
    seen = {x for step in range(100) for x in start(RECIPE, step)}
    assert seen == {100.0 * s + f for s in range(5) for f in range(5)}


def test_simulations_just_long_enough_have_one_piece() -> None:
    assert (pieces(numbered(4), RECIPE, 0).fields[:, 0, 0] % 100 == 0).all()
    with pytest.raises(
        ValueError, match="unrolled must be less than the 3 frames of a simulation"
    ):
        pieces(numbered(3), RECIPE, 0)


def trajectories() -> tuple[Stencil, Trajectories]:
    """Simulations of a stencil with a tap that the coarse one, returned too, lacks."""
    coarse = Stencil((1, 9), {(0,): 0.5, (1,): 0.3})
    fine = Stencil((1, 9), {(0,): 0.5, (1,): 0.3, (2,): 0.2})
    parameters = np.array([0.9, 0.95, 1.0])
    u = np.random.default_rng(0).normal(size=(3, 1, 9))
    native = np.array([[0.1], [0.0], [-0.1]])
    frames, natives = [u], [native]
    for _ in range(7):
        u, native = fine.step(u, parameters, native)
        frames.append(u)
        natives.append(native)
    return coarse, Trajectories(np.stack(frames, 1), parameters, np.stack(natives, 1))


def training(kind: str, *, budget: int | None = None) -> Training:
    torch.manual_seed(2)
    coarse, data = trajectories()
    meter, credit = Meter(budget=budget), Credit(1, periodic=True)
    methods: dict[str, Method] = {
        "windowed": Windowed(1e-3, 4, credit, seed=1),
        "twin": ThroughTwin(coarse.twin, meter.charge),
        "nog": WithoutSolver(),
    }
    return correction_training(
        Loop(Metered(coarse, meter=meter), corrector_for((1, 9), spread=0.0)),
        methods[kind],
        Objective(loss_weights("every", 3), unit=float(data.standard_deviation()[0])),
        data,
        recipe=RECIPE,
        meter=meter,
        companion=credit if kind == "windowed" else None,
    )


@pytest.mark.parametrize("kind", ["windowed", "nog"])
def test_a_run_resumed_from_its_state_ends_with_the_same_bits(kind: str) -> None:
    whole = training(kind)
    metrics = list(whole.run(6))
    first = training(kind)
    list(first.run(3))
    state = copy.deepcopy(first.state_dict())

    second = training(kind)
    second.load_state_dict(state)
    rest = list(second.run(6))

    for p, q in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(p, q)
    for one, other in zip(metrics[3:], rest, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_the_learning_rate_falls_to_zero_along_a_cosine() -> None:
    rates = [metrics["lr"] for metrics in training("nog").run(6)]
    expected = [0.01 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["windowed", "twin", "nog"])
def test_every_method_does_better_on_the_last_pieces_than_no_correction(kind: str) -> None:
    losses = [metrics["loss"] for metrics in training(kind).run(6)]

    coarse, data = trajectories()
    last = pieces(data, RECIPE, 5)
    states = Loop(coarse, corrector_for((1, 9), spread=0.0)).run(last).states
    unit = float(data.standard_deviation()[0])
    uncorrected = Objective(loss_weights("every", 3), unit).losses(states, last).mean()
    # five steps of Adam move each weight by at most 5 * .01: a start, far above rounding
    assert losses[5] < 0.95 * float(uncorrected)


def test_a_spent_budget_ends_a_run_cleanly() -> None:
    # 4 pieces of 3 steps with 5 runs each: 60 queries an update
    run = training("windowed", budget=150)
    assert [metrics["queries"] for metrics in run.run(6)] == [60, 120]
    assert run.meter.spent <= 150


def test_the_error_of_one_step_is_that_of_the_missing_tap() -> None:
    coarse, data = trajectories()
    u = data.fields[:, :-1]
    p = data.parameters.reshape(3, 1, 1, 1)
    expected = math.sqrt(np.square(p * 0.2 * np.roll(u, 2, -1)).mean())
    metered = Metered(coarse)
    assert one_step_error(metered, data) == pytest.approx(expected, rel=1e-12)
    assert metered.meter.spent == 21


@pytest.mark.parametrize("most", [1, 5, 20, 21, 22])
def test_the_error_of_one_step_costs_no_more_than_allowed(most: int) -> None:
    metered = Metered(trajectories()[0])
    assert one_step_error(metered, trajectories()[1], most=most) > 0
    assert most / 2 < metered.meter.spent <= most or most > 21


def test_what_does_not_fit_is_refused_at_once() -> None:
    coarse, data = trajectories()
    loop = Loop(coarse, corrector_for((1, 9)))
    three = Objective(loss_weights("every", 3), unit=1.0)
    wide = Loop(Stencil((1, 10), {(0,): 1.0}), corrector_for((1, 10)))
    with pytest.raises(ValueError, match=r"fields of the simulator's shape \(1, 10\), got"):
        correction_training(wide, WithoutSolver(), three, data, recipe=RECIPE)
    two = Objective(loss_weights("every", 2), unit=1.0)
    with pytest.raises(ValueError, match="objective must weigh 3 steps, got 2"):
        correction_training(loop, WithoutSolver(), two, data, recipe=RECIPE)
    long = Recipe(unrolled=8, batch=1, updates=1, lr=0.1)
    eight = Objective(loss_weights("every", 8), unit=1.0)
    with pytest.raises(ValueError, match="unrolled must be less than the 8 frames"):
        correction_training(loop, WithoutSolver(), eight, data, recipe=long)
    with pytest.raises(ValueError, match="trajectories must hold at least two frames, got 1"):
        one_step_error(coarse, Trajectories(data.fields[:, :1], data.parameters))


@pytest.mark.parametrize("name", ["unrolled", "batch", "updates", "lr"])
def test_recipes_out_of_range_are_refused(name: str) -> None:
    numbers = {"unrolled": 1, "batch": 1, "updates": 1, "lr": 0.1}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Recipe(**{**numbers, name: 0})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        Recipe(**numbers, seed=-1)
