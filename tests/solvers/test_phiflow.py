"""PhiFlow's simulators: closed forms, a dense projection, and our own wake."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.navier_stokes import Wake
from solvers.phiflow_burgers import PhiFlowBurgers
from solvers.phiflow_fields import from_faces, phi, to_faces
from solvers.phiflow_smoke import PhiFlowSmoke
from solvers.phiflow_wake import PhiFlowWake

Array = NDArray[np.float64]
Simulator = PhiFlowWake | PhiFlowBurgers | PhiFlowSmoke

MAKERS: dict[str, tuple[Callable[[], Simulator], list[float]]] = {
    "wake": (lambda: PhiFlowWake(8, 16), [60.0, 300.0, 2000.0]),
    "burgers 1-D": (lambda: PhiFlowBurgers(12, dimensions=1), [0.0, 0.1, 0.5]),
    "burgers 2-D": (lambda: PhiFlowBurgers(8), [0.0, 0.1, 0.5]),
    "smoke": (lambda: PhiFlowSmoke(8, 6), [0.0, 0.05, 0.1]),
}


def started(simulator: Simulator, parameters: Array) -> tuple[Array, Array | None]:
    start = simulator.initial(parameters, seed=1)
    return start if isinstance(start, tuple) else (start, None)


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_depends_on_itself_alone_to_the_bit(name: str) -> None:
    make, values = MAKERS[name]
    simulator, parameters = make(), np.array(values)
    fields, native = started(simulator, parameters)
    fields, native = simulator.step(fields, parameters, native)
    forcing = 0.01 * np.random.default_rng(0).standard_normal(fields.shape)

    together, kept = simulator.step(fields, parameters, native, forcing=forcing)

    for i in range(len(parameters)):
        row = slice(i, i + 1)
        part = None if native is None else native[row]
        alone, left = simulator.step(fields[row], parameters[row], part, forcing=forcing[row])
        assert np.array_equal(alone, together[row])
        if kept is not None and left is not None:
            assert np.array_equal(left, kept[row])


@pytest.mark.parametrize("name", MAKERS)
def test_inputs_and_the_settings_of_phiflow_stay_as_they_were(name: str) -> None:
    make, values = MAKERS[name]
    simulator, parameters = make(), np.array(values)
    fields, native = started(simulator, parameters)
    arrays = [x for x in (fields, parameters, native) if x is not None]
    before = [x.copy() for x in arrays]

    after, _ = simulator.step(fields, parameters, native, forcing=fields)

    assert after.dtype == np.float64
    assert all(np.array_equal(x, y) for x, y in zip(arrays, before, strict=True))
    assert phi.math.get_precision() == 32


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_of_a_start_depends_on_seed_and_row_alone(name: str) -> None:
    make, values = MAKERS[name]
    simulator, parameters = make(), np.array(values)

    for few, many in zip(
        started(simulator, parameters[:2]), started(simulator, parameters), strict=True
    ):
        assert few is many is None or np.array_equal(few, many[:2])


def test_arrays_become_faces_and_come_back() -> None:
    array = np.random.default_rng(0).standard_normal((2, 2, 4, 6))
    array[:, 0, :, -1] = array[:, 1, -1] = 0
    box = phi.field.StaggeredGrid(
        0.0, 0.0, bounds=phi.geom.Box(y=4, x=6), resolution=phi.math.spatial(y=4, x=6)
    )

    with phi.math.precision(64):
        faces = to_faces(array, box)
        back = from_faces(faces)
        inside = phi.field.divergence(faces).values.native(["states", "y", "x"])

    # PhiFlow's own divergence, in cells of width 1, against differences of the array.
    across = np.diff(array[:, 0], axis=2, prepend=0) + np.diff(array[:, 1], axis=1, prepend=0)
    np.testing.assert_allclose(inside, across, rtol=0, atol=1e-14)
    assert np.array_equal(back, array)


# The wake ---------------------------------------------------------------------------------------


def test_wake_is_free_of_divergence_and_crosses_neither_wall_nor_disc() -> None:
    wake, reynolds = PhiFlowWake(16, 32), np.array([100.0, 1000.0])
    forcing = np.random.default_rng(0).standard_normal((2, 2, 16, 32))

    fields, _ = wake.step(wake.initial(reynolds), reynolds, forcing=forcing)

    # Conjugate gradients stop at 1e-12 of a divergence of order .1.
    assert np.abs(wake.divergence(fields)).max() < 1e-11
    solid = wake.solid
    assert not fields[:, 0, :, :-1][:, solid[:, 1:] | solid[:, :-1]].any()
    assert not fields[:, 1, :-1][:, solid[1:] | solid[:-1]].any()
    assert not fields[:, 1, -1].any()
    # What flows in flows out: 16 faces of velocity 1.
    np.testing.assert_allclose(fields[:, 0, :, -1].sum(1), 16.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [(20, 40), (32, 64)])
def test_wake_agrees_with_ours(grid: tuple[int, int]) -> None:
    # The two differ in where boundary values are meant: on a face, or half a cell behind it. Half
    # a cell is 1 / (2 rows) of the channel's height, and so much of U they may be apart.
    theirs, ours = PhiFlowWake(*grid), Wake(*grid)
    reynolds = np.array([20.0, 100.0, 1000.0])
    a = b = start = theirs.initial(reynolds, seed=1)

    for _ in range(8):
        a, b = theirs.step(a, reynolds)[0], ours.step(b, reynolds)[0]

    assert np.abs(a - start).max() > 0.5
    tolerance = 1 / (2 * grid[0])
    for column in np.array([0.25, 0.375, 0.5, 0.75, 0.95]) * grid[1]:
        u, v = a[:, 0, :, int(column)], b[:, 0, :, int(column)]
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance)
    # Drag, as the momentum missing two diameters behind the disc: it falls with Re,
    # each time by more than three tolerances.
    behind = int(0.45 * grid[1])
    missing, expected = ((u * (u - 1)).mean(1) for u in (a[:, 0, :, behind], b[:, 0, :, behind]))
    np.testing.assert_allclose(missing, expected, rtol=tolerance)
    assert (np.diff(missing) < -3 * tolerance * missing[1:]).all()


def test_a_forcing_free_of_divergence_adds_dt_times_itself_to_the_wake() -> None:
    wake, reynolds = PhiFlowWake(20, 40, dt=1.5), np.array([300.0])
    psi = np.random.default_rng(0).standard_normal((1, 20, 40))
    forcing = Wake(20, 40).velocity_of_streamfunction(psi)
    fields = wake.initial(reynolds)

    change = wake.step(fields, reynolds, forcing=forcing)[0] - wake.step(fields, reynolds)[0]

    # Two projections, each to 1e-12 of a divergence of order one.
    np.testing.assert_allclose(change, 1.5 * forcing, rtol=0, atol=1e-10)


def test_wake_refuses_viscosity_that_is_unstable_and_substeps_allow_it() -> None:
    fields, reynolds = np.zeros((1, 2, 16, 32)), np.array([3.0])

    with pytest.raises(ValueError, match=r"parameters must be at least 4\.1 .*raise substeps"):
        PhiFlowWake(16, 32).step(fields, reynolds)

    assert np.isfinite(PhiFlowWake(16, 32, substeps=2).step(fields, reynolds)[0]).all()


# Burgers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "cells", "length"), [(1, 16, 3.0), (2, 12, 40.0)])
def test_a_faint_wave_decays_exactly(dimensions: int, cells: int, length: float) -> None:
    burgers = PhiFlowBurgers(cells, dimensions=dimensions, length=length, dt=0.2)
    wave = 2 * np.pi * 2 / length
    x = (np.arange(cells) + 0.5) * length / cells
    fields = 1e-9 * np.broadcast_to(np.sin(wave * x), (1, *burgers.shape))

    after, _ = burgers.step(fields, np.array([0.3]))

    # Advection is second order in the amplitude: 1e-9 of it.
    factor = np.exp(-0.3 * wave**2 * 0.2)
    np.testing.assert_allclose(after, factor * fields, rtol=0, atol=1e-16)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stream_of_one_cell_a_step_carries_a_faint_wave_one_cell(axis: int) -> None:
    burgers = PhiFlowBurgers(8, length=4.0, dt=0.25)
    faint = 1e-7 * np.random.default_rng(0).standard_normal((1, 2, 8, 8))
    stream = np.zeros((1, 2, 1, 1))
    stream[0, axis] = 2.0

    after, _ = burgers.step(stream + faint, np.zeros(1))

    # Its own motion is second order: 1e-14 times the slope over dt / dx.
    np.testing.assert_allclose(after - stream, np.roll(faint, 1, axis + 2), rtol=0, atol=1e-12)


def test_burgers_converges_to_cole_and_hopf() -> None:
    # phi = a + exp(-nu k^2 t) cos(k x) solves the heat equation, u = -2 nu phi_x / phi Burgers'.
    nu, k, a = 0.2, 2 * np.pi / 4.0, 1.5

    def exact(x: Array, t: float) -> Array:
        e = np.exp(-nu * k**2 * t)
        return np.asarray(2 * nu * k * e * np.sin(k * x) / (a + e * np.cos(k * x)))

    errors = []
    for cells in (16, 32, 64):
        burgers = PhiFlowBurgers(cells, dimensions=1, length=4.0, dt=1.6 / cells)
        x = (np.arange(cells) + 0.5) * burgers.spacing
        fields = exact(x, 0.0)[None, None]
        for _ in range(cells // 2):
            fields, _ = burgers.step(fields, np.array([nu]))
        errors.append(np.abs(fields[0, 0] - exact(x, 0.8)).max())

    # First order: the error halves with the cell and the step.
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (orders > 0.75).all(), errors
    assert errors[-1] < 0.02


def test_a_line_is_a_grid_that_does_not_vary_across() -> None:
    line, grid = PhiFlowBurgers(8, dimensions=1), PhiFlowBurgers(8)
    u = np.random.default_rng(0).standard_normal((1, 1, 8))
    square = np.zeros((1, 2, 8, 8))
    square[:, 1] = u
    nu = np.array([0.1])

    for _ in range(3):
        u, square = line.step(u, nu)[0], grid.step(square, nu)[0]

    np.testing.assert_allclose(square[:, 1], np.broadcast_to(u, (1, 8, 8)), rtol=0, atol=1e-14)
    assert not square[:, 0].any()


def test_forcing_adds_dt_times_itself_at_the_end() -> None:
    burgers, nu = PhiFlowBurgers(8, dt=0.3), np.array([0.1])
    u, f = np.random.default_rng(0).standard_normal((2, 1, 2, 8, 8))

    difference = burgers.step(u, nu, forcing=f)[0] - burgers.step(u, nu)[0]

    np.testing.assert_allclose(difference, 0.3 * f, rtol=0, atol=1e-14)


# Smoke ------------------------------------------------------------------------------------------


def dense_projection(push: Array) -> Array:
    """The part of (2, rows, columns) free of divergence in a closed box, by least squares."""
    rows, columns = push.shape[1:]
    inner = np.zeros(push.shape, dtype=bool)
    inner[0, :, :-1] = inner[1, :-1] = True
    units = np.zeros((inner.sum(), *push.shape))
    units[np.arange(len(units)), *np.nonzero(inner)] = 1
    change = np.diff(units[:, 0], axis=2, prepend=0) + np.diff(units[:, 1], axis=1, prepend=0)
    divergence = change.reshape(-1, rows * columns).T
    out = np.zeros(push.shape)
    out[inner] = push[inner] - np.linalg.pinv(divergence) @ divergence @ push[inner]
    return out


def test_smoke_is_lifted_by_its_buoyancy_and_projected() -> None:
    smoke = PhiFlowSmoke(6, 5, dt=0.5)
    beta = np.array([0.2])
    fields, native = smoke.initial(beta, seed=2)

    after, left = smoke.step(fields, beta, native)
    assert left is not None

    # At rest nothing is carried: the lift of a face is dt beta times the mean of its two cells.
    push = np.zeros((2, 6, 5))
    push[1, :-1] = 0.5 * 0.2 * (left[0, 1:] + left[0, :-1]) / 2
    np.testing.assert_allclose(after[0], dense_projection(push), rtol=0, atol=1e-11)


def test_the_source_adds_its_rate_times_its_area() -> None:
    smoke, beta = PhiFlowSmoke(64, 64, dt=2.0), np.array([0.1])
    fields, native = smoke.initial(beta)

    _, left = smoke.step(fields, beta, native)
    assert left is not None

    # A disc of radius 10 in cells of 100 / 64, its rim softened over a cell: 10 % of its area.
    added = (left - native).sum() * (100 / 64) ** 2
    assert added == pytest.approx(0.2 * 2.0 * np.pi * 10.0**2, rel=0.1)


def test_a_forcing_that_is_a_gradient_changes_nothing_in_the_box() -> None:
    smoke, beta = PhiFlowSmoke(8, 6), np.array([0.1])
    fields, native = smoke.initial(beta)
    fields, native = smoke.step(fields, beta, native)
    p = np.random.default_rng(0).standard_normal((1, 8, 6))
    forcing = np.zeros((1, 2, 8, 6))
    forcing[:, 0, :, :-1], forcing[:, 1, :-1] = np.diff(p, axis=2), np.diff(p, axis=1)

    pushed, plain = (smoke.step(fields, beta, native, forcing=f)[0] for f in (forcing, None))

    np.testing.assert_allclose(pushed, plain, rtol=0, atol=1e-10)


def test_without_buoyancy_air_stays_at_rest() -> None:
    smoke = PhiFlowSmoke(6, 5)
    fields, native = smoke.initial(np.zeros(1))

    after, _ = smoke.step(fields, np.zeros(1), native)

    assert not after.any()


def _lifted(smoke: PhiFlowSmoke) -> tuple[Array, Array, Array]:
    fields, native = smoke.initial(NU[:1])
    return fields, NU[:1], native


# Refusals ---------------------------------------------------------------------------------------

REST = np.zeros((2, 2, 8, 8))
NU = np.array([0.1, 0.2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"fields": REST[:, :1]},
            ValueError,
            r"fields must have shape \(b, 2, 8, 8\), got \(2, 1",
        ),
        ({"fields": REST[:0], "parameters": NU[:0]}, ValueError, "fields must hold at least one"),
        ({"fields": np.full_like(REST, np.nan)}, ValueError, "fields must be finite, got NaN"),
        ({"forcing": np.full_like(REST, np.inf)}, ValueError, "forcing must be finite, got"),
        ({"fields": REST.astype(np.float32)}, TypeError, "fields must be .* got float32 array"),
        ({"parameters": NU[:1]}, ValueError, r"parameters must have shape \(2,\), got \(1,\)"),
        ({"parameters": -NU}, ValueError, r"parameters must not be negative, got -0\.2"),
        ({"native": REST}, ValueError, "native must be None, got ndarray"),
        ({"forcing": REST[:1]}, ValueError, r"forcing must have shape \(2, 2, 8, 8\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"fields": REST, "parameters": NU} | change

    with pytest.raises(error, match=message):
        PhiFlowBurgers(8).step(**given)


def test_smoke_asks_for_its_density() -> None:
    with pytest.raises(ValueError, match=r"native must have .* got None; start from initial"):
        PhiFlowSmoke(8, 8).step(REST, NU)
    with pytest.raises(ValueError, match=r"native must have shape \(2, 8, 8\), got \(2, 8\)"):
        PhiFlowSmoke(8, 8).step(REST, NU, REST[:, 0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhiFlowWake(3, 32), "rows must be an integer of at least 4, got 3"),
        (lambda: PhiFlowWake(4, 8), "must resolve the disc"),
        (lambda: PhiFlowWake(8, 16, dt=0.0), r"dt must be positive .* got 0\.0"),
        (lambda: PhiFlowWake(8, 16, substeps=0), "substeps must be at least 1, got 0"),
        (lambda: PhiFlowBurgers(8, dimensions=3), "dimensions must be 1 or 2, got 3"),
        (lambda: PhiFlowBurgers(8, length=np.inf), "length must be positive"),
        (lambda: PhiFlowSmoke(8, 8, tolerance=-1.0), r"tolerance must .* got -1\.0"),
        (lambda: PhiFlowSmoke(8.0, 8), r"rows must be an integer, got 8\.0"),  # type: ignore[arg-type]
        (lambda: PhiFlowSmoke(8, 8).initial(NU, seed=-1), "seed must be at least 0"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pressure_solve_that_fails_is_an_error_that_says_so() -> None:
    # The square of this tolerance is zero, which no residual reaches.
    smoke = PhiFlowSmoke(8, 6, tolerance=1e-300)

    with pytest.raises(FloatingPointError, match=r"pressure solve must converge[\s\S]*shorten"):
        smoke.step(*_lifted(smoke))
