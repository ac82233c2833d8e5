"""Correctors: their sizes, their units, and what their outputs leave unchanged."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.correction.correctors import (
    Corrector,
    Free,
    NetworkName,
    Output,
    Streamfunction,
    build,
)
from solvers.navier_stokes import Wake
from tests.simulators import corrector_for

NAMES: list[NetworkName] = ["cnn", "um-small", "um-resnet"]


@pytest.mark.parametrize(
    ("name", "outputs", "weights"),
    # 5x5 convolutions: a * b * 25 + b. cnn 608 + 1608 + 201; um-small 2432 + 51264 + 3202;
    # um-resnet 2432 + 10 * 25632 + 1602. The last two are the numbers published for them.
    [("cnn", 1, 2_417), ("um-small", 2, 56_898), ("um-resnet", 2, 260_354)],
)
def test_networks_have_the_stated_numbers_of_weights(
    name: NetworkName, outputs: int, weights: int
) -> None:
    network = build(name, 3, outputs, rows=32, periodic=False)
    assert sum(p.numel() for p in network.parameters()) == weights


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("periodic", [True, False])
def test_an_untrained_network_corrects_nothing(name: NetworkName, periodic: bool) -> None:
    network = build(name, 3, 2, rows=6, periodic=periodic)
    controls = network(torch.randn(2, 3, 6, 7))
    assert controls.shape == (2, 2, 6, 7)
    assert not controls.any()
    assert any(p.any() for p in network.parameters())


def test_initial_weights_come_from_the_generator() -> None:
    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        network = build("cnn", 3, 1, rows=4, periodic=False, width=40, generator=generator)
        return network[2][1].weight.detach()

    torch.rand(3)
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    # He's initialization for a slope of .2: variance 2 / (1 + .04) / fan-in, here 40,000 draws
    variance = 2 / 1.04 / (40 * 25)
    relative = float(drawn(1).var()) / variance
    assert relative == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 6])
def test_on_a_periodic_grid_a_shift_of_the_field_shifts_the_correction(
    name: NetworkName, rows: int
) -> None:
    grid = (rows, 8) if rows > 1 else (8,)
    network = build(name, 2, 1, rows=rows, periodic=True)
    with torch.no_grad():
        for p in network[-1].parameters():
            p.normal_()
    corrector = Corrector(
        network, Free(torch.ones(1, *grid)), field_scale=1.0, parameters=(1.0, 2.0), scale=1.0
    )
    u, p = torch.randn(2, 1, *grid), torch.tensor([1.0, 1.5])
    axes = tuple(range(2, 2 + len(grid)))
    by = (2, -3)[-len(grid) :]

    with torch.no_grad():
        shifted, expected = corrector(u.roll(by, axes), p), corrector(u, p).roll(by, axes)

    assert expected.shape == u.shape
    # sums of 800 products in another order, through up to 12 layers
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_without_periodicity_nothing_comes_in_from_the_other_side() -> None:
    network = build("cnn", 1, 1, rows=20, periodic=False, width=2)
    with torch.no_grad():
        network[-1][1].weight.fill_(1.0)
    x = torch.zeros(1, 1, 20, 20)
    x[0, 0, 0, 0] = 1.0
    changed = (network(x) - network(torch.zeros_like(x)))[0, 0].nonzero()
    assert changed.max() == 6  # three convolutions of two cells each


def test_features_are_in_units_of_the_data() -> None:
    corrector = Corrector(
        build("cnn", 2, 1, rows=1, periodic=True).float(),
        Free(torch.ones(1, 5)),
        field_scale=4.0,
        parameters=(100.0, 1600.0),
        scale=0.1,
    )
    fields = torch.arange(10.0).view(2, 1, 5)
    seen = corrector.features(fields, torch.tensor([100.0, 400.0]))

    assert seen.dtype == torch.float32
    assert seen.shape == (2, 2, 1, 5)
    torch.testing.assert_close(seen[:, 0, 0], (fields[:, 0] / 4).float())
    # the middle on a logarithmic scale is 400; the ends are at -1 and 1
    torch.testing.assert_close(seen[:, 1, 0], torch.tensor([[-1.0], [0.0]]).float().expand(2, 5))


def test_a_single_training_parameter_is_at_zero() -> None:
    corrector = Corrector(
        build("cnn", 2, 1, rows=1, periodic=True),
        Free(torch.ones(1, 5)),
        field_scale=1.0,
        parameters=(3.0, 3.0),
        scale=1.0,
    )
    assert not corrector.features(torch.ones(1, 1, 5), torch.tensor([3.0]))[:, 1].any()


def test_a_correction_is_scaled_and_stays_where_it_may_be() -> None:
    movable = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    corrector = corrector_for((1, 2, 2), scale=0.25, movable=movable)
    found = corrector.correction(torch.ones(1, 1, 2, 2).float(), (2, 2))
    assert found.dtype == torch.float64
    assert found.tolist() == [[[[0.25, 0.0], [0.25, 0.25]]]]
    assert corrector.scale == 0.25


def wake(rows: int = 20, columns: int = 40) -> tuple[Wake, Streamfunction]:
    flow = Wake(rows, columns)
    free, disc = torch.from_numpy(flow.free_corners), torch.from_numpy(flow.disc_corners)
    return flow, Streamfunction(flow.spacing, free, disc)


@pytest.mark.parametrize("grid", [(20, 40), (16, 24)])
def test_a_streamfunction_gives_the_solver_s_own_velocity(grid: tuple[int, int]) -> None:
    flow, output = wake(*grid)
    psi = torch.randn(3, 1, *grid)

    found = output(psi).numpy()

    # A control of one is a velocity of one around a square cell: psi in units of sqrt(dx dy)
    dy, dx = flow.spacing
    expected = flow.velocity_of_streamfunction(psi[:, 0].numpy() * math.sqrt(dx * dy))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_a_streamfunction_s_flow_has_no_divergence_and_crosses_neither_walls_nor_disc() -> None:
    flow, output = wake()
    u, v = output(torch.randn(3, 1, 20, 40)).unbind(1)
    dy, dx = flow.spacing

    left = torch.nn.functional.pad(u, (1, 0))[:, :, :-1]
    below = torch.nn.functional.pad(v, (0, 0, 1, 0))[:, :-1]
    assert ((u - left) / dx + (v - below) / dy).abs().max() < 1e-12
    assert not v[:, -1].any()  # the top wall
    closed = torch.from_numpy(~flow.open_faces)
    around = torch.stack((u, v), 1)[:, closed]
    # a constant around the disc: differences of equal numbers
    assert not around.any()
    assert flow.solid.any()


def test_a_streamfunction_passes_the_solver_s_projection_unchanged() -> None:
    flow, output = wake()
    start = flow.initial(np.array([100.0]))
    moved = start + output(torch.randn(1, 1, 20, 40)).numpy()
    np.testing.assert_allclose(flow.project(moved), moved, rtol=0, atol=1e-11)


def test_without_an_obstacle_a_streamfunction_is_a_plain_curl() -> None:
    free = torch.ones(3, 4, dtype=torch.bool)
    output = Streamfunction((1.0, 4.0), free, torch.zeros(3, 4, dtype=torch.bool))
    psi = torch.zeros(1, 1, 3, 4)
    psi[0, 0, 1, 2] = 1.0
    u, v = output(psi)[0]
    # times sqrt(dx dy) = 2; u = 2 / dy on the face below and -2 / dy above, v = -2 / dx and 2 / dx
    assert u.nonzero().tolist() == [[1, 2], [2, 2]]
    assert u[1:, 2].tolist() == [2.0, -2.0]
    assert v.nonzero().tolist() == [[1, 2], [1, 3]]
    assert v[1, 2:].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("output", [wake()[1], Free(torch.ones(1, 20, 40))])
def test_outputs_are_linear(output: Output) -> None:
    a, b = torch.randn(2, 2, 1, 20, 40)
    torch.testing.assert_close(
        output(2 * a - 3 * b), 2 * output(a) - 3 * output(b), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"field_scale": 0.0}, r"field_scale must be positive and finite, got 0\.0"),
        ({"scale": math.nan}, "scale must be positive and finite, got nan"),
        ({"parameters": (-1.0, 2.0)}, r"parameters must be positive and finite, got -1\.0"),
        ({"parameters": (1.0, math.nan)}, "parameters must be positive and finite, got nan"),
        ({"parameters": (1.0, math.inf)}, "parameters must be positive and finite, got inf"),
    ],
)
def test_units_out_of_range_are_refused(change: dict[str, float], match: str) -> None:
    units = {"field_scale": 1.0, "parameters": (1.0, 2.0), "scale": 1.0} | change
    with pytest.raises(ValueError, match=match):
        Corrector(torch.nn.Conv2d(1, 1, 1), Free(torch.ones(1, 2)), **units)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "unet"}, "name must be cnn, um-small or um-resnet, got 'unet'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_networks_that_do_not_exist_are_refused(change: dict[str, object], match: str) -> None:
    arguments = {"name": "cnn", "channels": 3, "outputs": 1, "rows": 4, "periodic": True} | change
    with pytest.raises(ValueError, match=match):
        build(**arguments)
