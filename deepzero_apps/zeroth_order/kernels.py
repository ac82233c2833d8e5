r"""Batch norm and ReLU of a dense difference, compiled for a CPU.

K networks differ from a base network by :math:`\delta_k` of R rows (batch and space) and C
channels. With :math:`x_{rc}` the centered base activation (its mean over the rows is zero), a
perturbed network's own batch statistics differ from the base by

.. math::
    m_{kc} = \tfrac1R \sum_r \delta_{krc}, \qquad
    \mathrm{var}_k - \mathrm{var} = s_{kc} - m_{kc}^2, \qquad
    s_{kc} = \tfrac1R \sum_r \delta_{krc} (\delta_{krc} + 2 x_{rc})                  \tag{1}

and, whatever the statistics, the difference of a normalized activation is affine in both:

.. math::
    z_{krc} = A_{kc} x_{rc} + B_{kc} \delta_{krc} + G_{kc}                           \tag{2}

With train-mode statistics, r the base's :math:`1 / \sqrt{\mathrm{var} + \epsilon}` and r' the
perturbed one's, a weight w gives :math:`A = w (r' - r)`, :math:`B = w r'`,
:math:`G = -w r' m`. A shortcut adds its own difference to z. Then comes ReLU at the base
value a:

.. math::
    \max(a + z, 0) - \max(a, 0) = \max(z + \min(a, 0), -\max(a, 0))                  \tag{3}

**Rounding.** No line subtracts nearly equal numbers: where a > 0 and a + z > 0, (3) is z itself.
Differences may be kept in bfloat16, of which every float32 sees the upper half; arithmetic is
float32, and storing rounds to the nearest, ties to even. The sums of (1) run in float32 over at
most 64 terms and in float64 from there: their error does not grow with R. NaN stays NaN.

**Speed.** Channels repeat along a flat array, so coefficients repeated to a few hundred entries
make one long vectorized loop for any C; blocks of rows stay in cache while all networks pass over
them. Threads may run the kernels at the same time. Each is compiled at its first call with a new
combination of types, for about half a second, and kept on disk where that is possible.

References:
    | Batch Normalization (Ioffe & Szegedy, 2015)
    | https://arxiv.org/abs/1502.03167
"""

__all__ = ["OneChannel", "affine_relu", "moments"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_Array = np.ndarray[Any, Any]
_Emitter = Callable[..., ir.Value]
_ArrayOrNone = Any
"""An array or None: compiled code knows which, and keeps only that branch."""

_PERIOD = 512
"""The least length of a vectorized loop."""

_UNROLLED = 4
"""Rows that are added before a sum goes back to memory."""

_ROWS = 16
"""Periods, or unrolled periods, in a block: what all networks pass over while it is cached."""


@dataclass(frozen=True)
class OneChannel:
    """A difference that is zero outside of one channel of each network.

    Attributes:
        values: The difference in that channel, float32 of shape ``(K, R)``.
        channels: The channel of each network, integers below C, of shape ``(K,)``.
    """

    values: Tensor
    channels: Tensor


def moments(difference: Tensor, centered: Tensor) -> tuple[Tensor, Tensor]:
    r"""Averages a difference and its change of the second moment over the rows, eq. (1).

    Args:
        difference: :math:`\delta`, contiguous, float32 or bfloat16, of shape ``(K, R, C)``.
        centered: x, the base activation minus its mean in each channel, contiguous float32 of
            shape ``(R, C)``.

    Returns:
        m and s, float64 of shape ``(K, C)``.

    Raises:
        TypeError: If a dtype is another one.
        ValueError: If a shape is another one, or a tensor not contiguous on a CPU.
    """
    networks, rows, channels = _checked_shape(difference)
    repeats = _repeats(channels)
    sums = np.zeros((2, networks, repeats * channels))

    flat = _array(difference, "difference", difference.shape).reshape(networks, rows * channels)
    base = _float32_array(centered, "centered", (rows, channels)).reshape(-1)
    _add_moments(flat, base, sums[0], sums[1])

    means = torch.from_numpy(sums.reshape(2, networks, repeats, channels).sum(2) / rows)
    return means[0], means[1]


def affine_relu(
    difference: Tensor,
    coefficients: tuple[Tensor | None, Tensor, Tensor],
    *,
    centered: Tensor | None = None,
    side: Tensor | OneChannel | None = None,
    pre: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Carries a difference through an affine map, an addition and ReLU, eq. (2) and (3).

    Args:
        difference: :math:`\delta`, contiguous, float32 or bfloat16, of shape ``(K, R, C)``.
        coefficients: A, B and G, each of shape ``(K, C)``. A is not read without ``centered``.
        centered: x, contiguous float32 of shape ``(R, C)``; by default no term A x.
        side: A difference that is added before ReLU: like ``difference``, or one channel wide.
        pre: a, the base value before ReLU with the side's base value in it, contiguous float32
            of shape ``(R, C)``; by default no ReLU.
        dtype: float32 or bfloat16, that of the result; by default that of ``difference``.

    Returns:
        The difference after ReLU, a new tensor of shape ``(K, R, C)``.

    Raises:
        TypeError: If a dtype is another one.
        ValueError: If a shape is another one, a tensor not contiguous on a CPU, or a channel not
            one of C.
    """
    networks, rows, channels = shape = _checked_shape(difference)
    out = torch.empty(shape, dtype=difference.dtype if dtype is None else dtype)
    beside, chosen = _side_arrays(side, difference)
    _map_blocks(
        _array(difference, "difference", shape).reshape(networks, rows * channels),
        None if centered is None else _float32_array(centered, "centered", shape[1:]).reshape(-1),
        _coefficients(coefficients, (networks, channels), centered is not None),
        beside,
        chosen,
        None if pre is None else _float32_array(pre, "pre", shape[1:]).reshape(-1),
        _repeats(channels),
        _array(out, "dtype", shape).reshape(networks, rows * channels),
    )
    return out


def _checked_shape(difference: Tensor) -> tuple[int, int, int]:
    if difference.ndim != 3 or 0 in difference.shape[1:]:
        raise ValueError(
            f"difference must be of shape (K, R, C) with R, C >= 1, got {tuple(difference.shape)}"
        )
    networks, rows, channels = difference.shape
    return networks, rows, channels


def _repeats(channels: int) -> int:
    return -(-_PERIOD // channels)


def _array(tensor: Tensor, name: str, shape: tuple[int, ...]) -> _Array:
    """The tensor's own memory: float32, or the bits of bfloat16 as uint16."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{name} must be float32 or bfloat16, got {tensor.dtype}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must be of shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous on a CPU, got strides {tensor.stride()} on "
            f"{tensor.device}; pass {name}.cpu().contiguous()"
        )
    tensor = tensor.detach()
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.uint16)).numpy()


