r"""Normalization by statistics that a difference moves, without cancellation.

With :math:`c = x - \bar x`, variance v and difference d of the input, over the entries that are
normalized together,

.. math::
    \Delta v &= \overline{d (d + 2 c)} - \bar d^2, \qquad
    r = (v + \epsilon)^{-1/2}, \quad r' = (v + \Delta v + \epsilon)^{-1/2}              \tag{1} \\
    \Delta r &= r' - r = - \Delta v \, \frac{(r r')^2}{r + r'}                           \tag{2} \\
    \delta_y &= w \, [ c \, \Delta r + (d - \bar d) \, r' ]                              \tag{3}

Nothing here subtracts nearly equal numbers. With fixed statistics, as of batch norm in eval mode,
:math:`\delta_y = w r d`.
"""

__all__ = ["Statistics", "batch_statistics", "moved_scales", "normalized"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.propagation.delta import Delta, laid_out
from deepzero_apps.zeroth_order.propagation.table import Call, rule


@dataclass(frozen=True)
class Statistics:
    """What a normalization met in the base pass.

    Attributes:
        centered: The input less its mean; with fixed statistics None.
        scale: r, one over the standard deviation, broadcast against the input.
        weight: w, likewise; None for 1.
    """

    centered: Tensor | None
    scale: Tensor
    weight: Tensor | None

    @classmethod
    def of(
        cls, x: Tensor, dims: Sequence[int], *, eps: float, weight: Tensor | None
    ) -> "Statistics":
        """Takes the statistics of x over some dimensions, in float64."""
        exact = x.double()
        variance, mean = torch.var_mean(exact, dim=list(dims), correction=0, keepdim=True)
        scale = torch.rsqrt(variance + eps)
        return cls(laid_out((exact - mean).to(x.dtype)), scale.to(x.dtype), weight)


def normalized(d: Tensor, base: Statistics, dims: Sequence[int]) -> Tensor:
    """Evaluates eq. (1) to (3).

    Args:
        d: The difference, of shape ``(K, *S)``.
        base: The base pass, each tensor broadcast against d.
        dims: The dimensions of d that are normalized together.

    Returns:
        The difference of the output, of the shape of d.
    """
    if base.centered is None:
        return d * (base.scale if base.weight is None else base.scale * base.weight)
    c, r = base.centered, base.scale
    mean = d.mean(list(dims), keepdim=True)
    grown = (d * (d + 2 * c)).mean(list(dims), keepdim=True) - mean.square()
    scale, change = moved_scales(r, grown)
    if base.weight is not None:
        scale, change = scale * base.weight, change * base.weight
    return c * change + (d - mean) * scale


def moved_scales(r: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluates eq. (2).

    Args:
        r: One over the standard deviation in the base pass.
        grown: How the variance differs.

    Returns:
        r' and r' - r.
    """
    scale = torch.rsqrt(r**-2 + grown)
    return scale, -grown * (r * scale).square() / (r + scale)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, functional.batch_norm)
def batch_normalized(call: Call) -> Delta:
    """Batch norm, by the batch's statistics or by fixed ones; keeps one channel one channel."""
    delta = call.delta
    if delta.channels is not None and delta.dim != 1:
        delta = Delta(call.dense)
    base = batch_statistics(call)
    dims = [1, *range(3, delta.values.ndim)]
    picked = Statistics(
        None if base.centered is None else delta.on(base.centered),
        delta.on(base.scale),
        None if base.weight is None else delta.on(base.weight),
    )
    return delta.replaced(normalized(_wide(delta.values, call.x), picked, dims))


def batch_statistics(call: Call) -> Statistics:
    """What a batch norm met in the base pass, each tensor of shape ``(b or 1, c, ...)``."""
    return call.once("statistics", lambda: _batch_statistics(call))  # type: ignore[no-any-return]


def _batch_statistics(call: Call) -> Statistics:
    mean, variance, weight, training, eps = _batch_norm(call)
    x = call.x
    shape = [1, -1, *[1] * (x.ndim - 2)]
    own = None if weight is None else weight.detach().view(shape).to(x.dtype)
    if training or mean is None or variance is None:
        return Statistics.of(x, [0, *range(2, x.ndim)], eps=eps, weight=own)
    return Statistics(None, torch.rsqrt(variance.double() + eps).view(shape).to(x.dtype), own)


def _batch_norm(call: Call) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool, float]:
    m = call.module
    if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return m.running_mean, m.running_var, m.weight, m.training, m.eps
    return (
        call.setting(1, "running_mean"),
        call.setting(2, "running_var"),
        call.setting(3, "weight"),
        bool(call.setting(5, "training", False)),
        float(call.setting(7, "eps", 1e-5)),
    )


@rule(nn.LayerNorm, functional.layer_norm)
def layer_normalized(call: Call) -> Delta:
    """Layer norm: the last dimensions are normalized together."""
    x, weight = call.x, call.setting(2, "weight")
    dims = list(range(-len(call.setting(1, "normalized_shape")), 0))
    eps = call.setting(4, "eps", 1e-5)
    base = call.once("statistics", lambda: Statistics.of(x, dims, eps=eps, weight=weight))
    return Delta(normalized(_wide(call.dense, x), base, dims))


@rule(nn.GroupNorm, functional.group_norm)
def group_normalized(call: Call) -> Delta:
    """Group norm: the channels of a group are normalized together, sample by sample."""
    x, weight = call.x, call.setting(2, "weight")
    groups, eps = call.setting(1, "num_groups"), call.setting(4, "eps", 1e-5)

    def make() -> Statistics:
        return Statistics.of(x.reshape(len(x), groups, -1), [2], eps=eps, weight=None)

    base = call.once("statistics", make)
    d = _wide(call.dense, x)
    y = normalized(d.reshape(len(d), len(x), groups, -1), base, [3]).reshape(d.shape)
    return Delta(y if weight is None else y * weight.view(-1, *[1] * (x.ndim - 2)))


def _wide(d: Tensor, x: Tensor) -> Tensor:
    """A difference in the type of its base: sums of bfloat16 numbers would lose too much."""
    return d.to(x.dtype)
