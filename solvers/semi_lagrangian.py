r"""Semi-Lagrangian advection of a staggered velocity by itself.

A face's new value is the old field at the point from where the flow reaches the face. With the
face at :math:`x`, the velocity :math:`w` there (its own component, and the mean of the four
nearest faces of the other) and bilinear interpolation :math:`I`,

.. math::
    A u (x) = (I u)(x - w \Delta t)                                                    \tag{1}

(1) is stable at any time step, never exceeds the old values and smears them like a viscosity
:math:`\Delta x^2 c (1 - c) / 2 \Delta t`, with c the fractional part of the cells covered in a
step. MacCormack's correction goes forth and back, and takes half of the error off:

.. math::
    \hat u = A u, \qquad u' = \hat u + \tfrac12 (u - \bar A \hat u)                     \tag{2}

:math:`\bar A` is (1) with :math:`-w`. (2) is of second order where it is smooth; clipped to the
values that the interpolation in (1) saw, it stays stable.

Velocities are in cells per step (Courant numbers), so that a displacement is the velocity itself.
Points outside of the domain are moved to its boundary.

References:
    | An unconditionally stable MacCormack method (Selle, Fedkiw, Kim, Liu & Rossignac, 2008)
    | https://doi.org/10.1007/s10915-007-9166-4
"""

__all__ = ["Advection", "Workspace"]

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from solvers.staggered import Array, Layout


@dataclass
class Workspace:
    """Arrays for the step of b states, kept: fresh memory costs more than the arithmetic.

    Attributes:
        now, then: Two padded velocities, of shape (b, 2, size), in cells per step.
        y, x: Points, then fractions of a cell, of shape (b, 2, inner).
        index: The cells of the points, as flat indices; of the same shape, as all that follows.
        corners: The four values around each point.
        bounds: Least and greatest of them; none without MacCormack's correction.
        transforms: Two unpadded fields, of shape (b, rows, columns).
    """

    now: Array
    then: Array
    y: Array
    x: Array
    index: NDArray[np.intp]
    corners: tuple[Array, ...]
    bounds: tuple[Array, ...]
    transforms: tuple[Array, ...]

    @classmethod
    def of(cls, states: int, layout: Layout, *, corrected: bool) -> Self:
        """Makes the arrays.

        Args:
            states: Number b of states.
            layout: The grid.
            corrected: Whether there are ``bounds``.

        Returns:
            The arrays, of any content but for the ghosts of ``now`` and ``then``, which are 0.
        """
        inner, plain = (states, 2, layout.inner), (states, layout.rows, layout.columns)
        return cls(
            now=np.zeros((states, 2, layout.size)),
            then=np.zeros((states, 2, layout.size)),
            y=np.empty(inner),
            x=np.empty(inner),
            index=np.empty(inner, np.intp),
            corners=tuple(np.empty((4, *inner))),
            bounds=tuple(np.empty((2, *inner))) if corrected else (),
            transforms=tuple(np.empty((2, *plain))),
        )

    def first(self, states: int) -> "Workspace":
        """Views the arrays of the first states.

        Args:
            states: How many.

        Returns:
            A workspace on the same memory.
        """
        return Workspace(
            self.now[:states],
            self.then[:states],
            self.y[:states],
            self.x[:states],
            self.index[:states],
            tuple(array[:states] for array in self.corners),
            tuple(array[:states] for array in self.bounds),
            tuple(array[:states] for array in self.transforms),
        )


class Advection:
    """Advects padded velocities by eq. (1), or by eq. (2).

    Args:
        layout: The grid.
        corrected: Chooses eq. (2).
    """

    def __init__(self, layout: Layout, *, corrected: bool) -> None:
        self._layout, self._corrected = layout, corrected
        flat = np.arange(layout.width, layout.size - layout.width)
        self._home_y, self._home_x = (part.astype(float) for part in divmod(flat, layout.width))
        rows, columns = float(layout.rows), float(layout.columns)
        # Where the domain ends, in positions of u and of v: on a face or half a cell before it.
        self._ends_y = ((0.5, rows + 0.5), (0.0, rows))
        self._ends_x = ((0.0, columns), (0.5, columns + 0.5))

    def __call__(self, work: Workspace, inflow: float) -> None:
        """Advects ``work.now``, whose ghosts are written, into the faces of ``work.then``.

        Args:
            work: The states.
            inflow: The velocity of the inflow, in cells per step.
        """
        here = self._layout.here
        old, new = work.now, work.then[..., here]
        self._depart(work, -1)
        self._gather(old, work)
        if not self._corrected:
            _blend(work, out=new)
            return

        low, high = work.bounds
        _extremes(work.corners, low, high)
        _blend(work, out=new)
        self._layout.fill_ghosts(work.then, inflow)
        self._depart(work, +1)
        self._gather(work.then, work)
        back = _blend(work, out=work.corners[1])
        np.subtract(old[..., here], back, out=back)
        back *= 0.5
        back += new
        np.clip(back, low, high, out=new)

    def _depart(self, work: Workspace, sign: int) -> None:
        """The points ``sign`` steps along the flow from each face, in padded rows and columns."""
        at, u, v = self._layout, work.now[:, 0], work.now[:, 1]
        y, x = work.y, work.x
        move = np.subtract if sign < 0 else np.add

        move(self._home_x, u[:, at.here], out=x[:, 0])
        around = (u[:, at.here], u[:, at.left], u[:, at.above], u[:, at.above_left])
        _mean_of_four(around, out=x[:, 1])
        move(self._home_x, x[:, 1], out=x[:, 1])

        move(self._home_y, v[:, at.here], out=y[:, 1])
        around = (v[:, at.here], v[:, at.right], v[:, at.below], v[:, at.below_right])
        _mean_of_four(around, out=y[:, 0])
        move(self._home_y, y[:, 0], out=y[:, 0])

        for component in (0, 1):
            np.clip(y[:, component], *self._ends_y[component], out=y[:, component])
            np.clip(x[:, component], *self._ends_x[component], out=x[:, component])

    def _gather(self, padded: Array, work: Workspace) -> None:
        """The four values around each point of (y, x), which become fractions of a cell."""
        y, x, width = work.y, work.x, self._layout.width
        row, column = work.corners[:2]
        np.floor(y, out=row)
        np.floor(x, out=column)
        y -= row
        x -= column
        row *= width
        row += column
        np.copyto(work.index, row, casting="unsafe")
        states = np.arange(0, 2 * len(padded) * self._layout.size, self._layout.size)
        work.index += states.reshape(-1, 2, 1)

        flat = padded.reshape(-1)
        for corner, shift in zip(work.corners, (0, 1, width, width + 1), strict=True):
            # All points are inside; "clip" spares numpy the copy that "raise" makes.
            np.take(flat[shift:], work.index, out=corner, mode="clip")


def _mean_of_four(faces: tuple[Array, Array, Array, Array], out: Array) -> None:
    np.add(faces[0], faces[1], out=out)
    out += faces[2]
    out += faces[3]
    out *= 0.25


def _blend(work: Workspace, out: Array) -> Array:
    """Interpolates bilinearly between the gathered corners, which are used up."""
    a, b, c, d = work.corners
    b -= a
    b *= work.x
    a += b
    d -= c
    d *= work.x
    c += d
    c -= a
    c *= work.y
    return np.add(a, c, out=out)


def _extremes(corners: tuple[Array, ...], low: Array, high: Array) -> None:
    for bound, pick in ((low, np.minimum), (high, np.maximum)):
        pick(corners[0], corners[1], out=bound)
        pick(bound, corners[2], out=bound)
        pick(bound, corners[3], out=bound)
