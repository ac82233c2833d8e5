"""Trajectories of a simulator known in closed form: which states are kept, and how they divide."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepzero_apps.correction.simulator import Array, SimulatorFailure
from deepzero_apps.correction.trajectories import Trajectories, join, make


class Decay:
    """Every cell times its parameter, each step; native counts the steps."""

    shape = (2, 4, 8)
    reach = 0
    accepts_forcing = False

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        assert forcing is None
        with np.errstate(over="ignore"):
            after = fields * parameters.reshape(-1, 1, 1, 1)
        return after, None if native is None else native + 1


def halves(fields: Array) -> Array:
    """Means over blocks of 2 x 2 cells."""
    b, c, rows, columns = fields.shape
    means: Array = fields.reshape(b, c, rows // 2, 2, columns // 2, 2).mean((3, 5))
    return means


def start(simulations: int = 3) -> Array:
    return np.random.default_rng(0).normal(size=(simulations, *Decay.shape))


def four() -> Trajectories:
    fields = np.arange(4 * 2 * 1 * 3, dtype=float).reshape(4, 2, 1, 3)
    return Trajectories(fields, np.array([100.0, 200.0, 400.0, 200.0]), meta={"problem": "p"})


def test_frame_k_is_the_state_after_warm_up_plus_k_every_steps() -> None:
    p = np.array([0.5, 0.9, 1.1])
    made = make(Decay(), start(), p, restrict=halves, frames=4, warm_up=3, every=2)

    for k in range(4):
        expected = halves(start()) * p.reshape(-1, 1, 1, 1) ** (3 + 2 * k)
        # at most nine products, each rounded once
        np.testing.assert_allclose(made.fields[:, k], expected, rtol=2e-15, atol=1e-15)
    assert made.parameters.tolist() == p.tolist()
    assert made.native is None


def test_without_warm_up_the_first_frame_is_the_start() -> None:
    made = make(Decay(), start(), np.ones(3), restrict=halves, frames=1)

    assert np.array_equal(made.fields[:, 0], halves(start()))


def test_native_parts_are_kept_frame_by_frame() -> None:
    made = make(
        Decay(), start(), np.ones(3), restrict=halves, frames=3, warm_up=1, every=2,
        native=np.zeros((3, 1)),
    )  # fmt: skip

    assert made.native is not None
    assert made.native[..., 0].tolist() == [[1, 3, 5]] * 3


def test_groups_of_simulations_have_the_bits_of_all_at_once() -> None:
    p = np.array([0.5, 0.9, 1.1])
    whole = make(Decay(), start(), p, restrict=halves, frames=3)
    groups = [
        make(Decay(), start()[rows], p[rows], restrict=halves, frames=3) for rows in ([0], [1, 2])
    ]

    assert np.array_equal(join(groups).fields, whole.fields)


def test_inputs_are_unchanged_and_progress_counts_steps() -> None:
    fields, native, told = start(), np.zeros((3, 1)), []
    make(
        Decay(), fields, np.full(3, 0.5), restrict=lambda f: f, frames=2, warm_up=1,
        native=native, progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip

    assert np.array_equal(fields, start())
    assert not native.any()
    assert told == [(1, 2), (2, 2)]


def test_a_reference_that_blows_up_names_parameters_state_and_step() -> None:
    p = np.array([1.0, 1e200, 1.0])
    with pytest.raises(SimulatorFailure, match=r"\[1.0, 1e\+200, 1.0\].*state 1 at step 2"):
        make(Decay(), start(), p, restrict=halves, frames=5)


@pytest.mark.parametrize(("name", "value"), [("frames", 0), ("warm_up", -1), ("every", 0)])
def test_counts_out_of_range_are_refused(name: str, value: int) -> None:
    counts = {"frames": 2, "warm_up": 0, "every": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        make(Decay(), start(), np.ones(3), restrict=halves, **counts)


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fields must be of shape \(b, 2, 4, 8\)"):
        make(Decay(), start()[:, :1], np.ones(3), restrict=halves, frames=2)


def test_standard_deviation_is_that_of_each_channel() -> None:
    # channel 0 alternates between -3 and 3 around 5, channel 1 is a sine of amplitude 2
    x = np.arange(8)
    fields = np.stack((5 + 3 * (-1.0) ** x, 2 * np.sin(2 * np.pi * x / 8)))
    trajectories = Trajectories(np.tile(fields, (2, 3, 1, 1)), np.ones(2))

    np.testing.assert_allclose(trajectories.standard_deviation(), [3, np.sqrt(2)], rtol=1e-14)


def test_a_split_holds_every_simulation_of_its_parameters() -> None:
    trajectories = four()
    train, validation, test = trajectories.split(train=[100], validation=[400], test=[200])

    assert train.parameters.tolist() == [100]
    assert validation.parameters.tolist() == [400]
    assert test.parameters.tolist() == [200, 200]
    assert np.array_equal(test.fields, trajectories.fields[[1, 3]])
    assert test.meta == {"problem": "p"}


@pytest.mark.parametrize("near", [200.0, 200.0 * (1 + 1e-12)])
def test_a_parameter_in_two_parts_is_refused(near: float) -> None:
    with pytest.raises(ValueError, match=r"test must not share a parameter with train, got 200"):
        four().split(train=[100, 200], validation=[400], test=[near])


def test_unknown_and_absent_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation must name parameters of .*, got 300"):
        four().split(train=[100], validation=[300], test=[200])
    with pytest.raises(ValueError, match="test must name at least one parameter, got none"):
        four().split(train=[100], validation=[400], test=[])


def test_simulations_are_picked_by_number_list_and_slice() -> None:
    trajectories = four()

    for index in (2, [2], slice(2, 3), np.array([2]), -2):
        picked = trajectories[index]
        assert picked.parameters.tolist() == [400]
        assert np.array_equal(picked.fields, trajectories.fields[2:3])
    assert [len(each) for each in trajectories] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="got float64 of shape"):
        trajectories[4:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": np.zeros((4, 2, 3))}, "fields must be float64 of shape"),
        ({"fields": np.zeros((4, 2, 1, 3), np.float32)}, "got float32"),
        ({"fields": np.full((4, 2, 1, 3), np.nan)}, "fields must be finite"),
        ({"parameters": np.ones(3)}, "parameters must be 4 finite numbers"),
        ({"parameters": np.full(4, np.inf)}, "parameters must be 4 finite numbers"),
        ({"native": np.zeros((4, 3))}, r"native must be of shape \(4, 2, ...\), got \(4, 3\)"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(change: dict[str, Array], message: str) -> None:
    arguments = {"fields": np.zeros((4, 2, 1, 3)), "parameters": np.ones(4), **change}
    with pytest.raises(ValueError, match=message):
        Trajectories(**arguments)


def test_parts_of_different_frames_are_not_joined() -> None:
    other = Trajectories(np.ones((1, 3, 1, 3)), np.ones(1))
    with pytest.raises(ValueError, match=r"parts must be of one shape a simulation, got .*\(2, 1"):
        join([four(), other])
    with pytest.raises(ValueError, match="at least one set of trajectories, got none"):
        join([])
