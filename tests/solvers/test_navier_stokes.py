"""The wake against exact solutions of the Navier-Stokes equations, conservation laws and physics."""

import copy
from typing import Any, Literal

import numpy as np
import pytest

from solvers.navier_stokes import Wake
from solvers.staggered import Array

RE = np.array([100.0, 1000.0])
CORRECTED = pytest.mark.parametrize("advection", ["linear", "maccormack"])


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def developed(wake: Wake, parameters: Array = RE, steps: int = 10) -> Array:
    fields = wake.initial(parameters)
    for _ in range(steps):
        fields, _ = wake.step(fields, parameters)
    return fields


def vortex(wake: Wake, time: float, *, strength: float) -> Array:
    """A round vortex in a uniform flow: exact, as psi = exp(-r^2 / 4 nu t) / t solves the heat
    equation and a round vortex does not advect itself. nu = 1 (Re = 20), age 37.5 at time 0; at
    the walls, 50 away, exp(-2500 / 150) = 6e-8 of it is left."""
    _, rows, columns = wake.shape
    (dy, dx), age = wake.spacing, 37.5 + time
    y = dy * np.arange(1, rows + 1)[:, None] - 50
    x = dx * np.arange(1, columns + 1) - 80 - wake.inflow * time
    psi = strength * 37.5 / age * np.exp(-(y**2 + x**2) / (4 * age))
    fields = wake.velocity_of_streamfunction(psi[None])
    fields[:, 0] += wake.inflow
    return fields


def vortex_error(wake: Wake, time: float, strength: float) -> float:
    fields, reynolds = vortex(wake, 0.0, strength=strength), np.array([20.0])
    for _ in range(round(time / wake.dt)):
        fields, _ = wake.step(fields, reynolds)
    return float(np.abs(fields - vortex(wake, time, strength=strength)).max()) / strength


@pytest.mark.parametrize("stretch", [1, 2, 3])
def test_diffusion_converges_with_order_two_in_space(stretch: int) -> None:
    # Advection of a vortex of strength 1e-8 is 1e-16. dt shrinks as dx^2, and the disc is away.
    errors = [
        vortex_error(Wake(rows, stretch * rows, dt=dt, disc=False, inflow=0.0), 8.0, 1e-8)
        for rows, dt in ((20, 4.0), (40, 1.0), (80, 0.25))
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])

    assert (orders > 1.75).all(), (errors, orders)


@CORRECTED
def test_step_converges_to_an_exact_flow(advection: Literal["linear", "maccormack"]) -> None:
    # dt shrinks as dx: the splitting is of order one with either advection. Linear's viscosity
    # dx^2 c (1 - c) / 2 dt is of order dx too, and much larger.
    errors = [
        vortex_error(Wake(rows, 2 * rows, dt=dt, advection=advection, disc=False), 12.0, 4.0)
        for rows, dt in ((24, 3.0), (48, 1.5), (96, 0.75))
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])

    assert (orders > 0.75).all(), (errors, orders)
    assert errors[-1] < (0.02 if advection == "linear" else 0.005), errors


@pytest.mark.parametrize("grid", [(20, 40), (12, 40), (15, 31)])
@CORRECTED
def test_step_leaves_no_divergence_and_no_flow_through_walls(
    grid: tuple[int, int], advection: Literal["linear", "maccormack"]
) -> None:
    wake = Wake(*grid, advection=advection)

    fields = developed(wake)

    # Rounding of the direct solve: 1e-16 times the condition number over cells of about 5.
    assert np.abs(wake.divergence(fields)).max() < 1e-13
    assert not fields[:, ~wake.open_faces].any()


def test_what_flows_in_flows_through_every_column() -> None:
    wake = Wake(20, 40, inflow=0.7)

    flux = developed(wake)[:, 0].sum(axis=1) * wake.spacing[0]

    np.testing.assert_allclose(flux, 70.0, rtol=0, atol=1e-10)


