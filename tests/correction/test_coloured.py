"""Colored gradients of Burgers flow against autograd through its twin, and against one cell at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.correction.burgers_twin import BurgersTwin
from deepzero_apps.correction.coloured import Coloring, coloured_step
from deepzero_apps.correction.simulator import Array, Metered
from deepzero_apps.zeroth_order.estimators import coordinate
from solvers.burgers import Burgers
from tests.simulators import Stencil

# The scheme is quadratic but for its kinks, where the one in two dimensions has no second
# derivative; no velocity here is within MU of zero. Central differences are then exact up to
# rounding, 1e-16 * 2 / MU = 2e-10 of an entry of order one.
MU = 1e-6
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
NU = np.array([0.1, 0.3])


def flow(cells: int, dimensions: int, substeps: int = 1) -> tuple[Burgers, BurgersTwin]:
    settings = {"dimensions": dimensions, "length": 0.8 * cells, "dt": 0.1, "substeps": substeps}
    return Burgers(cells, **settings), BurgersTwin(cells, **settings)


def leaves(solver: Burgers) -> tuple[Tensor, Tensor, Array, Tensor]:
    """Fields, forcing, native parts, and a cotangent."""
    fields, native = solver.initial(NU, seed=1)
    assert native is not None
    assert np.abs(fields).min() > MU
    forcing, cotangent = torch.randn(2, *fields.shape)
    return torch.tensor(fields, requires_grad=True), forcing.requires_grad_(), native, cotangent


@pytest.mark.parametrize(
    ("cells", "dimensions", "substeps"),
    [(9, 1, 1), (31, 1, 1), (32, 1, 2), (4, 1, 2), (9, 2, 1), (11, 2, 1), (8, 2, 2), (3, 2, 1)],
)
def test_gradients_equal_autograd_through_the_twin(
    cells: int, dimensions: int, substeps: int
) -> None:
    solver, twin = flow(cells, dimensions, substeps)
    u, f, native, cotangent = leaves(solver)
    coloring = Coloring(solver.shape, substeps)

    after, kept = coloured_step(
        solver, coloring, u, torch.tensor(NU), native=native, mu=MU, forcing=f
    )
    found = torch.autograd.grad(after, (u, f), cotangent)

    expected, expected_native = twin(u, torch.tensor(NU), torch.tensor(native), forcing=f)
    exact = torch.autograd.grad(expected, (u, f), cotangent)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.from_numpy(kept), expected_native, rtol=0, atol=0)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize(("cells", "dimensions"), [(10, 1), (7, 2)])
def test_colors_give_the_estimate_of_one_cell_at_a_time(cells: int, dimensions: int) -> None:
    solver, _ = flow(cells, dimensions)
    u, _, native, cotangent = leaves(solver)
    after, _ = coloured_step(
        solver, Coloring(solver.shape, 1), u, torch.tensor(NU), native=native, mu=MU
    )
    (found,) = torch.autograd.grad(after, u, cotangent)

    for row in range(2):

        def value(points: Tensor, row: int = row) -> Tensor:
            k = len(points)
            after, _ = solver.step(
                points.numpy(), NU[row : row + 1].repeat(k), native[row : row + 1].repeat(k, 0)
            )
            return (torch.from_numpy(after) * cotangent[row]).flatten(1).sum(1)

        dense = coordinate(value, u[row].detach(), mu=MU, central=True)
        # the dense estimate's rounding is that of a sum of up to 98 terms
        torch.testing.assert_close(found[row], dense, rtol=1e-6, atol=1e-8)


def test_the_number_of_queries_does_not_grow_with_the_grid() -> None:
    spent = []
    for cells in (32, 50, 64):
        simulator = Metered(flow(cells, 2)[0])
        u, _, native, cotangent = leaves(simulator._simulator)
        after, _ = coloured_step(
            simulator, Coloring(simulator.shape, 1), u, torch.tensor(NU), native=native, mu=MU
        )
        torch.autograd.grad(after, u, cotangent)
        spent.append(simulator.meter.spent)
    # two states, once and then twice for each of 2 * 4 * 4 colors: no side is a multiple of three
    assert spent == [2 * (1 + 2 * 32)] * 3


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("reach", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 9, 11, 13, 31])
def test_cells_of_a_color_stay_out_of_each_other_s_reach(
    periodic: bool, reach: int, side: int
) -> None:
    masks = Coloring((2, side), reach, periodic=periodic).masks(device=torch.device("cpu"))

    assert torch.equal(masks.sum(0), torch.ones(2, side))
    assert masks.amax((1, 2)).min() == 1  # no color is empty
    for mask in masks:
        channels, cells = mask.nonzero(as_tuple=True)
        assert len(channels.unique()) == 1
        apart = cells.diff().tolist()
        if periodic and len(cells) > 1:
            apart.append(int(cells[0]) + side - int(cells[-1]))
        assert not apart or min(apart) > 2 * reach


def test_a_color_for_each_place_of_a_window_and_one_more_where_a_side_is_no_multiple() -> None:
    assert Coloring((2, 9, 30), 1).colors == 2 * 3 * 3
    assert Coloring((2, 31, 32), 1).colors == 2 * 4 * 4
    assert Coloring((1, 31, 32), 1, periodic=False).colors == 3 * 3
    assert Coloring((3, 2, 4), 2).colors == 3 * 2 * 4


def test_a_reach_declared_too_small_misses_a_part_of_the_gradient() -> None:
    # Each cell sends .5 to itself and .25 two cells to the right. With windows of one cell
    # every cell misses what it sends there, and takes the credit for nobody else's.
    stencil = Stencil((1, 15), {(0,): 0.5, (2,): 0.25})
    u = torch.randn(1, 1, 15, requires_grad=True)
    cotangent = torch.randn(1, 1, 15)
    gradients = []
    for reach in (1, 2):
        after, _ = coloured_step(stencil, Coloring((1, 15), reach), u, torch.ones(1), mu=1e-3)
        gradients += torch.autograd.grad(after, u, cotangent)
    exact = 0.5 * cotangent + 0.25 * cotangent.roll(-2, -1)

    torch.testing.assert_close(gradients[1], exact, rtol=0, atol=1e-12)
    # colors three apart: cell k + 1 sees the effect of k - 1, which is of the color of k + 2
    wrong = 0.5 * cotangent + 0.25 * cotangent.roll(1, -1)
    torch.testing.assert_close(gradients[0], wrong, rtol=0, atol=1e-12)


def test_nothing_goes_around_a_grid_that_is_not_periodic() -> None:
    coloring = Coloring((1, 4, 3), 1, periodic=False)
    gathered = coloring.gathered(torch.ones(1, 4, 3))[0]
    assert gathered.tolist() == [[4, 6, 4], [6, 9, 6], [6, 9, 6], [4, 6, 4]]
    around = Coloring((1, 4, 3), 1).gathered(torch.ones(1, 4, 3))
    assert (around == 9).all()


def test_a_window_wider_than_the_grid_counts_each_cell_once() -> None:
    responses = torch.randn(2, 3, 7)
    gathered = Coloring((1, 3, 7), 3).gathered(responses)
    total = responses.sum((1, 2), keepdim=True).expand_as(responses)
    torch.testing.assert_close(gathered, total, rtol=0, atol=1e-13)


def test_only_what_is_asked_for_is_paid_for() -> None:
    simulator = Metered(Stencil((1, 9), {(1,): 1.0}))
    u, f = torch.randn(2, 1, 1, 9)
    f.requires_grad_()
    after, _ = coloured_step(simulator, Coloring((1, 9), 1), u, torch.ones(1), mu=1e-3, forcing=f)
    assert simulator.meter.spent == 1
    after.sum().backward()
    assert simulator.meter.spent == 1 + 2 * 3
    assert u.grad is None


@pytest.mark.parametrize("reach", [-1, 0.5, float("nan"), float("inf")])
def test_a_reach_that_is_no_number_of_cells_is_refused(reach: float) -> None:
    with pytest.raises(ValueError, match="reach must be a whole number of cells, got"):
        Coloring((1, 9), reach)
