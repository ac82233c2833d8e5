r"""How single operations treat K perturbed networks as one batch.

Rows are ordered by sample first: row :math:`bK + k` is sample :math:`b` in network :math:`k`.

**Batch norm with batch statistics** must treat each network apart. In this order BK rows of C
channels *are* B rows of KC channels, with no copy, so one call on the latter does it.

**Channelwise operations.** Where output channel c depends on row c of the weights alone
(convolution, linear, batch norm), a network whose one moved weight lies in row :math:`c_k`
differs from the base in channel :math:`c_k` only:

.. math::
    y_k[c] = \begin{cases} f(x, w_{c} + \mu e_{i_k}) & c = c_k \\ y[c] & \text{otherwise}
    \end{cases}                                                                       \tag{1}

The K channels that differ are one operation with K output channels, instead of K operations
with all of them: the base value is copied K times and K channels are replaced.
"""

__all__ = [
    "Operation",
    "by_network",
    "has_batch_statistics",
    "is_channelwise",
    "laid_out",
    "moved_channels",
    "normalize_apart",
    "repeated",
    "with_channels",
    "without_side_effects",
]

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

Operation = Callable[..., Any]

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Channelwise = _Norm | _Convolution | nn.Linear

# Exact types, no subclasses: those may compute something else.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def by_network(value: Tensor, rows: int, networks: int) -> Tensor:
    """Splits the rows of a batch of networks.

    Args:
        value: A tensor of ``rows * networks`` rows, sample first.
        rows: The number b of samples.
        networks: The number K of networks.

    Returns:
        A view of shape ``(b, K, ...)``.

    Raises:
        ValueError: If the number of rows is another one.
    """
    if value.ndim == 0 or len(value) != rows * networks:
        raise ValueError(
            f"value must have {rows} x {networks} rows, got shape {tuple(value.shape)}"
        )
    return value.unflatten(0, (rows, networks))  # type: ignore[no-any-return]


def without_side_effects(module: nn.Module) -> Operation:
    """Makes a function of a module that overwrites neither its input nor running statistics.

    Args:
        module: The module; not changed, and its weights are looked up in each call.

    Returns:
        The function.
    """
    if isinstance(module, _Norm) and type(module) in _NORMS:
        norm = module
        return lambda x: _normalized(norm, x, norm.weight, norm.bias)
    if getattr(module, "inplace", False):
        module = copy(module)
        module.inplace = False  # type: ignore[assignment]
    return module


def has_batch_statistics(module: nn.Module | None) -> TypeGuard[_Norm]:
    """Tells whether a module is a batch norm that normalizes by the statistics of its batch.

    Args:
        module: The module, if any.

    Returns:
        Whether it is.
    """
    if not isinstance(module, _Norm) or type(module) not in _NORMS:
        return False
    return module.training or module.running_mean is None


def normalize_apart(module: _Norm, x: Tensor, rows: int, networks: int) -> Tensor:
    """Normalizes each of K networks by its own batch statistics.

    Args:
        module: The batch norm.
        x: The activations of K networks, of shape ``(b * K, c, ...)``, sample first.
        rows: The number b of samples.
        networks: The number K of networks.

    Returns:
        The normalized activations, of the same shape.

    Raises:
        ValueError: If there are not b * K rows.
    """
    own: list[Tensor | None] = [module.weight, module.bias]
    split = by_network(x, rows, networks)
    if x.ndim == 4 and not x.is_contiguous():
        return _normalize_last(split, own, module.eps).flatten(0, 1)
    wide = split.flatten(1, 2)
    weight, bias = (None if p is None else p.repeat(networks) for p in own)
    y = functional.batch_norm(wide, None, None, weight, bias, training=True, eps=module.eps)
    return y.reshape(x.shape)


def is_channelwise(module: nn.Module | None) -> TypeGuard[_Channelwise]:
    """Tells whether each output channel of a module depends on its own row of weights alone.

    Args:
        module: The module, if any.

    Returns:
        Whether `moved_channels` holds for it.
    """
    if isinstance(module, _Convolution):
        return type(module) in _CONVOLUTIONS and module.groups == 1
    return type(module) in (*_NORMS, nn.Linear)


