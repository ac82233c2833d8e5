import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ive

from solvers.burgers import Burgers

Array = NDArray[np.float64]
EPS = np.finfo(np.float64).eps


def centers(cells: int, length: float) -> Array:
    return (np.arange(cells) + 0.5) * (length / cells)


def rough(flow: Burgers, rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, *flow.shape))


def run(flow: Burgers, fields: Array, nu: Array, steps: int) -> Array:
    native = None
    for _ in range(steps):
        fields, native = flow.step(fields, nu, native)
    return fields


def cole_hopf(x: Array, t: float, nu: float) -> Array:
    """Starts as sin x: phi = exp(cos x / 2 nu) diffuses, u = -2 nu phi_x / phi."""
    n = np.arange(1, 60)[:, None]
    heat = ive(n, 0.5 / nu) * np.exp(-nu * n**2 * t)
    phi = ive(0, 0.5 / nu) + 2 * (heat * np.cos(n * x)).sum(0)
    return np.asarray(4 * nu * (n * heat * np.sin(n * x)).sum(0) / phi)


def cole_hopf_plane(cells: int, t: float, nu: float) -> Array:
    """phi = 1 + e^(-2 nu t) / 2 cos x cos y solves the heat equation; u = -2 nu grad phi / phi."""
    x = centers(cells, 2 * math.pi)
    x, y = np.meshgrid(x, x, indexing="ij")
    a = 0.5 * math.exp(-2 * nu * t)
    phi = 1 + a * np.cos(x) * np.cos(y)
    slope = np.stack((np.sin(x) * np.cos(y), np.cos(x) * np.sin(y)))
    return 2 * nu * a * slope / phi


def test_the_reference_of_cole_and_hopf_starts_as_a_sine() -> None:
    x = centers(50, 2 * math.pi)
    # phi falls to e^-4 of its largest value, so that sums lose two of sixteen digits.
    assert np.abs(cole_hopf(x, 0, 0.25) - np.sin(x)).max() < 1e-13


@pytest.mark.parametrize("dimensions", [1, 2])
def test_errors_against_cole_hopf_halve_with_the_cell(dimensions: int) -> None:
    errors = []
    for cells in (32, 64, 128):
        # The step shrinks with the square of the cell as diffusion asks; so space alone errs.
        steps, nu, t = cells**2 // 256, 0.25, 1.0
        flow = Burgers(
            cells, dimensions=dimensions, length=2 * math.pi, dt=t / steps / 8, forced=False
        )
        if dimensions == 1:
            x = centers(cells, 2 * math.pi)
            start, exact = np.sin(x)[None], cole_hopf(x, t, nu)[None]
        else:
            start, exact = (cole_hopf_plane(cells, time, nu) for time in (0.0, t))
        end = run(flow, start[None], np.array([nu]), 8 * steps)
        errors.append(np.abs(end - exact).mean())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # Of first order; terms of second order bend a measured slope by O(dx) around it.
    assert np.all(np.abs(orders - 1) < 0.15), (errors, orders)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_wave_too_small_to_advect_decays_as_the_discrete_heat_equation(dimensions: int) -> None:
    flow = Burgers(16, dimensions=dimensions, length=16, dt=0.5, forced=False)
    nu, steps, mode = 0.3, 20, 2 * math.pi * 3 / 16
    phases = mode * np.arange(16)
    wave = np.cos(phases if dimensions == 1 else phases[:, None] + phases)
    start = 1e-9 * np.broadcast_to(wave, flow.shape)
    end = run(flow, start[None], np.array([nu]), steps)[0]
    factor = (1 - dimensions * 2 * nu * flow.dt * (1 - math.cos(mode))) ** steps
    # Advection is quadratic: relative to the wave, at most 1e-9 * dt / dx * steps.
    assert np.abs(end - factor * start).max() < 1e-8 * np.abs(start).max()


