r"""A torch twin of forced Burgers flow: the first-order ceiling of what corrects that simulator.

The numpy solver, a black box, and this module are two writings of one scheme: forward Euler,
Engquist and Osher's fluxes in one dimension and upwind advection in two,

.. math::
    u' = u - \frac{h}{\Delta x} (F_{right} - F_{left}) + h f,                        \tag{1}

.. math::
    u' = u + h \sum_a \Big(\frac{|u_a|}{2 \Delta x} + \frac{\nu}{\Delta x^2}\Big)
    (u_{+a} - 2 u + u_{-a}) - \frac{h u_a}{2 \Delta x} (u_{+a} - u_{-a}) + h f,      \tag{2}

with a force f that is a sum of moving sine waves, averaged over cells, whose time and constants
are the native part of the state. They agree within rounding, and this one can be differentiated
with respect to fields, viscosities, the waves and the forcing. The derivative of |u| at 0 is 0,
which is what central differences say there.
"""

__all__ = ["BurgersTwin"]

import math

import torch
from torch import Tensor


class BurgersTwin:
    """One step of forced Burgers flow in torch; its arguments are those of the solver.

    Args:
        cells: The number of cells along each axis.
        dimensions: The number D of axes and of velocity components, 1 or 2.
        length: The length of the box along each axis.
        dt: The time that a step advances by.
        substeps: How many stages of length ``dt / substeps`` a step takes.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> twin = BurgersTwin(8, dimensions=1)
        >>> fields, _ = twin(torch.ones(1, 1, 8), torch.zeros(1))
        >>> fields.unique()
        tensor([1.])
    """

    def __init__(
        self,
        cells: int,
        *,
        dimensions: int = 2,
        length: float = 32.0,
        dt: float = 0.1,
        substeps: int = 1,
    ) -> None:
        if cells < 3:
            raise ValueError(f"cells must be at least 3, got {cells}")
        if dimensions not in (1, 2):
            raise ValueError(f"dimensions must be 1 or 2, got {dimensions}")
        if substeps < 1:
            raise ValueError(f"substeps must be at least 1, got {substeps}")
        for name, value in (("length", length), ("dt", dt)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.cells, self.dimensions, self.dt, self.substeps = cells, dimensions, dt, substeps
        self.shape = (dimensions, *(cells,) * dimensions)
        self._dx, self._stage = length / cells, dt / substeps

    def __call__(
        self,
        fields: Tensor,
        parameters: Tensor,
        native: Tensor | None = None,
        *,
        forcing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Advances states by ``dt``.

        Args:
            fields: Velocities of shape ``(b, D, *grid)``.
            parameters: Viscosities of shape ``(b,)``.
            native: Time and waves of each state, ``(b, 1 + W (2 D + 2))``, or ``None`` without a
                force.
            forcing: A further force, of the shape of ``fields``, constant during the step.

        Returns:
            New fields and new native part, attached to the graph of all arguments.

        Raises:
            ValueError: If a shape is wrong.
        """
        self._check(fields, parameters, native, forcing)
        force = None if native is None else self._driving_force(native)
        if forcing is not None:
            force = forcing if force is None else force + forcing
        nu = parameters.view(-1, *(1,) * (fields.ndim - 1))
        for _ in range(self.substeps):
            change = self._fluxes(fields, nu) if self.dimensions == 1 else self._upwind(fields, nu)
            fields = fields + change
            if force is not None:
                fields = fields + self._stage * force
        if native is not None:
            native = torch.cat((native[:, :1] + self.dt, native[:, 1:]), 1)
        return fields, native

    def _fluxes(self, u: Tensor, nu: Tensor) -> Tensor:
        """What eq. (1) adds in a stage; a flux belongs to the right face of its cell."""
        right = u.roll(-1, -1)
        flux = 0.5 * (u.clamp(min=0) ** 2 + right.clamp(max=0) ** 2)
        flux = flux - nu / self._dx * (right - u)
        return self._stage / self._dx * (flux.roll(1, -1) - flux)

    def _upwind(self, u: Tensor, nu: Tensor) -> Tensor:
        """What eq. (2) adds in a stage, without the force."""
        change = torch.zeros_like(u)
        for axis in (2, 3):
            ahead, behind = u.roll(-1, axis) - u, u - u.roll(1, axis)
            wind = u[:, axis - 2 : axis - 1] * (0.5 * self._stage / self._dx)
            spread = wind.abs() + nu * (self._stage / self._dx**2)
            change = change + spread * (ahead - behind) - wind * (ahead + behind)
        return change

    def _driving_force(self, native: Tensor) -> Tensor:
        """Averages over cells of the waves A sin(2 pi m . x / L + omega t + phi)."""
        d = self.dimensions
        waves = native[:, 1:].unflatten(1, (-1, 2 * d + 2))
        modes = waves[..., d : 2 * d]
        shift = waves[..., -2] * native[:, :1] + waves[..., -1]
        centers = (torch.arange(self.cells).to(native) + 0.5) * (2 * math.pi / self.cells)
        angles = modes[..., None] * centers
        weights = waves[..., :d] * torch.sinc(modes / self.cells).prod(-1, keepdim=True)
        x = angles[:, :, 0] + shift[..., None]
        if d == 1:
            return torch.einsum("bwc,bwx->bcx", weights, x.sin())
        y = angles[:, :, 1]
        first = torch.einsum("bwc,bwx,bwy->bcxy", weights, x.sin(), y.cos())
        return first + torch.einsum("bwc,bwx,bwy->bcxy", weights, x.cos(), y.sin())

    def _check(
        self, fields: Tensor, parameters: Tensor, native: Tensor | None, forcing: Tensor | None
    ) -> None:
        if tuple(fields.shape[1:]) != self.shape:
            raise ValueError(f"fields must have shape (b, *{self.shape}), got {_shape(fields)}")
        if _shape(parameters) != (len(fields),):
            raise ValueError(
                f"parameters must have shape ({len(fields)},), got {_shape(parameters)}"
            )
        if forcing is not None and forcing.shape != fields.shape:
            raise ValueError(f"forcing must have shape {_shape(fields)}, got {_shape(forcing)}")
        wave = 2 * self.dimensions + 2
        if native is not None and (
            native.ndim != 2 or len(native) != len(fields) or native.shape[1] % wave != 1
        ):
            raise ValueError(
                f"native must have shape ({len(fields)}, 1 + W * {wave}), got {_shape(native)}"
            )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
