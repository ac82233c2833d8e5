"""An operation without a rule: evaluated at the moved and at the base input, and subtracted.

What has no weights of its own is evaluated in float64, so that float32 differences lose no
digits. K networks are one call under ``torch.vmap``, or K calls where that cannot be (random
numbers, buffers, operations that vmap does not know).
"""

__all__ = ["differences_of", "fallback"]

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta, Undefined
from deepzero_apps.zeroth_order.propagation.table import Call

_VMAP_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, UserWarning)
"""The last where warnings are errors: vmap warns of operations that it runs one by one."""


def fallback(call: Call) -> Value:
    """Evaluates f(x + delta) - f(x) as it stands.

    Args:
        call: The operation and the differences of its inputs.

    Returns:
        The differences of its output, dense; None for parts of it that do not change, and
        `Undefined` for others that have no differences, such as indices.
    """
    base, deltas = (call.args, call.kwargs), (call.deltas, call.keyword_deltas)
    convert = _identity if _has_state(call) else _double
    base = _converted(base, convert)
    pairs = list(_pairs(base, deltas))
    differences = [delta.dense(x).to(x.dtype) for x, delta in pairs]

    def run(*moves: Tensor) -> Value:
        args, kwargs = _moved(base, deltas, iter(moves))
        return call.operation(*args, **kwargs)

    reference = call.once("reference", lambda: call.operation(*base[0], **base[1]))
    dtype = pairs[0][1].values.dtype
    return _subtracted(_outputs(run, differences, call), reference, dtype)


def differences_of(outputs: list[Value], reference: Value) -> Value:
    """Subtracts the value of the base pass from that of each of K networks.

    Args:
        outputs: The value in each network: a tensor, or tensors in a tuple.
        reference: The value in the base pass.

    Returns:
        The differences, dense.
    """
    stacked = _stacked(outputs)
    return _subtracted(stacked, reference, None)


def _outputs(run: Callable[..., Value], differences: list[Tensor], call: Call) -> Value:
    if not call.moving:
        try:
            return torch.vmap(run)(*differences)
        except _VMAP_FAILURES:
            pass
    return _stacked([run(*(d[k] for d in differences)) for k in range(call.networks)])


def _has_state(call: Call) -> bool:
    return call.module is not None and bool(call.module.state_dict())


def _identity(value: Tensor) -> Tensor:
    return value


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _converted(value: Value, convert: Callable[[Tensor], Tensor]) -> Value:
    if isinstance(value, Tensor):
        return convert(value)
    if _is_sequence(value):
        return type(value)(_converted(part, convert) for part in value)
    if isinstance(value, Mapping):
        return {name: _converted(part, convert) for name, part in value.items()}
    return value


def _pairs(value: Value, delta: Value) -> Iterator[tuple[Tensor, Delta]]:
    """Lists the values that differ, with their differences."""
    if isinstance(delta, Delta):
        yield value, delta
    elif _is_sequence(delta):
        for part, difference in zip(value, delta, strict=True):
            yield from _pairs(part, difference)
    elif isinstance(delta, Mapping):
        for name in delta:
            yield from _pairs(value[name], delta[name])


def _moved(value: Value, delta: Value, moves: Iterator[Tensor]) -> Value:
    """Adds moves to the values that differ, in the order of `_pairs`."""
    if isinstance(delta, Delta):
        return value + next(moves)
    if _is_sequence(delta):
        return type(value)(_moved(v, d, moves) for v, d in zip(value, delta, strict=True))
    if isinstance(delta, Mapping):
        return {name: _moved(value[name], delta[name], moves) for name in value}
    return value


def _is_sequence(value: Value) -> bool:
    return isinstance(value, tuple | list) and not isinstance(value, torch.Size)


def _stacked(outputs: list[Value]) -> Value:
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(outputs)
    if _is_sequence(first):
        return type(first)(_stacked(list(parts)) for parts in zip(*outputs, strict=True))
    return first


def _subtracted(outputs: Value, reference: Value, dtype: torch.dtype | None) -> Value:
    if _is_sequence(reference):
        pairs = zip(outputs, reference, strict=True)
        return tuple(_subtracted(output, base, dtype) for output, base in pairs)
    if not isinstance(reference, Tensor):
        return None
    if reference.is_floating_point():
        difference = outputs - reference
        return Delta(difference if dtype is None else difference.to(dtype))
    changed = isinstance(outputs, Tensor) and bool((outputs != reference).any())
    return Undefined() if changed else None
