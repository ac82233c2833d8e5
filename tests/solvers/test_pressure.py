"""The direct pressure solver against dense linear algebra that knows no cosines."""

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.pressure import Poisson, outer_faces

ROWS, COLUMNS, SPACING = 8, 12, (1.3, 0.9)


def obstacles() -> dict[str, NDArray[np.bool_]]:
    none = np.zeros((ROWS, COLUMNS), np.bool_)
    staircase, two, at_the_wall = none.copy(), none.copy(), none.copy()
    staircase[3:5, 4:6] = staircase[2, 4] = True
    two[2, 3] = two[5:7, 7:9] = True
    at_the_wall[:2, 5:7] = True
    return {"none": none, "staircase": staircase, "two": two, "at_the_wall": at_the_wall}


def dense(solid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """D G, written cell by cell."""
    index = np.arange(solid.size).reshape(solid.shape)
    matrix = np.zeros((solid.size, solid.size))
    for j, i in zip(*np.nonzero(~solid), strict=True):
        for to_j, to_i, h in ((0, 1, 0.9), (0, -1, 0.9), (1, 0, 1.3), (-1, 0, 1.3)):
            row, column = j + to_j, i + to_i
            if column == COLUMNS:
                matrix[index[j, i], index[j, i]] -= 2 / h**2
            elif 0 <= row < ROWS and column >= 0 and not solid[row, column]:
                matrix[index[j, i], index[row, column]] += 1 / h**2
                matrix[index[j, i], index[j, i]] -= 1 / h**2
    return matrix


@pytest.mark.parametrize("obstacle", obstacles())
def test_pressure_is_that_of_a_dense_solve(obstacle: str) -> None:
    solid = obstacles()[obstacle]
    q = np.random.default_rng(0).normal(size=(3, ROWS, COLUMNS)) * ~solid
    fluid = ~solid.ravel()

    p = Poisson(SPACING, solid).solve(q)

    expected = np.linalg.solve(dense(solid)[np.ix_(fluid, fluid)], q.reshape(3, -1)[:, fluid].T)
    # The condition number is about 400: 1e-11 leaves two digits to the sums.
    np.testing.assert_allclose(p.reshape(3, -1)[:, fluid], expected.T, rtol=0, atol=1e-11)


def test_bases_are_orthonormal() -> None:
    poisson = Poisson(SPACING, obstacles()["none"])

    for basis in (poisson.row_basis, poisson.column_basis):
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-14)
    assert (poisson.column_basis == poisson.column_basis.T).all()


def test_result_and_memory_can_be_given() -> None:
    poisson = Poisson(SPACING, obstacles()["two"])
    q = np.random.default_rng(0).normal(size=(2, ROWS, COLUMNS))
    before, room = q.copy(), np.zeros((2, ROWS + 2, COLUMNS + 2))

    poisson.solve(q, out=room[:, 1:-1, 1:-1], work=(np.ones_like(q), np.ones_like(q)))

    assert (room[:, 1:-1, 1:-1] == poisson.solve(q)).all()
    assert (q == before).all()
    assert not room[:, 0].any()


def test_outer_faces_are_pairs_of_fluid_and_solid() -> None:
    solid = np.zeros((3, 4), np.bool_)
    solid[1, 1:3] = True

    fluid, inside = outer_faces(solid)

    pairs = sorted(zip(fluid.tolist(), inside.tolist(), strict=True))
    assert pairs == [(1, 5), (2, 6), (4, 5), (7, 6), (9, 5), (10, 6)]