def test_one_dimension_conserves_momentum_to_rounding() -> None:
    flow = Burgers(64, dimensions=1, length=64, forced=False)
    start = rough(flow, 3)
    end = run(flow, start, np.array([0.0, 0.1, 0.5]), 100)
    assert np.abs(end - start).max() > 0.1
    # A step rounds each of 64 cells once or twice, by half an EPS of a number below 4.
    assert np.abs(end.sum(-1) - start.sum(-1)).max() < 100 * 64 * 4 * EPS


def test_a_shock_moves_at_the_mean_of_its_sides() -> None:
    # Rankine and Hugoniot: from 2 to 0 at speed 1; its mirror image the other way.
    flow = Burgers(200, dimensions=1, length=200, dt=0.25, forced=False)
    right = np.where(np.abs(np.arange(200) - 60) < 30, 2.0, 0.0)[None, None]
    start = np.concatenate((right, -right[..., ::-1]))
    end = run(flow, start, np.zeros(2), 40)
    front = np.flatnonzero(end[0, 0] > 1)[-1]
    assert abs(front - (89 + 10)) <= 1  # time 10, one cell of smearing
    np.testing.assert_array_equal(end[0, 0], -end[1, 0, ::-1])


def test_monotone_steps_make_no_new_extremes() -> None:
    flow = Burgers(24, length=24, forced=False)
    start = rough(flow, 2)
    nu = np.array([0.0, 1.0])
    assert flow.cfl(start, nu).max() < 1
    end = run(flow, start, nu, 30)
    assert np.all(end.max((2, 3)) <= start.max((2, 3)))
    assert np.all(end.min((2, 3)) >= start.min((2, 3)))


def test_a_uniform_wind_carries_a_ripple_upwind_by_the_textbook_formula() -> None:
    flow = Burgers(12, length=12, forced=False)
    fields = np.zeros((1, *flow.shape))
    fields[:, 0], fields[:, 1] = 2.0, -3.0
    bump = np.random.default_rng(1).normal(size=(12, 12)) * 1e-9
    fields[0, 0] += bump
    end = flow.step(fields, np.zeros(1))[0]
    from_left, from_above = bump - np.roll(bump, 1, 0), np.roll(bump, -1, 1) - bump
    expected = bump - flow.dt * (2 * from_left - 3 * from_above)
    # Rounding at 2 and the square of the ripple.
    assert np.abs(end[0, 0] - 2 - expected).max() < 8 * EPS
    np.testing.assert_array_equal(end[0, 1], -3.0)


def test_two_dimensions_commute_with_transposition_to_the_bit() -> None:
    flow = Burgers(10, length=10, substeps=2, forced=False)
    fields, force = rough(flow, 2), rough(flow, 2, seed=1)
    turned, turned_force = (a[:, ::-1].swapaxes(2, 3) for a in (fields, force))
    nu = np.array([0.1, 0.3])
    end = flow.step(fields, nu, forcing=force)[0]
    np.testing.assert_array_equal(
        flow.step(turned, nu, forcing=turned_force)[0], end[:, ::-1].swapaxes(2, 3)
    )