def _float32_array(tensor: Tensor, name: str, shape: tuple[int, ...]) -> _Array:
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {tensor.dtype}")
    return _array(tensor, name, shape)


def _side_arrays(
    side: Tensor | OneChannel | None, difference: Tensor
) -> tuple[_Array | None, _Array | None]:
    """The side's values and, where it is one channel wide, its channels."""
    networks, rows, channels = difference.shape
    if side is None:
        return None, None
    if isinstance(side, OneChannel):
        chosen = side.channels.to("cpu", torch.int64).contiguous().numpy()
        if chosen.shape != (networks,) or ((chosen < 0) | (chosen >= channels)).any():
            raise ValueError(
                f"side.channels must be {networks} channels below {channels}, got {side.channels}"
            )
        return _float32_array(side.values, "side.values", (networks, rows)), chosen
    if side.dtype != difference.dtype:
        raise TypeError(f"side must be {difference.dtype} like difference, got {side.dtype}")
    return _array(side, "side", difference.shape).reshape(networks, rows * channels), None


def _coefficients(
    coefficients: tuple[Tensor | None, ...], shape: tuple[int, int], centered: bool
) -> tuple[_Array, ...]:
    """A, B and G in float32; zero for an A that is not read."""
    read = coefficients if centered else (torch.zeros(shape), *coefficients[1:])
    arrays = []
    for name, value in zip("ABG", read, strict=True):
        if value is None or tuple(value.shape) != shape:
            got = None if value is None else tuple(value.shape)
            raise ValueError(f"coefficients must be of shape {shape}, got {got} for {name}")
        arrays.append(value.detach().to("cpu", torch.float32).contiguous().numpy())
    return tuple(arrays)


def _compiled(function: _F) -> _F:
    """Compiles a function at its first call, to machine code that threads may share.

    Products and sums may be contracted, nothing else: NaN and infinity keep their meaning.
    """
    compiler = partial(njit, nogil=True, error_model="numpy", fastmath={"contract"})
    try:
        return cast(_F, compiler(cache=True)(function))
    except RuntimeError:  # numba finds no folder for its cache that it can write to
        return cast(_F, compiler()(function))


def _inlined(function: _F) -> _F:
    """Copies a function into the compiled ones that call it, which know no keywords."""
    return cast(_F, njit(inline="always")(function))


def _emitted(function: Callable[..., object]) -> Callable[..., Any]:
    """Makes an operation of a function that writes its instructions."""
    return cast(Callable[..., Any], intrinsic(function))


_WORD = ir.IntType(32)


