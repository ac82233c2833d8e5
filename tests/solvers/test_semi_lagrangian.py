"""Advection of a velocity by itself, against flows that are only carried along."""

import numpy as np
import pytest

from solvers.semi_lagrangian import Advection, Workspace
from solvers.staggered import Array, Layout

CORRECTED = pytest.mark.parametrize("corrected", [False, True], ids=["linear", "maccormack"])


def advected(fields: Array, inflow: float, *, steps: int = 1, corrected: bool = False) -> Array:
    """Velocities in cells per step, of shape (b, 2, rows, columns), after some steps."""
    layout = Layout(*fields.shape[2:])
    advection = Advection(layout, corrected=corrected)
    work = Workspace.of(len(fields), layout, corrected=corrected)
    layout.faces(work.now)[...] = fields
    for _ in range(steps):
        layout.fill_ghosts(work.now, inflow)
        advection(work, inflow)
        work.now, work.then = work.then, work.now
    return layout.faces(work.now).copy()


def carried_error(columns: int, *, corrected: bool) -> float:
    """Error of a wave v = g(x) that a uniform u carries over .3 of the length."""
    steps, shift = columns // 4, 0.3 * columns
    x = np.arange(columns) + 0.5

    def wave(at: Array) -> Array:
        # Slow enough across the channel that walls, where v = 0, stay far from the middle.
        return 0.01 * np.exp(-(((at / columns - 0.3) / 0.08) ** 2))

    fields = np.zeros((1, 2, 16, columns))
    fields[:, 0] = shift / steps
    fields[:, 1] = wave(x)

    after = advected(fields, shift / steps, steps=steps, corrected=corrected)

    assert (after[:, 0] == shift / steps).all()
    return float(np.abs(after[0, 1, 8] - wave(x - shift)).max()) / 0.01


@CORRECTED
def test_order_of_convergence_is_one_and_two_with_the_correction(corrected: bool) -> None:
    # 1.2 cells a step on every grid: linear errs by dx c(1-c)/2 a step's length, so by order 1.
    errors = [carried_error(columns, corrected=corrected) for columns in (64, 128, 256)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])

    assert (orders > (1.75 if corrected else 0.75)).all(), (errors, orders)


@CORRECTED
def test_whole_cells_are_carried_exactly(corrected: bool) -> None:
    fields = np.zeros((1, 2, 16, 32))
    fields[:, 0] = 2
    fields[:, 1, :, 5] = 1e-9

    after = advected(fields, 2.0, corrected=corrected)

    # v moves by itself, 1e-9 of a cell, across a field that does not change in that direction.
    assert (after[0, 1, 4:12, 7] == 1e-9).all()
    assert not after[0, 1, 4:12, [6, 8]].any()


@CORRECTED
def test_values_stay_between_the_old_ones(corrected: bool) -> None:
    fields = np.random.default_rng(0).uniform(-3, 3, size=(4, 2, 12, 20))
    fields[:, 1, -1] = 0

    after = advected(fields, 1.0, corrected=corrected)

    bound = np.abs(fields).max()
    assert np.abs(after).max() <= bound
    assert after[:, 0].min() >= min(fields[:, 0].min(), 1.0)


@CORRECTED
def test_result_is_the_slow_one(corrected: bool) -> None:
    fields = np.random.default_rng(1).uniform(-2.5, 2.5, size=(2, 2, 6, 9))
    fields[:, 1, -1] = 0

    after = advected(fields, 0.7, corrected=corrected)

    expected, low, high = slow(fields, fields, inflow=0.7, sign=-1)
    if corrected:
        back, _, _ = slow(expected, fields, inflow=0.7, sign=+1)
        expected = np.clip(expected + (fields - back) / 2, low, high)
    # Bilinear weights sum to 1 within rounding: a few units of 1e-16 at values below 3.
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-14)


def slow(carried: Array, flow: Array, *, inflow: float, sign: int) -> tuple[Array, Array, Array]:
    """The definition, face by face, in coordinates whose unit is a cell: value, least, most."""
    states, _, rows, columns = flow.shape

    def u(of: Array, j: int, i: int) -> float:
        return inflow if i < 0 else float(of[0, min(max(j, 0), rows - 1), min(i, columns - 1)])

    def v(of: Array, j: int, i: int) -> float:
        if j < 0 or j >= rows:
            return 0.0
        return -float(of[1, j, 0]) if i < 0 else float(of[1, j, min(i, columns - 1)])

    results = np.empty((3, *flow.shape))
    for s, j, i in np.ndindex(states, rows, columns):
        w, moved = flow[s], carried[s]
        v_mean = (v(w, j - 1, i) + v(w, j - 1, i + 1) + v(w, j, i) + v(w, j, i + 1)) / 4
        u_mean = (u(w, j, i - 1) + u(w, j, i) + u(w, j + 1, i - 1) + u(w, j + 1, i)) / 4
        for c, component, y0, x0 in ((0, u, 0.5, 1.0), (1, v, 1.0, 0.5)):
            w_y, w_x = (v_mean, u(w, j, i)) if c == 0 else (v(w, j, i), u_mean)
            y = min(max(j + y0 + sign * w_y, 0), rows) - y0
            x = min(max(i + x0 + sign * w_x, 0), columns) - x0
            around = [(at_j, at_i) for at_j in _near(y) for at_i in _near(x)]
            values = [component(moved, at_j, at_i) for at_j, at_i in around]
            weights = [(1 - abs(y - at_j)) * (1 - abs(x - at_i)) for at_j, at_i in around]
            results[:, s, c, j, i] = np.dot(weights, values), min(values), max(values)
    value, least, most = results
    return value, least, most


def _near(at: float) -> tuple[int, int]:
    return int(np.floor(at)), int(np.floor(at)) + 1


def test_first_states_share_memory() -> None:
    whole = Workspace.of(3, Layout(4, 8), corrected=True)

    part = whole.first(2)
    part.corners[0][...] = 7

    assert part.now.shape[0] == part.bounds[1].shape[0] == part.transforms[0].shape[0] == 2
    assert (whole.corners[0][:2] == 7).all()