@pytest.mark.parametrize(("dimensions", "substeps"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_a_step_carries_a_change_exactly_as_far_as_reach_says(
    dimensions: int, substeps: int
) -> None:
    flow = Burgers(11, dimensions=dimensions, length=11, substeps=substeps)
    nu = np.array([0.2])
    fields, native = flow.initial(nu, seed=3)
    moved = fields.copy()
    moved[0, 0, *(0,) * dimensions] += 1.0
    changed = (flow.step(moved, nu, native)[0] != flow.step(fields, nu, native)[0]).any((0, 1))
    offsets = np.minimum(np.arange(11), 11 - np.arange(11))
    steps_away = offsets if dimensions == 1 else offsets[:, None] + offsets
    np.testing.assert_array_equal(changed, steps_away <= substeps)
    assert flow.reach == substeps


@pytest.mark.parametrize("dimensions", [1, 2])
def test_rows_do_not_depend_on_the_batch_around_them_to_the_bit(dimensions: int) -> None:
    flow = Burgers(32, dimensions=dimensions, substeps=2)
    nu = np.linspace(0, 0.3, 37)
    fields, native = flow.initial(nu, seed=0)
    assert native is not None
    forcing = rough(flow, 37)
    end, after = flow.step(fields, nu, native, forcing=forcing)
    assert after is not None
    for row in (0, 5, 36):
        part = slice(row, row + 1)
        alone = flow.step(fields[part], nu[part], native[part], forcing=forcing[part])
        np.testing.assert_array_equal(alone[0], end[part])
        np.testing.assert_array_equal(alone[1], after[part])
    backwards = flow.step(fields[::-1], nu[::-1], native[::-1], forcing=forcing[::-1])[0]
    np.testing.assert_array_equal(backwards[::-1], end)


def test_inputs_are_not_changed_and_steps_repeat_to_the_bit() -> None:
    flow = Burgers(8)
    nu = np.array([0.1, 0.2])
    fields, native = flow.initial(nu, seed=0)
    assert native is not None
    arrays = (fields, nu, native, rough(flow, 2))
    for array in arrays:
        array.flags.writeable = False
    first = flow.step(*arrays[:3], forcing=arrays[3])
    second = Burgers(8).step(*arrays[:3], forcing=arrays[3])
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.shares_memory(first[1], native)


def averaged(flow: Burgers, row: Array, time: float) -> Array:
    """Sums the waves of a native row one by one, each averaged over cells by Gauss's rule."""
    d, n = flow.dimensions, flow.cells
    nodes, weights = np.polynomial.legendre.leggauss(16)
    x = ((np.arange(n)[:, None] + 0.5 + 0.5 * nodes) * flow.length / n).ravel()
    total = np.zeros(flow.shape)
    for wave in row.reshape(-1, 2 * d + 2):
        k = 2 * math.pi / flow.length * wave[d : 2 * d]
        angle = k[0] * x if d == 1 else k[0] * x[:, None] + k[1] * x
        values = np.sin(angle + wave[-2] * time + wave[-1])
        for _ in range(d):
            values = np.moveaxis(values.reshape(n, 16, *values.shape[1:]), 1, -1) @ (weights / 2)
            values = np.moveaxis(values, 0, -1)
        total += wave[:d].reshape(-1, *(1,) * d) * values
    return total


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_resting_flow_gains_the_average_force_of_its_cells(dimensions: int) -> None:
    flow = Burgers(12, dimensions=dimensions, length=5.0, dt=0.2)
    nu = np.array([0.01, 0.01])
    _, native = flow.initial(nu, seed=1)
    assert native is not None
    native[:, 0] = [0.0, 1.7]
    extra = rough(flow, 2)
    end, after = flow.step(np.zeros((2, *flow.shape)), nu, native, forcing=extra)
    for row, time in enumerate((0.0, 1.7)):
        force = averaged(flow, native[row, 1:], time)
        # Gauss's rule of 16 nodes errs below rounding on two thirds of a wave; 20 waves of .15.
        assert np.abs(end[row] - flow.dt * (force + extra[row])).max() < 1e-13
        assert np.abs(flow.driving_force(native)[row] - force).max() < 1e-13
    assert after is not None
    np.testing.assert_array_equal(after[:, 0], [0.2, 1.9])
    np.testing.assert_array_equal(after[:, 1:], native[:, 1:])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_stages_of_a_step_share_its_force(dimensions: int) -> None:
    flow = Burgers(8, dimensions=dimensions, substeps=4, forced=False)
    push = np.ones((1, *flow.shape))
    end = flow.step(push, np.array([0.1]), forcing=3 * push)[0]
    # A uniform flow under a uniform force gains dt times the force; four roundings near 1.
    assert np.abs(end - (1 + 3 * flow.dt)).max() < 8 * EPS


def test_forces_and_waves_lie_in_the_ranges_of_the_scenario() -> None:
    native = Burgers(8).initial(np.zeros(50), seed=0)[1]
    assert native is not None
    constants = native[:, 1:].reshape(-1, 6)
    assert np.abs(constants[:, :2]).max() <= 0.15
    # Uniform on [-a, a] has the standard deviation a / sqrt 3; 5 standard errors of 2,000.
    assert abs(constants[:, :2].std() / (0.15 / math.sqrt(3)) - 1) < 5 * math.sqrt(0.8 / 4 / 2000)
    sizes = np.hypot(*constants[:, 2:4].T)
    assert 4 - math.sqrt(0.5) <= sizes.min() < 4.5
    assert 7.5 < sizes.max() <= 8 + math.sqrt(0.5)
    np.testing.assert_array_equal(constants[:, 2:4], np.rint(constants[:, 2:4]))
    assert np.abs(constants[:, 4]).max() <= 0.4
    assert constants[:, 5].min() >= 0
    assert constants[:, 5].max() <= 2 * math.pi


@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_coarse_grid_shares_the_native_part_and_restricted_fields(dimensions: int) -> None:
    fine, coarse = (
        Burgers(32, dimensions=dimensions, substeps=4),
        Burgers(8, dimensions=dimensions),
    )
    nu = np.array([0.1, 0.2])
    fields, native = fine.initial(nu, seed=0)
    few, same = coarse.initial(nu, seed=0)
    assert native is not None
    np.testing.assert_array_equal(native, same)
    # Rounding of 20 waves; modes of 8 on 8 cells vanish from both.
    assert np.abs(fine.restrict(fields, 4) - few).max() < 1e-13
    force = fine.restrict(fine.driving_force(native), 4)
    assert np.abs(force - coarse.driving_force(native)).max() < 1e-13
    np.testing.assert_array_equal(
        fine.step(fields, nu, native)[1], coarse.step(few, nu, native)[1]
    )


def test_restriction_is_the_mean_of_a_block_and_keeps_the_sum() -> None:
    flow = Burgers(6)
    fields = np.arange(2 * 36.0).reshape(1, 2, 6, 6)
    few = flow.restrict(fields, 3)
    assert few.shape == (1, 2, 2, 2)
    assert few[0, 1, 0, 1] == fields[0, 1, :3, 3:].mean()
    assert few.sum() * 9 == fields.sum()
    np.testing.assert_array_equal(flow.restrict(fields, 1), fields)


def test_initial_states_depend_on_seed_and_row_alone() -> None:
    flow = Burgers(16)
    several, native = flow.initial(np.full(3, 0.1), seed=5)
    alone, native_alone = flow.initial(np.array([0.2]), seed=5)
    assert native is not None
    assert native_alone is not None
    np.testing.assert_array_equal(several[:1], alone)
    np.testing.assert_array_equal(native[:1], native_alone)
    assert np.abs(several[0] - several[1]).max() > 0.1
    assert np.abs(flow.initial(np.array([0.2]), seed=6)[0] - alone).max() > 0.1


def test_the_default_scenario_stays_within_the_limit_for_200_steps() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for flow in (Burgers(32), Burgers(32, dimensions=1)):
            nu = np.full(4, 0.1)
            fields, native = flow.initial(nu, seed=0)
            for _ in range(200):
                fields, native = flow.step(fields, nu, native)
            assert 0.3 < fields.std() < 3
            assert flow.cfl(fields, nu).max() < 0.9


def test_cfl_sums_winds_and_adds_diffusion() -> None:
    flow = Burgers(10, length=5.0, dt=0.2, substeps=2, forced=False)
    fields = np.zeros((2, *flow.shape))
    fields[1, :, 3, 4] = 3.0, -1.0
    # Stages of .1 on cells of .5: (3 + 1) * .1 / .5, and 4 * .2 * .1 / .25 for diffusion.
    np.testing.assert_allclose(flow.cfl(fields), [0, 0.8], rtol=4 * EPS)
    np.testing.assert_allclose(flow.cfl(fields, np.array([0.2, 0.2])), [0.32, 1.12], rtol=4 * EPS)


def test_leaving_the_limit_warns_once_and_names_a_number_of_stages() -> None:
    flow = Burgers(8, dimensions=1, length=8, dt=1, forced=False)
    fields = np.full((1, *flow.shape), 2.5)
    with pytest.warns(UserWarning, match=r"CFL number 2\.5, .* pass substeps=3 or more"):
        flow.step(fields, np.zeros(1))
    flow.step(fields, np.zeros(1))
    enough = Burgers(8, dimensions=1, length=8, dt=1, substeps=3, forced=False)
    enough.step(fields, np.zeros(1))
    with pytest.warns(UserWarning, match=r"CFL number 1\.33, .* pass substeps=4 or more"):
        enough.step(1.6 * fields, np.zeros(1))


def test_a_blow_up_is_left_to_the_caller_as_numbers_that_are_not_finite() -> None:
    flow = Burgers(8, forced=False)
    fields = rough(flow, 2)
    fields[1] *= 1e200
    with pytest.warns(UserWarning, match="CFL"):
        end = flow.step(fields, np.zeros(2))[0]
    assert np.isfinite(end[0]).all()
    assert not np.isfinite(end[1]).all()
    fields[1] = np.nan
    assert np.isfinite(flow.step(fields, np.zeros(2))[0][0]).all()


def test_no_states_are_no_states() -> None:
    flow = Burgers(8)
    fields, native = flow.initial(np.zeros(0), seed=0)
    end, after = flow.step(fields, np.zeros(0), native)
    assert end.shape == (0, 2, 8, 8)
    assert after is not None
    assert after.shape == (0, 121)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cells": 2}, "cells must be at least 3, got 2"),
        ({"cells": 8.5}, r"cells must be an integer, got 8\.5"),
        ({"dimensions": 3}, "dimensions must be 1 or 2, got 3"),
        ({"dimensions": 0}, "dimensions must be at least 1, got 0"),
        ({"length": 0.0}, r"length must be positive and finite, got 0\.0"),
        ({"dt": math.nan}, "dt must be positive and finite, got nan"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Burgers(**{"cells": 8, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fields": np.zeros((1, 2, 8, 9))}, r"fields must have shape \(b, 2, 8, 8\), got"),
        ({"parameters": np.zeros(2)}, r"parameters must have shape \(1,\), got \(2,\)"),
        ({"parameters": np.array([-0.1])}, r"finite and not negative, got -0\.1"),
        ({"parameters": np.array([np.nan])}, "finite and not negative, got nan"),
        ({"parameters": np.array([41.0])}, "at most 40 for .* got 41.0; pass substeps=2 or more"),
        ({"native": None}, "native must be time and constants of the force, got None; take it"),
        ({"native": np.zeros((1, 81))}, r"native must have shape \(1, 121\), got \(1, 81\)"),
        ({"forcing": np.zeros((1, 2, 8))}, "forcing must have shape"),
        (
            {"forcing": np.zeros((2, 2, 8, 8))},
            r"forcing must have shape \(1, 2, 8, 8\), got \(2, 2, 8, 8\)",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(change: dict[str, Array], match: str) -> None:
    state = {"fields": np.zeros((1, 2, 8, 8)), "parameters": np.zeros(1)}
    state |= {"native": np.zeros((1, 121))} | change
    with pytest.raises(ValueError, match=match):
        Burgers(8).step(**state)


def test_arrays_of_another_type_are_refused() -> None:
    flow = Burgers(8, dimensions=1, forced=False)
    with pytest.raises(TypeError, match="fields must be an array of float64, got float32 array"):
        flow.step(np.zeros((1, 1, 8), np.float32), np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parameters must be an array of float64, got list"):
        flow.step(np.zeros((1, 1, 8)), [0.1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="native must be None without a force"):
        flow.step(np.zeros((1, 1, 8)), np.zeros(1), np.zeros((1, 81)))
    with pytest.raises(ValueError, match="native must be None without a force"):
        flow.driving_force(np.zeros((1, 81)))
    with pytest.raises(ValueError, match="factor must divide the 8 cells, got 3"):
        flow.restrict(np.zeros((1, 1, 8)), 3)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        flow.initial(np.zeros(1), seed=-1)
    with pytest.raises(ValueError, match=r"parameters must have shape \(b,\), got \(\)"):
        flow.initial(np.array(0.1), seed=0)
