r"""Exact gradients through a local simulator, at a number of queries that does not grow with the grid.

If a step carries a change at most r cells, then cells 2 r + 1 apart can be moved at once and each
recognizes its own effects (Curtis, Powell and Reid). For a cotangent :math:`\lambda` at the simulator's
answer and the cells k of a color,

.. math::
    (J^\top \lambda)_k \approx \sum_{|o| \le r} \lambda_{k + o}
        \frac{S(u + \mu e)_{k + o} - S(u - \mu e)_{k + o}}{2 \mu}, \qquad e = \sum_k e_k   \tag{1}

is the coordinate-wise estimate of each of them, with an error of :math:`O(\mu^2)`. A field of c
components on a grid of D axes takes :math:`2 c (2 r + 1)^D` calls. A periodic side of n cells that is
no multiple of 2 r + 1 is cut in as many segments as possible, with one color for each place of the
longest: :math:`\lceil n / \lfloor n / (2 r + 1) \rfloor \rceil` colors, one more on all but small grids.

References:
    | On the estimation of sparse Jacobian matrices (Curtis, Powell and Reid, 1974)
    | https://doi.org/10.1093/imamat/13.1.117
"""

__all__ = ["Coloring", "coloured_step"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from deepzero_apps.correction.simulator import Simulator
from deepzero_apps.correction.unrolled import advance


@dataclass(frozen=True)
class Coloring:
    """Which numbers of a field are moved together.

    Args:
        shape: The shape of a field, ``(c, *grid)``.
        reach: How many cells a step carries a change, r.
        periodic: Whether what leaves the grid comes in at the other side.

    Raises:
        ValueError: If ``reach`` is no whole number.
    """

    shape: tuple[int, ...]
    reach: int
    periodic: bool = True

    def __post_init__(self) -> None:
        if self.reach < 0 or not float(self.reach).is_integer():
            raise ValueError(f"reach must be a whole number of cells, got {self.reach}")

    @property
    def spacing(self) -> tuple[int, ...]:
        """The colors along each axis of the grid: the most cells from one of a color to the next."""
        return tuple(int(self._along_side(side).max()) + 1 for side in self.shape[1:])

    @property
    def colors(self) -> int:
        """The number of colors of all components; a gradient costs twice as many calls."""
        return self.shape[0] * int(np.prod(self.spacing))

    def masks(self, *, device: torch.device) -> Tensor:
        """Returns the sets, float64 ``(colors, c, *grid)``; every number is in exactly one."""
        color = torch.arange(self.shape[0])
        for side, colors in zip(self.shape[1:], self.spacing, strict=True):
            color = color[..., None] * colors + self._along_side(side)
        numbers = torch.arange(self.colors).view(-1, *(1,) * len(self.shape))
        return (color == numbers).to(device, torch.float64)

    def gathered(self, responses: Tensor) -> Tensor:
        """Sums what happened within reach of each cell.

        Args:
            responses: Of shape ``(m, *grid)``, summed over components.

        Returns:
            Of the same shape; a window that is wider than a periodic grid counts each cell once.
        """
        x = responses[:, None]
        for axis, side in enumerate(self.shape[1:], start=2):
            x = self._along(x, axis, side)
        return x[:, 0]

    def _along_side(self, side: int) -> Tensor:
        """The color of each cell of a side: its place in a segment of at least 2 r + 1 cells."""
        cells, apart = torch.arange(side), 2 * self.reach + 1
        if not self.periodic:
            return cells % apart
        segments = max(1, side // apart)
        starts = torch.arange(segments) * side // segments
        return cells - starts[torch.bucketize(cells, starts, right=True) - 1]

    def _along(self, x: Tensor, axis: int, side: int) -> Tensor:
        if self.periodic and side <= 2 * self.reach + 1:
            return x.sum(axis, keepdim=True).expand_as(x)
        moved = x.movedim(axis, -1)
        by = (self.reach, self.reach)
        lines = moved.reshape(-1, 1, side)
        padded = functional.pad(lines, by, mode="circular" if self.periodic else "constant")
        summed = padded.unfold(-1, 2 * self.reach + 1, 1).sum(-1)
        return summed.reshape(moved.shape).movedim(-1, axis)


def coloured_step(
    simulator: Simulator,
    coloring: Coloring,
    fields: Tensor,
    parameters: Tensor,
    *,
    mu: float,
    native: NDArray[Any] | None = None,
    forcing: Tensor | None = None,
) -> tuple[Tensor, NDArray[Any] | None]:
    """Steps a simulator so that gradients flow through it, eq. (1).

    Args:
        simulator: The simulator; never differentiated.
        coloring: Its colors.
        fields: Of shape ``(b, c, *grid)``.
        parameters: Of shape ``(b,)``.
        mu: The step, in the units of the field (or of the forcing, which has its own colors).
        native: The native parts; no gradient flows through them, so that what fields do to them is
            lost.
        forcing: An acceleration field.

    Returns:
        New fields, whose gradient with respect to ``fields`` (and ``forcing``) costs
        ``2 * coloring.colors`` queries a state (twice that with ``forcing``), and new native parts.
    """
    native_after: list[NDArray[Any] | None] = []
    call = _Call(simulator, coloring, parameters, native, mu, native_after)
    after: Tensor = _Coloured.apply(fields, forcing, call)  # type: ignore[no-untyped-call]
    return after, native_after[0]


@dataclass(frozen=True)
class _Call:
    simulator: Simulator
    coloring: Coloring
    parameters: Tensor
    native: NDArray[Any] | None
    mu: float
    native_after: list[NDArray[Any] | None]

    def step(self, fields: Tensor, forcing: Tensor | None, copies: int = 1) -> Tensor:
        parameters, native = self.parameters.repeat(copies), self.native
        if native is not None and copies > 1:
            native = np.concatenate([native] * copies)
        after, native = advance(self.simulator, fields, parameters, native, forcing=forcing)
        if copies == 1:
            self.native_after.append(native)
        return after

    def transposed(
        self, cotangent: Tensor, fields: Tensor, forcing: Tensor | None, *, of_forcing: bool
    ) -> Tensor:
        """Eq. (1), with all colors in one call; the colors of the fields or of the forcing."""
        masks = self.coloring.masks(device=fields.device)
        moves = torch.stack((self.mu * masks, -self.mu * masks))[:, :, None]

        def moved(x: Tensor, by: Tensor | float) -> Tensor:
            return (x + by).expand(2, len(masks), *x.shape).flatten(0, 2)

        pushes = None if forcing is None else moved(forcing, moves if of_forcing else 0.0)
        states = moved(fields, 0.0 if of_forcing else moves)
        ahead, behind = self.step(states, pushes, 2 * len(masks)).unflatten(
            0, (2, len(masks), len(fields))
        )
        responses = ((ahead - behind) / (2 * self.mu) * cotangent).sum(2)
        believed = self.coloring.gathered(responses.flatten(0, 1)).view_as(responses)
        return (masks[:, None] * believed[:, :, None]).sum(0)


class _Coloured(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        fields: Tensor,
        forcing: Tensor | None,
        call: _Call,
    ) -> Tensor:
        ctx.save_for_backward(fields, forcing)
        ctx.call = call
        return call.step(fields.detach(), None if forcing is None else forcing.detach())

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        cotangent: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        fields, forcing = ctx.saved_tensors
        by_fields, by_forcing = (
            ctx.call.transposed(cotangent, fields, forcing, of_forcing=of) if wanted else None
            for of, wanted in zip((False, True), ctx.needs_input_grad, strict=False)
        )
        return by_fields, by_forcing, None
