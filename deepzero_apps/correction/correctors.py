r"""Networks that correct a simulator's step, and how their output becomes a correction.

A corrector sees a field and the simulation's parameter and answers **controls** :math:`z`, one or
more numbers a cell. An *output* maps them linearly to a correction of the field,

.. math::
    c = \Phi z

and it decides whether zeroth-order training works at all. A free velocity correction has a divergent
part, which the next pressure projection removes by a global response: each control then acts
everywhere. With a streamfunction, :math:`c = \nabla^\perp z`, a correction is divergence-free by
construction, passes the projection unchanged, and acts near where it stands.

Networks end in a zero layer, so that an untrained corrector leaves the simulator as it is. Controls
are in units of ``scale``, by custom the root mean square of the simulator's error in one step.

References:
    | Solver-in-the-Loop (Um et al., NeurIPS 2020), the networks `um-small` and `um-resnet`
    | https://arxiv.org/abs/2007.00016
"""

__all__ = ["Corrector", "Free", "NetworkName", "Output", "Streamfunction", "build"]

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

NetworkName = Literal["cnn", "um-small", "um-resnet"]

_SLOPE = 0.2
_KERNEL = 5


class Output(Protocol):
    """A linear map from controls to corrections."""

    channels: int

    def __call__(self, controls: Tensor) -> Tensor:
        """Maps controls ``(b, channels, *grid)`` to corrections ``(b, c, *grid)``."""
        ...


class Free:
    """A correction for every component of the field, where it may move at all.

    Args:
        movable: Which numbers of a field may be corrected, of shape ``(c, *grid)``.
    """

    def __init__(self, movable: Tensor) -> None:
        self.channels = len(movable)
        self._movable = movable.to(torch.float64)

    def __call__(self, controls: Tensor) -> Tensor:
        """Maps controls ``(b, c, *grid)`` to corrections of the same shape."""
        return controls * self._movable.to(controls)


class Streamfunction:
    r"""Corrections :math:`(\partial_y \psi, -\partial_x \psi)` on a staggered grid.

    :math:`\psi` stands at the top right corner of each cell, u at its right face, v at its top face,
    so that the divergence of every cell vanishes to rounding. It is zero on inflow and walls
    (below the first row, left of the first column, and where ``free`` is False), and one constant
    around an obstacle, so that nothing flows through either.

    Args:
        spacing: The sides of a cell, ``(dy, dx)``.
        free: Corners where :math:`\psi` may differ from zero, ``(rows, columns)``.
        obstacle: Corners that touch the obstacle, ``(rows, columns)``.
    """

    channels = 1

    def __init__(self, spacing: tuple[float, float], free: Tensor, obstacle: Tensor) -> None:
        self._spacing = spacing
        self._free = free.to(torch.float64)
        self._obstacle = obstacle.to(torch.float64)

    def __call__(self, controls: Tensor) -> Tensor:
        """Maps controls ``(b, 1, rows, columns)`` to velocities ``(b, 2, rows, columns)``.

        A control of one is a velocity of one around a square cell, whatever its size.
        """
        dy, dx = self._spacing
        psi = controls[:, 0] * self._free.to(controls)
        around = self._obstacle.to(controls)
        if self._obstacle.any():
            mean = (controls[:, 0] * around).sum((1, 2), keepdim=True) / around.sum()
            psi = psi * (1 - around) + mean * around
        padded = functional.pad(psi, (1, 0, 1, 0)) * math.sqrt(dx * dy)
        u = (padded[:, 1:, 1:] - padded[:, :-1, 1:]) / dy
        v = (padded[:, 1:, :-1] - padded[:, 1:, 1:]) / dx
        return torch.stack((u, v), 1)


