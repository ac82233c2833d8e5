r"""Softmax, log-sum-exp and attention, in forms that do not cancel.

With the base probabilities p of scores a, and a difference d of the scores,

.. math::
    \delta \log \sum_j e^{a_j} &= \log\Big(1 + \sum_j p_j (e^{d_j} - 1)\Big) =: \lambda   \tag{1} \\
    \delta_{p_j} &= p_j \, (e^{d_j - \lambda} - 1)                                        \tag{2}
"""

__all__ = ["log_sum_exp_difference"]

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.table import Call, rule


def log_sum_exp_difference(scores: Tensor, d: Tensor, *, dim: int) -> Tensor:
    """Evaluates eq. (1), or the difference of two logarithms where d is large.

    Args:
        scores: Base scores a, broadcast against ``d``.
        d: Their differences.
        dim: The dimension of the sum, negative; it is kept with size 1.

    Returns:
        The differences of log-sum-exp.
    """
    p = torch.softmax(scores, dim)
    small = torch.log1p((p * torch.expm1(d.clamp(-1, 1))).sum(dim, keepdim=True))
    if d.numel() and bool(d.abs().amax() < 1):
        return small
    large = torch.logsumexp(scores + d, dim, keepdim=True) - torch.logsumexp(
        scores, dim, keepdim=True
    )
    return torch.where(d.abs().amax(dim, keepdim=True) < 1, small, large)


def _softmax_difference(scores: Tensor, d: Tensor, dim: int) -> Tensor:
    total = log_sum_exp_difference(scores, d, dim=dim)
    moved = d - total
    return torch.where(
        moved < 1,
        torch.softmax(scores, dim) * torch.expm1(moved.clamp(max=1)),
        torch.softmax(scores + d, dim) - torch.softmax(scores, dim),
    )


@rule(nn.Softmax, torch.softmax, functional.softmax, "softmax")
def softmax(call: Call) -> Value:
    """Softmax, eq. (2)."""
    dim = _dim(call)
    if dim is None:
        return NotImplemented
    return Delta(_softmax_difference(call.x[None], _scores(call), dim))


@rule(nn.LogSoftmax, torch.log_softmax, functional.log_softmax, "log_softmax")
def log_softmax(call: Call) -> Value:
    """Log-softmax: the difference less that of its log-sum-exp, eq. (1)."""
    dim = _dim(call)
    if dim is None:
        return NotImplemented
    d = _scores(call)
    return Delta(d - log_sum_exp_difference(call.x[None], d, dim=dim))


@rule(torch.logsumexp, "logsumexp")
def log_sum_exp(call: Call) -> Value:
    """Log-sum-exp, eq. (1)."""
    dim, keep = call.setting(1, "dim"), call.setting(2, "keepdim", False)
    if not isinstance(dim, int):
        return NotImplemented
    dim = dim if dim < 0 else dim - call.x.ndim
    y = log_sum_exp_difference(call.x[None], _scores(call), dim=dim)
    return Delta(y if keep else y.squeeze(dim))


@rule(functional.scaled_dot_product_attention, several=True)
def attention(call: Call) -> Value:
    """Softmax attention without dropout: products by their rule, softmax by eq. (2)."""
    simple = not (call.setting(4, "dropout_p", 0.0) or call.setting(5, "is_causal", False))
    simple = simple and call.setting(3, "attn_mask") is None
    q, k, v = call.args[:3]
    if not simple or q.shape[:-2] != k.shape[:-2] or call.moving:
        return NotImplemented
    scale = call.kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = (_dense(delta, x) for delta, x in zip(call.deltas[:3], (q, k, v), strict=True))
    scores = scale * (q @ k.transpose(-2, -1))[None]
    d = scale * (dq @ k.transpose(-2, -1) + (q + dq) @ dk.transpose(-2, -1))
    p = torch.softmax(scores, -1)
    dp = _softmax_difference(scores, d, -1)
    return Delta(dp @ v + (p + dp) @ dv)


def _dim(call: Call) -> int | None:
    dim = call.setting(1, "dim")
    if not isinstance(dim, int):
        return None
    return dim if dim < 0 else dim - call.x.ndim


def _scores(call: Call) -> Tensor:
    return call.dense.to(call.x.dtype)


def _dense(delta: Delta | None, x: Tensor) -> Tensor:
    if delta is None:
        return x.new_zeros(1, *x.shape)
    return delta.dense(x)
