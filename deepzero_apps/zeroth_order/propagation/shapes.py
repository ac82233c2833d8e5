r"""Operations that move, select, add up or pad values: they act on a difference as on a value.

Each is linear and without a constant, f(x + d) - f(x) = f(d). A difference on one channel stays
one where the operation leaves that dimension alone.
"""

__all__: list[str] = []

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.table import Call, rule


@rule(nn.Identity, "contiguous", "detach", "clone", torch.clone)
def unchanged(call: Call) -> Delta:
    """Passes the difference on."""
    return call.delta


@rule(
    nn.Flatten,
    torch.flatten,
    "flatten",
    torch.reshape,
    "reshape",
    "view",
    torch.squeeze,
    "squeeze",
)
def reshaped(call: Call) -> Value:
    """Reshapes; one channel stays one where only sizes of 1 after it disappear."""
    delta, old, new = call.delta, call.x.shape, call.output.shape
    if delta.channels is not None and len(new) > delta.dim and old[: len(new)] == new:
        return delta.replaced(
            delta.values.flatten(len(new)) if len(old) > len(new) else delta.values
        )
    return _mapped(call, call.dense.contiguous())


@rule(
    nn.Unflatten, torch.unflatten, "unflatten", torch.permute, "permute", torch.transpose,
    "transpose", "t", torch.unsqueeze, "unsqueeze", torch.chunk, "chunk", torch.split, "split",
    torch.unbind, "unbind", torch.select, "select", torch.narrow, "narrow", "expand", "repeat",
    torch.sum, "sum", torch.movedim, "movedim", torch.flip, "flip", torch.roll, "roll",
    nn.PixelShuffle, functional.pixel_shuffle, nn.PixelUnshuffle, nn.Upsample,
    functional.interpolate, functional.unfold, nn.Unfold, functional.fold, nn.Fold,
)  # fmt: skip
def mapped(call: Call) -> Value:
    """Applies the operation to the dense difference of its first argument."""
    if call.moving:
        return NotImplemented
    return _mapped(call, call.dense)


def _mapped(call: Call, values: Tensor) -> Value:
    outputs = torch.vmap(lambda v: call.operation(v, *call.args[1:], **call.kwargs))(values)
    return tree_map(Delta, outputs)


@rule(operator.getitem)
def selected(call: Call) -> Value:
    """Picks a part: of a tuple, or of a tensor by slices, whole channels where it can."""
    index, delta = call.args[1], call.deltas[0]
    if isinstance(delta, tuple | list):
        return delta[index]
    place = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Tensor | list) or i is Ellipsis for i in place):
        return mapped(call)
    plain = all(isinstance(i, slice) for i in place[: delta.dim + 1])
    whole = len(place) <= delta.dim or place[delta.dim] == slice(None)
    if delta.channels is not None and plain and whole:
        return delta.replaced(delta.values[(slice(None), *place)])
    return Delta(call.dense[(slice(None), *place)])


@rule(functional.pad)
def padded(call: Call) -> Value:
    """Pads with zeros; padding of the channels shifts the one that differs."""
    delta, pad = call.delta, call.setting(1, "pad")
    if call.setting(2, "mode", "constant") != "constant":
        return mapped(call)
    spatial = 2 * (call.x.ndim - 1 - delta.dim)  # numbers that pad what comes after the channel
    beside = tuple(pad[spatial:]) or (0, 0)
    if delta.channels is None or len(beside) > 2 or min(beside) < 0:
        return Delta(functional.pad(call.dense, tuple(pad)))
    values = functional.pad(delta.values, tuple(pad[:spatial]))
    return Delta(values, delta.channels + beside[0], delta.dim)


@rule(torch.cat, several=True)
def concatenated(call: Call) -> Value:
    """Puts differences side by side; one part that differs on one channel stays so."""
    parts, deltas = call.args[0], call.deltas[0]
    dim = call.setting(1, "dim", 0) % call.output.ndim
    changed = [i for i, delta in enumerate(deltas) if delta is not None]
    first = deltas[changed[0]]
    if len(changed) == 1 and first.channels is not None and first.dim == dim:
        before = sum(part.shape[dim] for part in parts[: changed[0]])
        return Delta(first.values, first.channels + before, dim)
    return Delta(torch.cat(_dense_parts(parts, deltas, like=first), dim + 1))


@rule(torch.stack, several=True)
def stacked(call: Call) -> Delta:
    """Stacks differences."""
    parts, deltas = call.args[0], call.deltas[0]
    dim = call.setting(1, "dim", 0) % call.output.ndim
    first = next(delta for delta in deltas if delta is not None)
    return Delta(torch.stack(_dense_parts(parts, deltas, like=first), dim + 1))


def _dense_parts(
    parts: Sequence[Tensor], deltas: Sequence[Delta | None], *, like: Delta
) -> list[Tensor]:
    """The differences of values, zero where there are none."""
    zero = like.values.new_zeros(())
    return [
        zero.expand(len(like), *part.shape) if delta is None else delta.dense(part)
        for part, delta in zip(parts, deltas, strict=True)
    ]
