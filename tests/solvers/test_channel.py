"""The channel's geometry and the laws of its velocities."""

import math
from typing import Any

import numpy as np
import pytest

from solvers.channel import Channel, check_array
from solvers.staggered import Array


def corners(channel: Channel) -> tuple[Array, Array]:
    """Coordinates of the top right corner of each cell."""
    _, rows, columns = channel.shape
    dy, dx = channel.spacing
    y, x = np.meshgrid(dy * np.arange(1, rows + 1), dx * np.arange(1, columns + 1), indexing="ij")
    return y, x


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape)


def test_disc_has_its_area_and_place() -> None:
    channel = Channel(200, 400)
    y, x = (np.mean(at + 0.5) for at in np.nonzero(channel.solid))

    # The circle crosses about 4 D / dx = 160 cells; half their root of 0.25 is the usual error.
    area = channel.solid.sum() * 0.5**2
    assert abs(area - math.pi * 10**2) < 160 * 0.5**2 / 4
    assert (y * 0.5, x * 0.5) == (50.0, 50.0)


def test_one_solid_cell_closes_four_faces_and_four_corners() -> None:
    channel = Channel(5, 10)
    assert np.argwhere(channel.solid).tolist() == [[2, 2]]

    expected = np.zeros((2, 5, 10), np.bool_)
    expected[0, 2, 1:3] = expected[1, 1:3, 2] = expected[1, 4] = True
    assert (~channel.open_faces == expected).all()
    assert np.argwhere(channel.disc_corners).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert np.argwhere(~channel.free_corners & ~channel.disc_corners)[:, 0].tolist() == [4] * 10


def test_divergence_of_a_strain() -> None:
    # u = 1 + a x and v = b y are exact for differences; their divergence is a + b.
    channel = Channel(10, 20, disc=False)
    y, x = corners(channel)

    fields = np.stack((1 + 0.3 * x, 0.2 * y))[None]

    np.testing.assert_allclose(channel.divergence(fields), 0.5, rtol=0, atol=1e-13)


def test_vorticity_of_a_rotation() -> None:
    # u = -w (y - 50), v = w x: dv/dx - du/dy = 2 w at all inner corners.
    channel = Channel(10, 20, disc=False)
    y, x = corners(channel)
    dy, dx = channel.spacing

    rotation = channel.vorticity(np.stack((-0.1 * (y - dy / 2 - 50), 0.1 * (x - dx / 2)))[None])

    np.testing.assert_allclose(rotation[0, :-1, :-1], 0.2, rtol=0, atol=1e-14)
    assert not rotation[0, -1].any()


@pytest.mark.parametrize("disc", [True, False])
def test_streamfunction_gives_no_divergence_and_no_flow_through_walls(disc: bool) -> None:
    channel = Channel(20, 40, disc=disc, inflow=0.0)

    fields = channel.velocity_of_streamfunction(noise(2, 20, 40))

    # Differences of differences cancel: rounding of numbers of size 1 over cells of 5.
    assert np.abs(channel.divergence(fields)).max() < 1e-15
    assert not fields[:, ~channel.open_faces].any()


def test_streamfunction_of_a_smooth_flow_converges_to_it() -> None:
    # psi = sin(pi y / 100) x^2: u = dpsi/dy and v = -dpsi/dx at the faces' middles, to order 2.
    def error(rows: int) -> float:
        channel = Channel(rows, 2 * rows, disc=False)
        y, x = corners(channel)
        dy, dx = channel.spacing
        k = math.pi / 100
        exact = np.stack((k * np.cos(k * (y - dy / 2)) * x**2, -np.sin(k * y) * 2 * (x - dx / 2)))
        fields = channel.velocity_of_streamfunction((np.sin(k * y) * x**2)[None])
        return float(np.abs(fields[0] - exact).max())

    assert math.log2(error(16) / error(32)) > 1.9


def test_streamfunction_is_the_mean_on_the_disc() -> None:
    channel = Channel(20, 40)
    psi = noise(1, 20, 40)
    before = psi.copy()

    flattened = psi * channel.free_corners
    flattened[:, channel.disc_corners] = psi[0, channel.disc_corners].mean()

    u = np.diff(flattened, axis=1, prepend=0) / 5
    np.testing.assert_allclose(
        channel.velocity_of_streamfunction(psi)[:, 0], u, rtol=0, atol=1e-15
    )
    assert (psi == before).all()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_restriction_keeps_every_flux_and_no_divergence(factor: int) -> None:
    fine, coarse = Channel(8 * factor, 16 * factor, disc=False), Channel(8, 16, disc=False)
    fields = fine.velocity_of_streamfunction(noise(2, 8 * factor, 16 * factor))
    fields[:, 0] += 1

    restricted = coarse.restrict(fields, factor)

    (dy, dx), (fine_dy, fine_dx) = coarse.spacing, fine.spacing
    through = fields[:, 0, :, factor - 1 :: factor] * fine_dy
    through = through.reshape(2, 8, factor, 16).sum(axis=2)
    np.testing.assert_allclose(restricted[:, 0] * dy, through, rtol=0, atol=1e-13)
    through = fields[:, 1, factor - 1 :: factor] * fine_dx
    through = through.reshape(2, 8, 16, factor).sum(axis=3)
    np.testing.assert_allclose(restricted[:, 1] * dx, through, rtol=0, atol=1e-13)
    assert np.abs(coarse.divergence(restricted)).max() < 1e-14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 3}, r"rows must be an integer of at least 4, got 3"),
        ({"rows": 16.0}, r"rows must be an integer of at least 4, got 16\.0"),
        ({"rows": True}, r"rows must be an integer of at least 4, got True"),
        ({"columns": -32}, r"columns must be an integer of at least 8, got -32"),
        ({"inflow": float("nan")}, r"inflow must be finite, got nan"),
        ({"rows": 4, "columns": 9}, r"rows x columns must resolve the disc, got 4 x 9"),
    ],
)
def test_bad_grid_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Channel(**{"rows": 16, "columns": 32, **arguments})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[1.0, 2.0]], r"fields must be a numpy array of float64, got list"),
        (np.zeros((1, 2), np.float32), r"fields must be a numpy array of float64, got float32"),
        (np.zeros((1, 3)), r"fields must have shape \(b, 2\), got \(1, 3\)"),
        (np.zeros(2), r"fields must have shape \(b, 2\), got \(2,\)"),
        (np.array([[0.0, 0.0], [0.0, np.nan]]), r"fields must be finite, got .* in state 1"),
    ],
)
def test_bad_array_is_named(array: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_array(array, "fields", (2,))


@pytest.mark.parametrize("factor", [0, 2.0, True])
def test_bad_factor_is_named(factor: int) -> None:
    with pytest.raises(ValueError, match=r"factor must be an integer of at least 1, got"):
        Channel(8, 16).restrict(np.zeros((1, 2, 16, 32)), factor)


def test_grids_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fields must have shape \(b, 2, 24, 48\), got"):
        Channel(8, 16).restrict(np.zeros((1, 2, 20, 40)), 3)