class Corrector(nn.Module):
    """A network with the units of its input and output.

    Args:
        network: Features ``(b, c + 1, rows, columns)`` to controls ``(b, channels, ...)``.
        output: How controls become corrections.
        field_scale: The unit of the field, by custom its standard deviation in training data.
        parameters: The smallest and largest parameter in training data; the parameter enters as
            a further channel, on a logarithmic scale.
        scale: The unit of the corrections.

    Raises:
        ValueError: If a scale or a parameter is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        output: Output,
        *,
        field_scale: float,
        parameters: tuple[float, float],
        scale: float,
    ) -> None:
        super().__init__()
        for name, value in (
            ("field_scale", field_scale),
            ("parameters", parameters[0]),
            ("parameters", parameters[1]),
            ("scale", scale),
        ):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.network = network
        self.output = output
        low, high = math.log(parameters[0]), math.log(parameters[1])
        units = [field_scale, (low + high) / 2, max((high - low) / 2, 1.0), scale]
        self.register_buffer("units", torch.tensor(units, dtype=torch.float64))

    @property
    def scale(self) -> float:
        """The unit of the corrections."""
        units: Tensor = self.get_buffer("units")
        return float(units[3])

    def features(self, fields: Tensor, parameters: Tensor) -> Tensor:
        """Returns what the network sees.

        Args:
            fields: Of shape ``(b, c, *grid)``, one or two axes of the grid.
            parameters: Of shape ``(b,)``.

        Returns:
            Features ``(b, c + 1, rows, columns)``; a line of cells is a grid of one row.
        """
        field_scale, middle, half, _ = self.get_buffer("units").to(fields)
        level = ((parameters.to(fields).log() - middle) / half).view(-1, *(1,) * (fields.ndim - 1))
        seen = torch.cat((fields / field_scale, level.expand_as(fields[:, :1])), 1)
        if seen.ndim == 3:
            seen = seen[:, :, None]
        weights = next(self.network.parameters())
        return seen.to(weights)

    def correction(self, controls: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Maps the network's output ``(b, channels, rows, columns)`` to corrections, float64."""
        shaped = controls.double().reshape(len(controls), -1, *grid)
        return self.output(shaped) * self.scale

    def forward(self, fields: Tensor, parameters: Tensor) -> Tensor:
        """Returns the corrections of fields ``(b, c, *grid)``, float64, of their shape."""
        controls = self.network(self.features(fields, parameters))
        return self.correction(controls, tuple(fields.shape[2:]))


def build(
    name: NetworkName,
    channels: int,
    outputs: int,
    *,
    rows: int,
    periodic: bool,
    width: int = 8,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Builds a convolutional network that keeps the grid, with a last layer of zeros.

    Args:
        name: `cnn`, three 5x5 convolutions of ``width`` channels (2,417 weights at 8 channels,
            from three to one), or one of the two networks of Um et al.
        channels: The number of features.
        outputs: The number of controls a cell.
        rows: The rows of the grid; one row takes 1x5 convolutions.
        periodic: Whether what leaves the grid on one side comes in at the other; zeros outside
            otherwise.
        width: The channels of `cnn`.
        generator: The source of the initial weights; torch's global one by default.

    Returns:
        The network, in torch's default dtype.

    Raises:
        ValueError: If the name is unknown or ``width`` not positive.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")

    def convolution(a: int, b: int) -> nn.Sequential:
        return _convolution(a, b, flat=rows == 1, periodic=periodic)

    hidden: list[nn.Module]
    if name == "cnn":
        hidden = [convolution(channels, width), _active(), convolution(width, width), _active()]
        last = convolution(width, outputs)
    elif name == "um-small":
        hidden = [convolution(channels, 32), _active(), convolution(32, 64), _active()]
        last = convolution(64, outputs)
    elif name == "um-resnet":
        hidden = [convolution(channels, 32), _active()]
        hidden += [_Residual(convolution(32, 32), convolution(32, 32)) for _ in range(5)]
        last = convolution(32, outputs)
    else:
        raise ValueError(f"name must be cnn, um-small or um-resnet, got {name!r}")
    network = nn.Sequential(*hidden, last)
    _initialize(network, last, generator)
    return network


class _Residual(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.active, self.second, self.after = first, _active(), second, _active()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(x + self.second(self.active(self.first(x))))
        return y


def _active() -> nn.Module:
    return nn.LeakyReLU(_SLOPE)


def _convolution(a: int, b: int, *, flat: bool, periodic: bool) -> nn.Sequential:
    """Padding stands apart, so that copies of a network can lie side by side in the channels."""
    k = (1 if flat else _KERNEL, _KERNEL)
    by = (k[1] // 2, k[1] // 2, k[0] // 2, k[0] // 2)
    pad = nn.CircularPad2d(by) if periodic else nn.ZeroPad2d(by)
    return nn.Sequential(pad, nn.Conv2d(a, b, k))


@torch.no_grad()
def _initialize(network: nn.Module, last: nn.Module, generator: torch.Generator | None) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE, generator=generator)
            layer.bias.zero_()
    for p in last.parameters():
        p.zero_()