@_emitted
def _widened(_: object, stored: types.Type) -> tuple[object, _Emitter]:
    """A stored number as float32: itself, or its bits as the upper half."""

    def emit(_c: object, builder: ir.IRBuilder, _s: object, args: Sequence[ir.Value]) -> ir.Value:
        if stored == types.float32:
            return args[0]
        bits = builder.shl(builder.zext(args[0], _WORD), _WORD(16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(stored), emit


@_emitted
def _narrowed(_: object, value: types.Type, out: types.Array) -> tuple[object, _Emitter]:
    """A float32 as an array stores it: itself, or its upper half, rounded to nearest even.

    The added 0x7fff and odd bit carry where they must. NaN is cut: a carry could undo it.
    """

    def emit(_c: object, builder: ir.IRBuilder, _s: object, args: Sequence[ir.Value]) -> ir.Value:
        if out.dtype == types.float32:
            return args[0]
        bits = builder.bitcast(args[0], _WORD)
        odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        carry = builder.select(is_nan, _WORD(0), builder.add(odd, _WORD(0x7FFF)))
        return builder.trunc(builder.lshr(builder.add(bits, carry), _WORD(16)), ir.IntType(16))

    return out.dtype(value, out), emit


@_compiled
def _add_moments(difference: _Array, centered: _Array, first: _Array, second: _Array) -> None:
    networks, size = difference.shape
    width = first.shape[1]
    stride = _UNROLLED * width
    sum_1 = np.empty(width, np.float32)
    sum_2 = np.empty(width, np.float32)
    for start in range(0, size, _ROWS * stride):
        stop = min(start + _ROWS * stride, size)
        whole = start + (stop - start) // stride * stride
        for k in range(networks):
            sum_1[:] = sum_2[:] = 0
            for i in range(start, whole, stride):
                _add_rows(difference[k, i:stop], centered[i:stop], sum_1, sum_2, _UNROLLED)
            for i in range(whole, stop, width):
                n = min(width, stop - i)
                _add_rows(difference[k, i:stop], centered[i:stop], sum_1[:n], sum_2[:n], 1)
            for j in range(width):
                first[k, j] += sum_1[j]
                second[k, j] += sum_2[j]


@_inlined
def _add_rows(  # noqa: PLR0917
    difference: _Array, centered: _Array, sum_1: _Array, sum_2: _Array, rows: int
) -> None:
    width = sum_1.size
    for j in range(width):
        part_1 = part_2 = np.float32(0)
        for i in range(rows):
            d = _widened(difference[i * width + j])
            part_1 += d
            part_2 += d * (d + np.float32(2) * centered[i * width + j])
        sum_1[j] += part_1
        sum_2[j] += part_2


@_compiled
def _map_blocks(  # noqa: PLR0917
    difference: _Array,
    centered: _ArrayOrNone,
    coefficients: tuple[_Array, ...],
    side: _ArrayOrNone,
    chosen: _ArrayOrNone,
    pre: _ArrayOrNone,
    repeats: int,
    out: _Array,
) -> None:
    networks, size = difference.shape
    channels = coefficients[0].shape[1]
    width = channels * repeats
    a = _repeated(coefficients[0], width)
    b = _repeated(coefficients[1], width)
    g = _repeated(coefficients[2], width)
    spread = np.empty(_ROWS * width, np.float32)
    for start in range(0, size, spread.size):
        stop = min(start + spread.size, size)
        for k in range(networks):
            if chosen is not None:
                _spread(side[k, start // channels : stop // channels], spread, chosen[k], channels)
            for i in range(start, stop, width):
                end = min(i + width, stop)
                _map_row(
                    difference[k, i:end],
                    None if centered is None else centered[i:end],
                    a[k],
                    b[k],
                    g[k],
                    None if side is None else _side_row(side, chosen, spread, k, i, end),
                    None if pre is None else pre[i:end],
                    out[k, i:end],
                )


@_compiled
def _repeated(coefficient: _Array, width: int) -> _Array:
    """A coefficient of each network, over and over along a period."""
    networks, channels = coefficient.shape
    repeated = np.empty((networks, width), np.float32)
    for k in range(networks):
        for j in range(width):
            repeated[k, j] = coefficient[k, j % channels]
    return repeated


@_compiled
def _spread(values: _Array, spread: _Array, channel: int, channels: int) -> None:
    spread[:] = 0
    for r in range(values.size):
        spread[r * channels + channel] = values[r]


@_inlined
def _side_row(  # noqa: PLR0917
    side: _Array, chosen: _ArrayOrNone, spread: _Array, k: int, start: int, stop: int
) -> _Array:
    if chosen is None:
        return side[k, start:stop]
    return spread[start % spread.size :][: stop - start]


@_inlined
def _map_row(  # noqa: PLR0917
    difference: _Array,
    centered: _ArrayOrNone,
    a: _Array,
    b: _Array,
    g: _Array,
    side: _ArrayOrNone,
    pre: _ArrayOrNone,
    out: _Array,
) -> None:
    zero = np.float32(0)
    for j in range(difference.size):
        z = _widened(difference[j]) * b[j] + g[j]
        if centered is not None:
            z += centered[j] * a[j]
        if side is not None:
            z += _widened(side[j])
        if pre is not None:
            # The first argument stays where a comparison fails, so NaN does.
            z = max(z + min(pre[j], zero), min(-pre[j], zero))
        out[j] = _narrowed(z, out)
