"""Long runs against powers known in closed form, and what a state that blows up leaves alone."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepzero_apps.correction.rollout import Corrected, rollout, started_at
from deepzero_apps.correction.simulator import Array, Metered, SimulatorFailure
from deepzero_apps.correction.trajectories import Trajectories
from tests.simulators import Doubling, Stencil, corrector_for

ONE = np.ones(3)


def starts(*values: float) -> Array:
    return np.broadcast_to(np.reshape(values, (-1, 1, 1, 1)), (len(values), 1, 2, 3)).copy()


def test_states_after_every_step_are_powers_of_two() -> None:
    told: list[tuple[int, int]] = []
    states = rollout(
        Doubling(), starts(1, 3), ONE[:2], steps=4, progress=lambda *now: told.append(now)
    )
    assert states.shape == (2, 4, 1, 2, 3)
    assert states[:, :, 0, 0, 0].tolist() == [[2, 4, 8, 16], [6, 12, 24, 48]]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_state_beyond_the_limit_is_given_up_and_the_others_keep_their_bits() -> None:
    fields = starts(0.001, 1.0, -0.002)
    states = rollout(Doubling(), fields, ONE, steps=12, limit=100)

    # 2^6 = 64 and 2^7 = 128 times the largest start
    assert np.isfinite(states[1, :6]).all()
    assert np.isnan(states[1, 6:]).all()
    for row in (0, 2):
        expected = fields[row] * 2.0 ** np.arange(1, 13).reshape(-1, 1, 1, 1)
        assert np.array_equal(states[row], expected)


def test_infinity_ends_a_state_alone_with_its_native_part_and_parameter() -> None:
    stencil = Stencil((1, 4), {(0,): 1.0})
    rng = np.random.default_rng(0)
    fields, native = rng.normal(size=(3, 1, 4)), np.array([[0.1], [np.inf], [0.3]])
    p = np.array([0.5, 0.6, 0.7])

    states = rollout(stencil, fields, p, native, steps=5)

    assert np.isnan(states[1]).all()
    kept = [0, 2]
    alone = rollout(stencil, fields[kept], p[kept], native[kept], steps=5)
    assert np.array_equal(states[kept], alone)
    assert np.isfinite(alone).all()


class Refusing(Stencil):
    """Doubles its states and their native parts; raises where a number is above 6."""

    def step(
        self,
        fields: Array,
        parameters: Array,  # noqa: ARG002
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        assert forcing is None
        if fields.max() > 6:
            raise FloatingPointError(f"too large: {fields.max()}")
        return 2 * fields, None if native is None else 2 * native


@pytest.mark.parametrize("native", [None, np.array([[1.0], [2.0], [3.0]])])
def test_a_state_that_the_simulator_fails_on_is_given_up_alone(
    native: NDArray[Any] | None,
) -> None:
    fields = starts(0.1, 2.0, 0.2)
    with pytest.warns(UserWarning, match=r"counted as a blow-up: too large: 8\.0") as told:
        states = rollout(Refusing((1, 2, 3), {(0, 0): 2.0}), fields, ONE, native, steps=5)
    assert len(told) == 1
    assert states[1, :, 0, 0, 0].tolist()[:2] == [4, 8]
    assert np.isnan(states[1, 2:]).all()
    for row in (0, 2):
        assert np.array_equal(states[row, -1], 32 * fields[row])


def test_a_simulator_that_fails_on_the_starts_is_told_and_not_counted() -> None:
    refusing = Refusing((1, 2, 3), {(0, 0): 2.0})
    with pytest.raises(FloatingPointError, match="too large"):
        rollout(refusing, starts(1, 9), ONE[:2], steps=2)
    with pytest.raises(SimulatorFailure, match="finite"):
        rollout(Metered(Doubling(bad=1)), starts(1, 2), ONE[:2], steps=2)


def test_when_every_state_is_given_up_the_simulator_is_left_in_peace() -> None:
    stencil = Stencil((1, 4), {(0,): 1e9})
    told: list[int] = []
    states = rollout(
        stencil, np.ones((2, 1, 4)), ONE[:2], steps=6, progress=lambda done, _: told.append(done)
    )
    assert np.isnan(states).all()
    assert stencil.calls == 1
    assert told == [1, 2, 3, 4, 5, 6]


def test_starts_are_not_changed() -> None:
    fields, native = starts(1, 2), np.ones((2, 1))
    stencil = Stencil((1, 2, 3), {(0, 0): 0.5})
    rollout(stencil, fields, ONE[:2], native, steps=3)
    assert np.array_equal(fields, starts(1, 2))
    assert np.array_equal(native, np.ones((2, 1)))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rollout(Doubling(), starts(1), ONE[:1], steps=0)


def test_an_untrained_corrector_leaves_a_rollout_as_it_is() -> None:
    stencil = Stencil((1, 4, 6), {(0, 0): 0.4, (1, 0): 0.5})
    fields = np.random.default_rng(0).normal(size=(3, 1, 4, 6))
    plain = rollout(stencil, fields, ONE, steps=4)
    corrected = Corrected(stencil, corrector_for(stencil.shape, spread=0.0))
    assert np.array_equal(rollout(corrected, fields, ONE, steps=4), plain)
    assert (corrected.shape, corrected.reach, corrected.accepts_forcing) == ((1, 4, 6), None, True)


def simulations(frames: int = 6) -> Trajectories:
    """Two simulations; a field says simulation and frame, the native part too."""
    frame = np.add.outer([0.0, 100.0], np.arange(frames))
    fields = np.broadcast_to(frame[:, :, None, None], (2, frames, 1, 3)).copy()
    return Trajectories(fields, np.array([2.0, 3.0]), -frame[:, :, None])


def test_starts_come_with_the_frames_after_them() -> None:
    started = started_at(simulations(), (0, 2), 3)
    assert started.fields[:, 0, 0].tolist() == [0, 2, 100, 102]
    assert started.parameters.tolist() == [2, 2, 3, 3]
    assert started.references[:, :, 0, 1].tolist() == [
        [1, 2, 3],
        [3, 4, 5],
        [101, 102, 103],
        [103, 104, 105],
    ]
    assert started.native[:, 0].tolist() == [0, -2, -100, -102]


@pytest.mark.parametrize(
    ("frames", "steps"), [((), 1), ((0,), 0), ((0,), 6), ((2, 3), 3), ((-1,), 1)]
)
def test_starts_outside_of_the_simulations_are_refused(
    frames: tuple[int, ...], steps: int
) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1 and end within the 6 frames"):
        started_at(simulations(), frames, steps)


def test_the_last_start_that_fits_is_taken() -> None:
    assert started_at(simulations(), (2,), 3).references[0, -1, 0, 0] == 5
    assert not math.isnan(started_at(simulations(), (0,), 5).references.sum())
