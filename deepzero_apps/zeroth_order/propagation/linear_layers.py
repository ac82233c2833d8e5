r"""Convolutions and linear layers: what mixes channels, and where moved weights start.

**A moved weight** :math:`w_{o i k}` of a convolution changes output channel o alone, by
:math:`\mu` times input channel i, shifted by k. That is a copy, not a convolution.

**One channel in, all channels out**: the first mixing after a moved weight convolves one input
channel, 1/C of the full cost. Its K channels are one batched matrix product of their patches.

Dense differences pass through the layer without its bias, in ``call.precision``.
"""

__all__ = ["convolved", "linearly_mapped", "moved_convolution", "moved_linear", "transposed"]

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta, laid_out
from deepzero_apps.zeroth_order.propagation.table import Call, rule

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def moved_convolution(
    module: _Convolution, name: str, *, x: Tensor, offsets: Sequence[int], mu: float
) -> Delta:
    """How the output of a convolution differs when one entry of its weights or bias moves.

    Args:
        module: The convolution.
        name: ``"weight"`` or ``"bias"``.
        x: Its input, of shape ``(b, c, ...)``.
        offsets: The row-major offset of the moved entry in each of K networks.
        mu: The step.

    Returns:
        The differences, on one channel.
    """
    numbers = torch.tensor(offsets, device=x.device)
    windows = _windows(_padded(module, x), module)
    if name == "bias":
        values = x.new_full((len(offsets), len(x), 1, *_grid(windows, module)), mu)
        return Delta(values, numbers)
    place = torch.unravel_index(numbers, module.weight.shape)
    outputs, inputs, taps = place[0], place[1], place[2:]
    group = outputs // (module.out_channels // module.groups)
    channel = group * (module.in_channels // module.groups) + inputs
    dims = len(taps)
    # to the front what a network picks one of: channel and taps; then samples and grid
    windows = windows.permute(1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    return Delta(mu * windows[(channel, *taps)].unsqueeze(2), outputs)


def moved_linear(
    module: nn.Linear, name: str, *, x: Tensor, offsets: Sequence[int], mu: float
) -> Delta:
    """How the output of a linear layer differs when one entry of its weights or bias moves.

    Args:
        module: The layer.
        name: ``"weight"`` or ``"bias"``.
        x: Its input, of shape ``(b, ..., features)``.
        offsets: The row-major offset of the moved entry in each of K networks.
        mu: The step.

    Returns:
        The differences, on one feature.
    """
    numbers = torch.tensor(offsets, device=x.device)
    dim = x.ndim - 1
    if name == "bias":
        return Delta(x.new_full((len(offsets), *x.shape[:-1], 1), mu), numbers, dim)
    outputs, inputs = torch.unravel_index(numbers, module.weight.shape)
    return Delta(mu * x.movedim(-1, 0)[inputs].unsqueeze(-1), outputs, dim)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolved(call: Call) -> Delta:
    """A convolution of a difference is the difference of the convolution; the bias cancels."""
    module, delta = call.module, call.delta
    assert isinstance(module, _Convolution)
    if delta.channels is not None and delta.dim == 1 and call.x.ndim == module.weight.ndim:
        return _one_channel(module, delta, call)
    x = call.dense
    weight = _weight(module, call)
    mapped = module._conv_forward(x.flatten(0, 1).to(weight.dtype), weight, None)
    return Delta(mapped.unflatten(0, x.shape[:2]))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed(call: Call) -> Value:
    """A transposed convolution, likewise; by its own code, less its bias."""
    module, x = call.module, call.dense
    if module is None or len(call.args) > 1 or call.kwargs:
        return NotImplemented
    bias = module.bias if isinstance(module.bias, Tensor) else None
    mapped: Tensor = call.operation(x.flatten(0, 1))
    if bias is not None:
        mapped = mapped - bias.view(-1, *[1] * (mapped.ndim - 2))
    return Delta(mapped.unflatten(0, x.shape[:2]))


@rule(nn.Linear)
def linearly_mapped(call: Call) -> Delta:
    """A linear layer of a difference; one feature in is an outer product."""
    module, delta = call.module, call.delta
    assert isinstance(module, nn.Linear)
    if delta.channels is not None and delta.dim == call.x.ndim - 1:
        columns = module.weight.t()[delta.channels]  # (K, out)
        columns = columns.view(len(delta), *[1] * (delta.values.ndim - 2), -1)
        return Delta(delta.values.to(columns.dtype) * columns)
    x = call.dense
    weight = _weight(module, call)
    return Delta(functional.linear(x.to(weight.dtype), weight))


def _one_channel(module: _Convolution, delta: Delta, call: Call) -> Delta:
    """Convolves one channel a network: ``(K, b * grid, taps) @ (K, taps, out)``."""
    assert delta.channels is not None
    dtype = call.precision or delta.values.dtype
    grid = call.output.shape[2:]
    x = _padded(module, delta.values.flatten(0, 1).to(dtype))
    patches = _patches(x.view(len(delta), len(call.x), *x.shape[2:]), module, grid)
    mixed = patches.transpose(1, 2) @ _columns(module, delta.channels).to(dtype)
    mixed = mixed.view(len(delta), len(call.x), *grid, module.out_channels)
    return Delta(mixed.movedim(-1, 2))


def _patches(x: Tensor, module: _Convolution, grid: torch.Size) -> Tensor:
    """Copies what each tap sees of padded values ``(K, b, *size)``, to ``(K, taps, b * grid)``.

    A copy a tap is several times faster here than one of all windows.
    """
    taps = list(itertools.product(*map(range, module.kernel_size)))
    patches = x.new_empty(len(x), len(taps), x.shape[1], *grid)
    for t, tap in enumerate(taps):
        seen = [
            slice(place * dilation, place * dilation + stride * (size - 1) + 1, stride)
            for place, dilation, stride, size in zip(
                tap, module.dilation, module.stride, grid, strict=True
            )
        ]
        patches[:, t] = x[(slice(None), slice(None), *seen)]
    return patches.flatten(2)


def _columns(module: _Convolution, channels: Tensor) -> Tensor:
    """The weights that see a channel of each network, of shape ``(K, taps, out)``."""
    weight = module.weight.flatten(2)  # (out, in / groups, taps)
    width = module.in_channels // module.groups
    columns = weight[:, channels % width].permute(1, 2, 0)
    if module.groups == 1:
        return columns
    group = torch.arange(module.out_channels, device=weight.device) // (
        module.out_channels // module.groups
    )
    return columns * (group == (channels // width)[:, None])[:, None]


def _padded(module: _Convolution, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _windows(x: Tensor, module: _Convolution) -> Tensor:
    """Views padded values of shape ``(n, c, *size)`` as ``(n, c, *grid, *taps)``."""
    for d, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + d, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x


def _grid(windows: Tensor, module: _Convolution) -> torch.Size:
    return windows.shape[2 : 2 + len(module.kernel_size)]


def _weight(module: _Convolution | nn.Linear, call: Call) -> Tensor:
    """The layer's weights in the type and layout of a dense product."""

    def make() -> Tensor:
        weight = module.weight.detach()
        weight = weight.to(call.precision or weight.dtype)
        return laid_out(weight)

    return call.once("weight", make)  # type: ignore[no-any-return]
