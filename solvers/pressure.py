r"""The part of a staggered velocity that is free of divergence in a channel around an obstacle.

On a box of cells, with the divergence :math:`D` of the face velocities, the gradient :math:`G`
and the pressure :math:`p` (walls: no gradient; last column: :math:`p = 0` on the outer face):

.. math::
    u = u^* - G p, \qquad D G p = D u^*                                               \tag{1}

Without an obstacle D G is diagonal in cosines, those of DCT-II across the channel (rows of
:math:`C_y`) and those of DCT-IV along it (the symmetric :math:`C_x`):

.. math::
    C_y (D G p) C_x = (\lambda_y + \lambda_x) \circ (C_y \, p \, C_x)                   \tag{2}

Around an obstacle the faces :math:`b` between fluid and solid must carry no velocity. The flow
of the open box does that if an unknown force :math:`f` acts on those faces alone. With
:math:`E` the faces' columns of the identity and :math:`u^*` zero on them,

.. math::
    p = (D G)^{-1} (D u^* + D E f), \qquad S f = E^T G (D G)^{-1} D u^*, \qquad
    S = E^T (I - G (D G)^{-1} D) E                                                    \tag{3}

so that :math:`f - E^T G p = 0`. S has as many rows as the obstacle has outer faces (28 on 32 x 64
cells) and one null vector for each connected part of the obstacle, to which the right-hand side
is orthogonal: a pseudo-inverse, computed once, is exact. Everything that the obstacle changes
happens on the cells at those faces, inside one small patch of the grid; so beside the two
transforms of (2) it costs two small products. A solve is direct: its error is rounding.

The products are made state by state, whatever the batch: a state's bits depend on it alone. On one
core they beat fast transforms (scipy.fft) up to 64 x 128 cells, and lose a tenth at 128 x 256.

References:
    | The Direct Solution of the Discrete Poisson Equation on Irregular Regions
      (Buzbee, Dorr, George & Golub: capacitance matrices, 1971), https://doi.org/10.1137/0708066
"""

__all__ = ["Patch", "Poisson", "outer_faces"]

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.staggered import Array

Mask = NDArray[np.bool_]


class Patch(NamedTuple):
    """The cells at an obstacle's faces, and what a pressure there gives back as a source."""

    rows: slice
    columns: slice
    cells: NDArray[np.intp]
    response: Array


class Poisson:
    r"""Solves D G p = q, eq. (1) to (3), directly, for many right-hand sides.

    Args:
        spacing: Height and width (dy, dx) of a cell.
        solid: Cells of the obstacle, of shape (rows, columns); none is an open box.

    Attributes:
        row_basis: :math:`C_y`, orthonormal, of shape (rows, rows); a row is a cosine.
        column_basis: :math:`C_x`, orthonormal, of shape (columns, columns); symmetric.
        inverse: :math:`1 / (\lambda_y + \lambda_x)`, of shape (rows, columns).
        patch: ``None`` in an open box.
    """

    def __init__(self, spacing: tuple[float, float], solid: Mask) -> None:
        rows, columns = solid.shape
        self.row_basis, row_values = _neumann(rows, spacing[0])
        self.column_basis, column_values = _outflow(columns, spacing[1])
        self.inverse = 1 / (row_values[:, None] + column_values)
        self.patch = _patch(self, spacing, solid) if solid.any() else None

    def solve(
        self, q: Array, *, out: Array | None = None, work: tuple[Array, ...] | None = None
    ) -> Array:
        """Solves for the pressure.

        Args:
            q: Divergence :math:`D u^*`, of shape (b, rows, columns), zero in solid cells.
            out: Where to write the pressure.
            work: Memory to compute in, two arrays of the same shape.

        Returns:
            The pressure, of the same shape. It has no meaning in solid cells.
        """
        half, spectrum = np.empty((2, *q.shape)) if work is None else work
        np.matmul(self.row_basis, q, out=half)
        np.matmul(half, self.column_basis, out=spectrum)
        spectrum *= self.inverse
        if self.patch is not None:
            spectrum += self._answer(spectrum, self.patch, half)
        np.matmul(self.row_basis.T, spectrum, out=half)
        pressure: Array = np.matmul(half, self.column_basis, out=out)
        return pressure

    def _answer(self, spectrum: Array, patch: Patch, out: Array) -> Array:
        """The cosines of the pressure that the forces on the obstacle's faces add."""
        rows, columns = self.row_basis[:, patch.rows], self.column_basis[patch.columns]
        near = (rows.T @ spectrum) @ columns.T
        flat = near.reshape(len(near), -1)
        sources = patch.response @ flat[:, patch.cells, None]
        flat[...] = 0
        flat[:, patch.cells] = sources[..., 0]
        np.matmul(rows @ near, columns, out=out)
        out *= self.inverse
        return out