def moved_channels(
    module: _Channelwise, x: Tensor, parameter: Tensor, *, offsets: Sequence[int], mu: float
) -> tuple[Tensor, Tensor]:
    """Computes the one channel in which each of K moved modules differs from the base, eq. (1).

    Args:
        module: The channelwise module.
        x: Its base input, of shape ``(b, ...)``.
        parameter: Its weight or its bias, whichever moves.
        offsets: The row-major offset of the moved entry in each of the K networks.
        mu: The step.

    Returns:
        The numbers of the channels, of shape ``(K,)``, and their values, of shape
        ``(b, K, ...)``.
    """
    place = torch.unravel_index(torch.tensor(offsets, device=x.device), parameter.shape)
    channels, entry = place[0], (torch.arange(len(offsets), device=x.device), *place[1:])
    own: list[Tensor | None] = [module.weight, module.bias]
    weight, bias = (None if p is None else p[channels] for p in own)
    for moved, stored in zip((weight, bias), own, strict=True):
        if moved is not None and stored is parameter:
            moved[entry] += mu
    return channels, _channels(module, x, (weight, bias), channels)


def with_channels(base: Tensor, channels: Tensor, values: Tensor, *, dim: int) -> Tensor:
    """Copies a base value K times and puts one channel into each copy.

    Args:
        base: The base value, of shape ``(b, ...)``.
        channels: The channel to replace in each copy, of shape ``(K,)``.
        values: What to put there, of shape ``(b, K, ...)``, without the channel's dimension.
        dim: The dimension of the channels in ``base``.

    Returns:
        The copies, of shape ``(b * K, ...)``, sample first.
    """
    copies = repeated(base, len(channels))
    spread = by_network(copies, len(base), len(channels)).movedim(dim, 2)
    spread[:, torch.arange(len(channels), device=base.device), channels] = values
    return copies


def repeated(base: Tensor, networks: int) -> Tensor:
    """Copies a base value for each of K networks, in the layout of `laid_out`.

    Args:
        base: The base value, of shape ``(b, ...)``.
        networks: The number K of networks.

    Returns:
        The copies, of shape ``(b * K, ...)``, sample first.
    """
    copies = torch.empty(
        (len(base) * networks, *base.shape[1:]),
        dtype=base.dtype,
        device=base.device,
        memory_format=_layout(base),
    )
    by_network(copies, len(base), networks).copy_(base[:, None])
    return copies


def laid_out(value: Tensor) -> Tensor:
    """Puts a value into the memory layout in which a batch of networks runs fastest.

    That is ``channels_last`` for float32 images on a CPU, where pooling is 5 to 15 times and
    convolution up to 3 times faster than on contiguous ones, and row-major for all others.

    Args:
        value: A tensor of any shape.

    Returns:
        The same values.
    """
    return value.contiguous(memory_format=_layout(value))


def _layout(value: Tensor) -> torch.memory_format:
    images = value.ndim == 4 and value.dtype == torch.float32 and value.device.type == "cpu"
    return torch.channels_last if images else torch.contiguous_format


def _normalize_last(x: Tensor, own: list[Tensor | None], eps: float) -> Tensor:
    """Batch norm of shape ``(b, K, c, h, w)`` by whole passes over memory with channels last."""
    y = x.permute(0, 1, 3, 4, 2).flatten(2, 3)
    size = y.shape[0] * y.shape[2]
    centered = y - y.sum(0).sum(1, keepdim=True) / size
    squares = centered.square()
    scale = torch.rsqrt(squares.sum(0).sum(1, keepdim=True) / size + eps)
    weight, bias = own
    if weight is not None:
        scale = scale * weight
    # into memory that is at hand: fresh pages cost as much as the arithmetic
    y = torch.mul(centered, scale, out=squares)
    if bias is not None:
        y += bias
    return y.unflatten(2, x.shape[3:]).permute(0, 1, 4, 2, 3)  # type: ignore[no-any-return]


def _channels(
    module: _Channelwise, x: Tensor, rows: tuple[Tensor | None, Tensor | None], channels: Tensor
) -> Tensor:
    weight, bias = rows
    if isinstance(module, _Norm):
        return _normalized(module, x[:, channels], weight, bias, channels=channels)
    if weight is None:
        raise ValueError(f"{type(module).__name__} must have weights, got none")
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias).movedim(-1, 1)
    values: Tensor = module._conv_forward(x, weight, bias)
    return values


def _normalized(
    module: _Norm,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    channels: Tensor | None = None,
) -> Tensor:
    mean, variance = module.running_mean, module.running_var
    if has_batch_statistics(module) or mean is None or variance is None:
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=module.eps)
    if channels is not None:
        mean, variance = mean[channels], variance[channels]
    return functional.batch_norm(x, mean, variance, weight, bias, eps=module.eps)
