r"""Sums and products of values that differ.

.. math::
    \delta(a + b) &= \delta_a + \delta_b \\
    \delta(a b) &= \delta_a b + a \delta_b + \delta_a \delta_b                            \tag{1} \\
    \delta(a / b) &= (\delta_a - \tfrac{a}{b} \delta_b) / (b + \delta_b)                       \tag{2}

and matrix products as in (1). Two differences on the same channels add to one on these channels.
"""

__all__: list[str] = []

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.table import Call, rule


@rule(operator.add, torch.add, "add", several=True)
def added(call: Call) -> Value:
    """Adds the differences."""
    return _sum(call, 1)


@rule(operator.sub, torch.sub, "sub", several=True)
def subtracted(call: Call) -> Value:
    """Subtracts the differences."""
    return _sum(call, -1)


@rule(operator.neg, torch.neg, "neg")
def negated(call: Call) -> Delta:
    """Negates the difference."""
    return call.delta.replaced(-call.delta.values)


def _sum(call: Call, sign: int) -> Value:
    if len(call.args) != 2 or call.kwargs:
        return NotImplemented
    a, b = call.deltas
    if b is None:
        return _spread(a, call.args[0], call.output)
    if sign < 0:
        b = b.replaced(-b.values)
    if a is None:
        return _spread(b, call.args[1], call.output)
    a, b = (_spread(d, x, call.output) for d, x in zip((a, b), call.args, strict=True))
    return joined(a, b, call.output)


def joined(a: Delta, b: Delta, base: Tensor) -> Delta:
    """Adds two differences of one value.

    Args:
        a: A difference.
        b: Another.
        base: The value, of shape S.

    Returns:
        Their sum; on one channel if both are, and on the same.
    """
    if a.channels is None and b.channels is None:
        return Delta(a.values + b.values)
    if a.channels is not None and b.channels is not None:
        if a.dim == b.dim and torch.equal(a.channels, b.channels):
            return a.replaced(a.values + b.values)
        b = Delta(b.dense(base))
    one, other = (a, b) if b.channels is None else (b, a)
    assert one.channels is not None
    total = other.values.clone()
    networks = torch.arange(len(total), device=total.device)
    channel = total.movedim(one.dim + 1, 1)
    channel[networks, one.channels] += one.values.squeeze(one.dim + 1).to(total.dtype)
    return Delta(total)


@rule(operator.mul, torch.mul, "mul", several=True)
def multiplied(call: Call) -> Value:
    """Eq. (1); by a number or an unchanged value of the same shape one channel stays one."""
    if len(call.args) != 2 or call.kwargs:
        return NotImplemented
    return _product(call, torch.mul, elementwise=True)


@rule(operator.matmul, torch.matmul, "matmul", torch.bmm, "bmm", several=True)
def matrix_multiplied(call: Call) -> Value:
    """Eq. (1) for matrix products."""
    if len(call.args) != 2 or call.kwargs or min(call.args[0].ndim, call.args[1].ndim) < 2:
        return NotImplemented
    return _product(call, torch.matmul, elementwise=False)


@rule(operator.truediv, torch.div, torch.true_divide, "div", several=True)
def divided(call: Call) -> Value:
    """Eq. (2)."""
    if len(call.args) != 2 or call.kwargs:
        return NotImplemented
    (a, b), (da, db) = call.args, call.deltas
    if not isinstance(b, Tensor):
        return da.replaced(da.values / b)
    rank = call.output.ndim
    base_a = a if not isinstance(a, Tensor) else _aligned(a[None], rank)
    bottom = _aligned(b[None], rank)
    top = 0 if da is None else _dense(da, a, rank)
    if db is None:
        return Delta(top / bottom)
    d = _dense(db, b, rank)
    return Delta(_expanded((top - base_a / bottom * d) / (bottom + d), call.output))


def _product(
    call: Call, product: Callable[[Tensor, Tensor], Tensor], *, elementwise: bool
) -> Delta:
    (a, b), (da, db) = call.args, call.deltas
    if elementwise and (da is None or db is None):
        delta: Delta = da if db is None else db
        x, factor = (a, b) if db is None else (b, a)
        if not isinstance(factor, Tensor) or factor.ndim == 0:
            return delta.replaced(delta.values * factor)
        if delta.channels is not None and x.shape == factor.shape == call.output.shape:
            return delta.replaced(delta.values * delta.on(factor))
    rank = max(a.ndim, b.ndim)
    base_a, base_b = _aligned(a[None], rank), _aligned(b[None], rank)
    parts = []
    if da is not None:
        moved = _dense(da, a, rank)
        parts.append(product(moved, base_b))
    if db is not None:
        other = _dense(db, b, rank)
        parts.append(product(base_a if da is None else base_a + moved, other))
    return Delta(_expanded(sum(parts[1:], start=parts[0]), call.output))


def _spread(delta: Delta, x: Value, output: Tensor) -> Delta:
    """Repeats a difference along the dimensions in which its value is broadcast."""
    if isinstance(x, Tensor) and x.shape == output.shape:
        return delta
    return Delta(_expanded(_dense(delta, x, output.ndim), output))


def _expanded(values: Tensor, output: Tensor) -> Tensor:
    return values.expand(len(values), *output.shape)


def _dense(delta: Delta, x: Tensor, rank: int) -> Tensor:
    return _aligned(delta.dense(x), rank)


def _aligned(values: Tensor, rank: int) -> Tensor:
    """Inserts dimensions of size 1 after the networks', up to a rank of S."""
    return values.view(len(values), *[1] * (rank + 1 - values.ndim), *values.shape[1:])
