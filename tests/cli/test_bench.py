"""Workers in processes of their own: equal bits for any number, killed ones, failures, commands."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.cli.bench import Bench, spread
from deepzero_apps.cli.corrected import Scene, Units, problem_of
from deepzero_apps.cli.correction_plan import (
    CorrectSettings,
    corrected,
    objective,
    plan,
    recipe,
)
from deepzero_apps.cli.recorded import simulated
from deepzero_apps.cli.rolled import rolled
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.rollout import Started
from deepzero_apps.correction.simulator import SimulatorFailure
from deepzero_apps.correction.training import correction_training
from deepzero_apps.correction.trajectories import Split, Trajectories
from deepzero_apps.workers import Pool, Where
from deepzero_apps.workers.where import Connection
from deepzero_apps.zeroth_order.training import Training

pytest.importorskip("ray")

SETTINGS = CorrectSettings(
    problem="wake", grid="10x20", reference="20x40", width=2, batch=3, unrolled=3, lr=1e-3
)
UNITS = Units(0.3, 0.02, (100.0, 3200.0), Probed(0.0, float("inf"), 0.01, 0))
BUDGET = 6 * 3 * 3 * 3
"""Six updates of three pieces, three copies and three steps."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    connection = Connection(Where(3))  # room for a second pool
    with Pool(partial(Bench, SETTINGS), Where(2)) as pool:
        yield pool
    connection.close()


@pytest.fixture(scope="module")
def view() -> Scene:
    """A few frames of the coarse simulator and noise: what a corrector learns does not matter."""
    problem = problem_of(SETTINGS)
    parameters = np.array(problem.train)
    frames = [problem.coarse.initial(parameters, seed=0)]  # type: ignore[attr-defined]
    for _ in range(6):
        frames.append(problem.coarse.step(frames[-1], parameters)[0])
    noise = 0.01 * np.random.default_rng(0).normal(size=(6, 7, *problem.coarse.shape))
    train = Trajectories(np.stack(frames, 1) + noise, parameters)
    found = Scene(problem, Split(train, train, train), Path())
    found.__dict__["units"] = UNITS  # in place of what would be measured
    return found


def training(view: Scene, pool: Pool | None, **flags: object) -> Training:
    torch.set_default_dtype(torch.float32)
    settings = SETTINGS.model_copy(update={"budget": BUDGET, **flags})
    ready = plan(settings, view.problem, UNITS)
    return correction_training(
        ready.loop,
        ready.correction.method if pool is None else spread(ready, pool, view),
        objective(settings, ready.correction, UNITS),
        view.split.train,
        recipe=recipe(settings, ready),
        meter=ready.meter,
        companion=ready.correction.credit,
    )


def weights_of(one: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in one.network.parameters()])


@pytest.fixture(scope="module")
def undisturbed(view: Scene, pool: Pool) -> Tensor:
    whole = training(view, pool)
    assert [row["queries"] for row in whole.run(6)][-1] == BUDGET
    return weights_of(whole)


def test_killed_workers_change_nothing(view: Scene, pool: Pool, undisturbed: Tensor) -> None:
    lost, disturbed = pool.lost, training(view, pool)
    for row in disturbed.run(6):
        if row["step"] in (2, 4):
            os.kill(pool.processes()[0], signal.SIGKILL)

    assert pool.lost == lost + 2
    assert torch.equal(weights_of(disturbed), undisturbed)
    assert disturbed.meter.spent == BUDGET  # what was done again is not charged


def test_one_worker_and_two_end_in_the_same_bits(view: Scene, undisturbed: Tensor) -> None:
    with Pool(partial(Bench, SETTINGS), Where(1)) as alone:
        one = training(view, alone)
        list(one.run(6))

    assert torch.equal(weights_of(one), undisturbed)


def test_workers_train_what_this_process_does(view: Scene, undisturbed: Tensor) -> None:
    here = training(view, None)
    list(here.run(6))

    # six steps of Adam with a rate of 1e-3; rounding is seen where a gradient is nearly zero
    assert (weights_of(here) - undisturbed).abs().max() < 6e-3
    assert (weights_of(here) - undisturbed).norm() < 0.02 * weights_of(here).norm()


def test_a_training_goes_on_with_other_workers(
    view: Scene, pool: Pool, undisturbed: Tensor
) -> None:
    first = training(view, pool)
    list(first.run(3))
    state = first.state_dict()
    with Pool(partial(Bench, SETTINGS), Where(1)) as others:
        second = training(view, others)
        second.load_state_dict(state)
        list(second.run(6))

    assert torch.equal(weights_of(second), undisturbed)


def test_reference_simulations_are_made_to_the_same_bits(view: Scene, pool: Pool) -> None:
    parameters = [125.0, 500.0]
    made = dict(pool.ask("reference", [([p], 5) for p in parameters]))
    here = simulated(view.problem, parameters, 5)
    for i in range(2):
        np.testing.assert_array_equal(made[i].fields[0], here.fields[i])
    assert np.abs(np.diff(here.fields, axis=1)).max() > 0


def test_rollouts_of_workers_are_those_made_here(view: Scene, pool: Pool) -> None:
    torch.set_default_dtype(torch.float32)
    frames, parameters = view.split.train.fields, view.split.train.parameters
    started = Started(frames[:, 0], parameters, frames[:, 1:])
    coarse = view.problem.coarse
    corrector = plan(SETTINGS, view.problem, UNITS).loop.corrector
    with torch.no_grad():
        for p in corrector.parameters():
            p.fill_(0.05)
    both = corrected(SETTINGS, view.problem, corrector)

    bare = rolled(coarse, started, steps=4, pool=pool)
    with_corrector = rolled(both, started, steps=4, pool=pool)

    np.testing.assert_array_equal(bare, rolled(coarse, started, steps=4))
    here = rolled(both, started, steps=4)
    # networks round differently by the number of rows: 1e-7 a step, in units of the field
    np.testing.assert_allclose(with_corrector, here, rtol=0, atol=1e-5)
    assert np.abs(here - bare).max() > 0.01


def test_a_failure_arrives_with_what_it_holds(view: Scene, pool: Pool) -> None:
    burst = np.full_like(view.split.train.fields, 1.7e308)
    burst[..., ::2] *= -1  # neighbors that differ by more than a number can hold
    bad = Trajectories(burst, view.split.train.parameters)
    scene = Scene(view.problem, Split(bad, bad, bad), Path())
    scene.__dict__["units"] = UNITS

    with pytest.raises(SimulatorFailure, match=r"update 1, piece [123]: ") as caught:
        list(training(scene, pool).run(1))

    assert caught.value.fields.shape[1:] == view.problem.coarse.shape
    assert "raised in a worker" in "".join(caught.value.__notes__)
    assert pool.waiting == 0