def test_projection_is_a_dense_least_squares_solution() -> None:
    # The nearest field to `fields` under the constraints, by the normal equations. Outflow faces
    # count half: half of their control volume lies inside.
    wake = Wake(8, 10, inflow=0.3)
    fields = noise(1, *wake.shape)
    count = fields.size
    balance = wake.divergence(np.eye(count).reshape(-1, *wake.shape)).reshape(count, -1).T
    offset = wake.divergence(np.zeros_like(fields)).reshape(-1, 1)
    closed = np.eye(count)[~wake.open_faces.ravel()]
    A = np.concatenate((balance - offset, closed))
    b = np.concatenate((-offset[:, 0], np.zeros(len(closed))))
    weights = np.ones(wake.shape)
    weights[0, :, -1] = 0.5
    W = weights.ravel()

    spread = A / W
    multipliers = np.linalg.lstsq(spread @ A.T, A @ fields.ravel() - b, rcond=1e-12)[0]
    expected = fields.ravel() - spread.T @ multipliers

    # lstsq squares a condition number of about 100: 1e-11.
    np.testing.assert_allclose(wake.project(fields).ravel(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("grid", [(20, 40), (12, 40)])
def test_projection_is_idempotent_and_keeps_streamfunction_velocities(
    grid: tuple[int, int],
) -> None:
    wake = Wake(*grid)
    projected = wake.project(noise(2, *wake.shape))
    added = wake.velocity_of_streamfunction(noise(2, *grid, seed=1))

    np.testing.assert_allclose(wake.project(projected), projected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        wake.project(projected + added), projected + added, rtol=0, atol=1e-13
    )


def test_forcing_enters_as_dt_times_it_projected() -> None:
    wake = Wake(20, 40, dt=1.5)
    fields, forcing = developed(wake), 0.1 * noise(2, *wake.shape)
    free, _ = wake.step(fields, RE)

    forced, _ = wake.step(fields, RE, forcing=forcing)

    pushed = wake.project(1.5 * forcing) - wake.project(np.zeros_like(forcing))
    np.testing.assert_allclose(forced - free, pushed, rtol=0, atol=1e-13)


@CORRECTED
def test_states_do_not_know_each_other(advection: Literal["linear", "maccormack"]) -> None:
    # More states than a chunk, and Reynolds numbers that need 1 and several diffusion sub-steps.
    wake = Wake(20, 40, advection=advection)
    states = wake._chunk + 3
    reynolds = np.tile([3000.0, 2.0, 100.0, 7.0], states)[:states]
    fields = developed(wake, reynolds, 3) + 0.01 * noise(states, *wake.shape)
    forcing = 0.1 * noise(states, *wake.shape, seed=1)

    together, _ = wake.step(fields, reynolds, forcing=forcing)

    for row in range(states):
        one = slice(row, row + 1)
        alone, _ = wake.step(fields[one], reynolds[one], forcing=forcing[one])
        assert alone.tobytes() == together[one].tobytes()


def test_same_input_gives_the_same_bits_and_stays_as_it_was() -> None:
    wake = Wake(20, 40)
    fields, reynolds, forcing = developed(wake), RE.copy(), 0.1 * noise(2, *wake.shape)
    before = fields.copy(), reynolds.copy(), forcing.copy()

    first, native = wake.step(fields, reynolds, forcing=forcing)
    Wake(32, 64).step(np.zeros((1, 2, 32, 64)), RE[:1])
    wake.step(noise(5, *wake.shape), np.full(5, 50.0))

    assert native is None
    assert (copy.deepcopy(wake).step(fields, reynolds, forcing=forcing)[0] == first).all()
    assert (wake.step(fields[:, :, ::1], reynolds, forcing=forcing)[0] == first).all()
    for given, kept in zip((fields, reynolds, forcing), before, strict=True):
        assert (given == kept).all()


def test_mirrored_flow_steps_to_the_mirrored_result() -> None:
    # Upside down; no cell, wall or disc knows what is up.
    wake = Wake(20, 40)
    fields = developed(wake)
    turned = np.empty_like(fields)
    turned[:, 0] = fields[:, 0, ::-1]
    turned[:, 1, :-1], turned[:, 1, -1] = -fields[:, 1, -2::-1], 0

    stepped, mirrored = wake.step(fields, RE)[0], wake.step(turned, RE)[0]

    np.testing.assert_allclose(mirrored[:, 0], stepped[:, 0, ::-1], rtol=0, atol=1e-13)
    np.testing.assert_allclose(mirrored[:, 1, :-1], -stepped[:, 1, -2::-1], rtol=0, atol=1e-13)


def test_disc_sheds_vortices_at_the_strouhal_number_of_a_confined_disc() -> None:
    # 0.2 in free flow; a channel five diameters wide speeds the flow up past the disc by 1.25.
    wake = Wake(64, 128)
    reynolds = np.array([300.0, 2000.0])
    fields = developed(wake, reynolds, 200)
    lift = []
    for _ in range(300):
        fields, _ = wake.step(fields, reynolds)
        lift.append(fields[:, 1, 31, 58])

    signal = np.array(lift) - np.mean(lift, axis=0)
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(300)[:, None], 4096, axis=0))
    strouhal = spectrum.argmax(axis=0) / (4096 * wake.dt) * 20
    assert ((strouhal > 0.17) & (strouhal < 0.27)).all(), strouhal
    assert (signal.std(axis=0) > 0.2).all()


