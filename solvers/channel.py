r"""A channel with a disc on a staggered grid: its geometry, and what a velocity on it is.

The channel is 100 high and 200 long, the disc has diameter 20 and its center at (50, 50). A field has
shape (2, rows, columns). Channel 0 is u on the right face of each cell, u[j, i] at
((i + 1) dx, (j + 1/2) dy); the last column is the outflow, the inflow is not stored. Channel 1 is
v on the top face, v[j, i] at ((i + 1/2) dx, (j + 1) dy); the last row is the top wall and 0, the
bottom wall is not stored. A corner belongs to the cell to the left below it.

A cell is solid if its center lies in the disc; a face is open if it touches no solid cell and no wall.
"""

__all__ = ["DIAMETER", "Channel", "check_array", "face_means", "outflow"]

import math

import numpy as np
from numpy.typing import NDArray

from solvers.staggered import Array

Mask = NDArray[np.bool_]

HEIGHT, LENGTH = 100.0, 200.0
DIAMETER, CENTER = 20.0, (50.0, 50.0)


class Channel:
    """The grid of a channel.

    Args:
        rows: Cells across the channel, at least 4.
        columns: Cells along it, at least 8.
        disc: Whether there is a disc.
        inflow: The velocity at the left.

    Attributes:
        shape: (2, rows, columns).
        inflow: The velocity at the left.
        spacing: Height and width (dy, dx) of a cell.
        solid: Cells of the disc, of shape (rows, columns).
        open_faces: Faces that may carry a velocity, of shape (2, rows, columns).
        disc_corners: Corners of the disc's cells, of shape (rows, columns).
        free_corners: Corners that are neither the disc's nor on the top wall.

    Raises:
        ValueError: If an argument is out of its range, or the grid too coarse for the disc.
    """

    def __init__(self, rows: int, columns: int, *, disc: bool = True, inflow: float = 1.0) -> None:
        for name, value, least in (("rows", rows, 4), ("columns", columns, 8)):
            if not _is_count(value, least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not math.isfinite(inflow):
            raise ValueError(f"inflow must be finite, got {inflow}")

        self.shape: tuple[int, ...] = (2, int(rows), int(columns))
        self.inflow = float(inflow)
        self.spacing = dy, dx = HEIGHT / rows, LENGTH / columns
        y = (np.arange(rows) + 0.5) * dy - CENTER[0]
        x = (np.arange(columns) + 0.5) * dx - CENTER[1]
        self.solid: Mask = (y[:, None] ** 2 + x**2 < (DIAMETER / 2) ** 2) & disc
        if disc and not self.solid.any():
            raise ValueError(
                f"rows x columns must resolve the disc, got {rows} x {columns}, whose cells all "
                "have their centers outside; take a finer grid"
            )
        self.open_faces = _open_faces(self.solid)
        self.disc_corners = _corners(self.solid)
        self.free_corners = ~self.disc_corners
        self.free_corners[-1] = False

    def divergence(self, fields: Array) -> Array:
        """Computes what leaves each cell.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns).

        Returns:
            Net outflow over area, of shape (b, rows, columns).

        Raises:
            ValueError: If the fields have a wrong shape or type or are not finite.
        """
        check_array(fields, "fields", self.shape)
        return outflow(fields, self.spacing, inflow=self.inflow)

    def vorticity(self, fields: Array) -> Array:
        """Computes the rotation at the corners.

        Args:
            fields: Velocities, of shape (b, 2, rows, columns).

        Returns:
            dv/dx - du/dy at the top right corner of each cell, of shape (b, rows, columns); 0
            on the top wall.

        Raises:
            ValueError: If the fields have a wrong shape or type or are not finite.
        """
        check_array(fields, "fields", self.shape)
        dy, dx = self.spacing
        u, v = fields[:, 0], fields[:, 1]
        rotation: Array = np.diff(v, axis=2, append=v[:, :, -1:]) / dx
        rotation -= np.diff(u, axis=1, append=u[:, -1:]) / dy
        rotation[:, -1] = 0
        return rotation

    def velocity_of_streamfunction(self, psi: Array) -> Array:
        """Computes a velocity that is free of divergence and crosses neither walls nor disc.

        Args:
            psi: Streamfunction at the top right corner of each cell, of shape (b, rows,
                columns). It is taken as 0 on inflow, bottom and top, and as its mean over them
                on the corners of the disc.

        Returns:
            u = dpsi/dy and v = -dpsi/dx, of shape (b, 2, rows, columns): a difference of two
            flows with the same inflow.

        Raises:
            ValueError: If the streamfunction has a wrong shape or type or is not finite.
        """
        check_array(psi, "psi", self.shape[1:])
        dy, dx = self.spacing
        kept = psi * self.free_corners
        if self.disc_corners.any():
            kept += psi[:, self.disc_corners].mean(axis=1)[:, None, None] * self.disc_corners
        u = np.diff(kept, axis=1, prepend=0) / dy
        v = -np.diff(kept, axis=2, prepend=0) / dx
        return np.stack((u, v), axis=1)

    def restrict(self, fields: Array, factor: int) -> Array:
        """Takes velocities of a finer grid to this one and keeps every flux.

        Args:
            fields: Velocities, of shape (b, 2, factor * rows, factor * columns).
            factor: How many fine cells a coarse one is wide and high.

        Returns:
            The means over the fine faces that lie on each coarse face, of shape (b, 2, rows,
            columns). What is free of divergence stays so. They need not vanish on the disc of
            this grid; :meth:`solvers.navier_stokes.Wake.project` sees to that.

        Raises:
            ValueError: If the factor is no positive integer, or the fields do not fit it.
        """
        if not _is_count(factor, 1):
            raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
        _, rows, columns = self.shape
        check_array(fields, "fields", (2, factor * rows, factor * columns))
        return face_means(fields, factor)


def face_means(fields: Array, factor: int) -> Array:
    """Takes velocities on right and top faces to a grid ``factor`` times coarser; keeps fluxes.

    Args:
        fields: Velocities, of shape (b, 2, factor * rows, factor * columns).
        factor: How many fine cells a coarse one is wide and high.

    Returns:
        The means over the fine faces that lie on each coarse face, (b, 2, rows, columns).
    """
    rows, columns = (side // factor for side in fields.shape[2:])
    blocks = fields.reshape(-1, 2, rows, factor, columns, factor)
    u = blocks[:, 0, ..., -1].mean(axis=2)
    v = blocks[:, 1, :, -1].mean(axis=3)
    return np.stack((u, v), axis=1)


def outflow(fields: Array, spacing: tuple[float, float], *, inflow: float = 0.0) -> Array:
    """Computes the divergence of velocities on right and top faces.

    Args:
        fields: Velocities, of shape (b, 2, rows, columns).
        spacing: Height and width of a cell.
        inflow: The velocity through the left end; nothing comes through the bottom.

    Returns:
        Net outflow over area, of shape (b, rows, columns).
    """
    dy, dx = spacing
    across: Array = np.diff(fields[:, 0], axis=2, prepend=inflow) / dx
    across += np.diff(fields[:, 1], axis=1, prepend=0) / dy
    return across


def check_array(array: object, name: str, shape: tuple[int, ...]) -> None:
    """Refuses what is not a batch of finite float64 arrays.

    Args:
        array: What was given.
        name: Its name, for the message.
        shape: The shape of one state's.

    Raises:
        ValueError: If it has another shape or type, or is not finite.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float64:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must be a numpy array of float64, got {kind}")
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        expected = str(("b", *shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
        raise ValueError(f"{name} must be finite, got NaN or infinity in state {row}")


def _is_count(value: object, least: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(value >= least)


def _open_faces(solid: Mask) -> Mask:
    right, top = solid.copy(), solid.copy()
    right[:, :-1] |= solid[:, 1:]
    top[:-1] |= solid[1:]
    top[-1] = True
    return ~np.stack((right, top))


def _corners(solid: Mask) -> Mask:
    """Corners, top right of each cell, that touch a solid cell."""
    touched = solid.copy()
    touched[:-1] |= solid[1:]
    touched[:, :-1] |= touched[:, 1:]
    return touched
