r"""Staggered velocities in flat, padded arrays: the layout on which a channel's solver computes.

A grid of rows x columns cells stores u on the right face and v on the top face of each cell. Every
component gets one ring of ghosts, so that both have R + 2 rows and W = columns + 2 columns, and is
laid out flat. A neighbor is then a shift of the flat index, and an operation on all faces of all
states is one pass over contiguous memory, ghost columns included; what it writes there is replaced
before it is read.

======  ========================  ==========================  ===========================
ghosts  left                      right                       bottom, top
======  ========================  ==========================  ===========================
u       the inflow, on its face   as the last column          as the nearest row (no shear)
v       minus the first column    as the last column          0, the walls
======  ========================  ==========================  ===========================

Ghosts of v at the left make v vanish on the inflow, half a cell away. The top wall is the last row
of v itself.
"""

__all__ = ["Array", "Layout"]

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Layout:
    """Flat positions of the faces of a grid, and slices that shift them.

    Args:
        rows: Rows of cells.
        columns: Columns of cells.

    Attributes:
        width: Columns with ghosts.
        size: Numbers in one padded component.
        here: Slice of the rows that are no ghosts, of length rows * width; ``left``, ``right``,
            ``below``, ``above``, ``below_right`` and ``above_left`` are the neighbors' slices.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.width = columns + 2
        self.size = (rows + 2) * self.width
        self.inner = rows * self.width

        self.here = self._shift(0)
        self.left, self.right = self._shift(-1), self._shift(1)
        self.below, self.above = self._shift(-self.width), self._shift(self.width)
        self.below_right = self._shift(1 - self.width)
        self.above_left = self._shift(self.width - 1)

    def faces(self, padded: Array) -> Array:
        """Views padded arrays without their ghosts.

        Args:
            padded: Of shape (..., size).

        Returns:
            A view, of shape (..., rows, columns).
        """
        return self._grid(padded)[..., 1:-1, 1:-1]

    def fill_ghosts(self, padded: Array, inflow: float) -> None:
        """Writes the ghosts of a velocity.

        Args:
            padded: Velocity, of shape (b, 2, size); its ghosts are replaced.
            inflow: The velocity u on the left face.
        """
        u, v = self._grid(padded[:, 0]), self._grid(padded[:, 1])
        u[:, :, 0] = inflow
        u[:, :, -1] = u[:, :, -2]
        u[:, 0] = u[:, 1]
        u[:, -1] = u[:, -2]
        np.negative(v[:, :, 1], out=v[:, :, 0])
        v[:, :, -1] = v[:, :, -2]
        v[:, 0] = 0
        v[:, -1] = 0

    def fill_inflow(self, padded: Array, inflow: float) -> None:
        """Writes the inflow alone.

        Args:
            padded: Velocity, of shape (b, 2, size); the left ghosts of u are replaced.
            inflow: The velocity u on the left face.
        """
        self._grid(padded[:, 0])[:, :, 0] = inflow

    def fill_pressure_ghosts(self, padded: Array) -> None:
        """Writes the ghosts that make a pressure 0 on the outflow's faces.

        Args:
            padded: Pressure, of shape (b, size); its right ghosts are replaced.
        """
        p = self._grid(padded)
        np.negative(p[:, :, -2], out=p[:, :, -1])

    def _shift(self, by: int) -> slice:
        return slice(self.width + by, self.size - self.width + by)

    def _grid(self, padded: Array) -> Array:
        return padded.reshape(*padded.shape[:-1], self.rows + 2, self.width)