@pytest.mark.parametrize("columns", [64, 90])
def test_force_is_the_momentum_that_the_projection_takes(columns: int) -> None:
    # So slow and inviscid that a step is the projection alone, up to 1e-9. Pressure differences
    # sum up along rows and columns: dt (push at the walls - force) = momentum gained, and
    # pressures follow from gains, outflow faces counting half.
    wake = Wake(32, columns, dt=0.5, inflow=0.0)
    fields, reynolds = 1e-9 * noise(1, *wake.shape), np.array([1e14])
    dy, dx = wake.spacing

    gain = wake.step(fields, reynolds)[0] - fields * wake.open_faces
    ((drag, lift),) = wake.pressure_force(fields, reynolds)

    u, v = gain[0] / wake.dt
    u[:, -1] /= 2
    bottom = np.cumsum(u[0, ::-1])[::-1] * dx
    inflow = bottom[0] - np.cumsum(np.append(0, v[:-1, 0])) * dy
    top = inflow[-1] - np.cumsum(np.append(0, u[-1, :-1])) * dx
    assert drag == pytest.approx(inflow.sum() * dy - u.sum() * dx * dy, rel=1e-6)
    assert lift == pytest.approx((bottom - top).sum() * dx - v.sum() * dx * dy, rel=1e-6)


def test_drag_coefficient_of_a_developed_wake() -> None:
    # Discs of 20 % blockage: 1.3 ... 2 at these Reynolds numbers; the staircase adds some.
    wake = Wake(32, 64, dt=1.0, advection="maccormack")

    drag = wake.pressure_force(developed(wake, RE, 150), RE)[:, 0] / 10

    assert ((drag > 1.2) & (drag < 2.2)).all(), drag


def test_cfl_is_in_cells_a_step() -> None:
    wake = Wake(10, 20, dt=4.0)
    fields = np.zeros((3, *wake.shape))
    fields[0, 0, 3, 3], fields[1, 1, 2, 2] = -2.0, 3.0

    np.testing.assert_allclose(wake.cfl(fields), [0.8, 1.2, 0.0], rtol=1e-15)


def test_eddies_depend_on_the_seed_and_not_on_the_grid() -> None:
    coarse, fine = Wake(40, 80, disc=False), Wake(80, 160, disc=False)

    start = coarse.initial(RE, seed=3)

    assert (start[0] == start[1]).all()
    assert np.abs(start - coarse.initial(RE, seed=4)).max() > 0.1
    # Fluxes are differences of one streamfunction on both grids.
    np.testing.assert_allclose(
        coarse.restrict(fine.initial(RE, seed=3), 2), start, rtol=0, atol=1e-12
    )


def test_no_state_is_a_batch_too() -> None:
    wake = Wake(10, 20)

    assert wake.step(np.zeros((0, 2, 10, 20)), np.zeros(0))[0].shape == (0, 2, 10, 20)


@CORRECTED
def test_overflow_is_left_to_the_caller_to_see(advection: Literal["linear", "maccormack"]) -> None:
    wake = Wake(10, 20, advection=advection)
    start = wake.initial(RE)
    expected, _ = wake.step(start, RE)

    fields, _ = wake.step(start, RE, forcing=np.full((2, *wake.shape), 1e308))

    assert not np.isfinite(fields).all()
    assert (wake.step(start, RE)[0] == expected).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt": 0.0}, r"dt must be positive and finite, got 0\.0"),
        ({"dt": float("inf")}, r"dt must be positive and finite, got inf"),
        ({"advection": "cubic"}, r"advection must be 'linear' or 'maccormack', got 'cubic'"),
    ],
)
def test_bad_setting_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wake(10, 20, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fields": np.zeros((2, 2, 20, 10))}, r"fields must have shape \(b, 2, 10, 20\), got"),
        ({"fields": np.full((2, 2, 10, 20), np.nan)}, r"fields must be finite"),
        ({"parameters": np.ones(3)}, r"parameters must have shape \(2,\), got \(3,\)"),
        ({"parameters": np.ones((2, 1))}, r"parameters must have shape \(b,\), got \(2, 1\)"),
        ({"parameters": np.array([100.0, 0.0])}, r"Reynolds numbers of at least .*, got 0"),
        ({"parameters": np.array([100.0, -5.0])}, r"Reynolds numbers of at least .*, got -5"),
        ({"native": np.zeros(2)}, r"native must be None, got ndarray"),
        ({"forcing": np.zeros((2, 2, 5, 5))}, r"forcing must have shape \(b, 2, 10, 20\), got"),
        ({"forcing": np.zeros((1, 2, 10, 20))}, r"forcing must have shape \(2, 2, 10, 20\), got"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    given = {"fields": np.zeros((2, 2, 10, 20)), "parameters": RE, **arguments}

    with pytest.raises(ValueError, match=message):
        Wake(10, 20).step(**given)