def _neumann(cells: int, spacing: float) -> tuple[Array, Array]:
    """Cosines without slope at both ends, as rows, and the eigenvalues of the difference."""
    k, i = np.arange(cells), np.arange(cells) + 0.5
    basis = np.cos(np.pi * np.outer(k, i) / cells) * np.sqrt(2 / cells)
    basis[0] /= np.sqrt(2)
    return basis, -((2 / spacing * np.sin(np.pi * k / (2 * cells))) ** 2)


def _outflow(cells: int, spacing: float) -> tuple[Array, Array]:
    """Cosines without slope at the first end and zero at the last; the basis is symmetric."""
    k = np.arange(cells) + 0.5
    basis = np.cos(np.pi * np.outer(k, k) / cells) * np.sqrt(2 / cells)
    return basis, -((2 / spacing * np.sin(np.pi * k / (2 * cells))) ** 2)


def _patch(open_box: Poisson, spacing: tuple[float, float], solid: Mask) -> Patch:
    fluid, inside = outer_faces(solid)
    cells = np.unique(np.concatenate((fluid, inside)))
    width = solid.shape[1]
    rows = slice(int(cells.min() // width), int(cells.max() // width) + 1)
    columns = slice(int((cells % width).min()), int((cells % width).max()) + 1)

    # A column of `faces` is D E: what unit velocity from solid to fluid is to the cells' balance.
    across = np.abs(fluid - inside) == 1
    size = np.where(across, 1 / spacing[1], 1 / spacing[0])
    faces = np.zeros((len(cells), len(fluid)))
    order = np.arange(len(fluid))
    faces[np.searchsorted(cells, fluid), order] = -size
    faces[np.searchsorted(cells, inside), order] = size

    # In an open box D E = -(E^T G)^T, so S = I + F^T (D G)^-1 F with the same F on both sides.
    S = np.eye(len(fluid)) + faces.T @ _green(open_box, cells) @ faces
    response = -faces @ np.linalg.pinv(S, rcond=1e-10, hermitian=True) @ faces.T
    local = (cells // width - rows.start) * (columns.stop - columns.start)
    return Patch(rows, columns, local + cells % width - columns.start, response)


def outer_faces(solid: Mask) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Finds the faces between an obstacle and the fluid.

    Args:
        solid: Cells of the obstacle, of shape (rows, columns).

    Returns:
        The fluid cell and the solid cell on the two sides of each, as flat indices.
    """
    index = np.arange(solid.size).reshape(solid.shape)
    pairs = np.concatenate(
        [
            np.stack((index[:, 1:].ravel(), index[:, :-1].ravel()), axis=1),
            np.stack((index[1:].ravel(), index[:-1].ravel()), axis=1),
        ]
    )
    first, second = solid.ravel()[pairs].T
    mixed = pairs[first != second]
    is_solid = solid.ravel()[mixed[:, 0]]
    return (
        np.where(is_solid, mixed[:, 1], mixed[:, 0]),
        np.where(is_solid, mixed[:, 0], mixed[:, 1]),
    )


def _green(open_box: Poisson, cells: NDArray[np.intp]) -> Array:
    """(D G)^-1 of the open box, between the given cells alone."""
    rows, columns = np.unravel_index(cells, open_box.inverse.shape)
    C_y, C_x = open_box.row_basis[:, rows], open_box.column_basis[:, columns]
    green = np.zeros((len(cells), len(cells)))
    for values, cosine in zip(open_box.inverse, C_y, strict=True):
        green += np.outer(cosine, cosine) * (C_x.T @ (values[:, None] * C_x))
    return green
