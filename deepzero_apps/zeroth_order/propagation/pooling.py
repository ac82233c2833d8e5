"""Pooling, channel by channel: one channel that differs stays one.

A maximum over a window differs by what its place differs, plus what the new place lacked in the
base pass, which is exactly zero where the place stays.
"""

__all__: list[str] = []

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import Value
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.shapes import mapped
from deepzero_apps.zeroth_order.propagation.table import Call, rule


@rule(torch.mean, "mean")
def averaged(call: Call) -> Value:
    """Averages; over the grid, one channel stays one."""
    delta, size = call.delta, call.output.shape
    whole = size[:2] == call.x.shape[:2] and size[2:].numel() == 1
    if delta.channels is None or delta.dim != 1 or not whole:
        return mapped(call)
    averages = delta.values.flatten(3).mean(3)
    return delta.replaced(averages.view(*averages.shape, *size[2:]))


@rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, functional.avg_pool1d, functional.avg_pool2d,
      nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
      functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)  # fmt: skip
def pooled(call: Call) -> Value:
    """Averages over windows, channel by channel."""
    delta = call.delta
    if delta.dim != 1 or call.output.ndim != call.x.ndim:
        return mapped(call)
    rows = delta.values.flatten(0, 1)
    adaptive = isinstance(call.module, nn.AdaptiveAvgPool2d)
    if adaptive and rows.ndim == 4 and call.output[0, 0].numel() == 1:
        averages = functional.avg_pool2d(rows, rows.shape[2:])  # faster in bfloat16
    else:
        averages = call.operation(rows, *call.args[1:], **call.kwargs)
    return delta.replaced(averages.unflatten(0, delta.values.shape[:2]))


@rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pooled(call: Call) -> Value:
    """Max pooling, channel by channel."""
    m, delta = call.module, call.delta
    if not isinstance(m, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) or m.return_indices:
        return NotImplemented
    if delta.dim != 1 or call.x.ndim != delta.values.ndim - 1:
        return NotImplemented
    return _max_pool(call, delta, type(m).__name__[-2:].lower(), vars(m))


@rule(functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
def max_pooled_by_name(call: Call) -> Value:
    """Max pooling by a function call."""
    if len(call.args) > 2 or call.kwargs.get("return_indices") or call.delta.dim != 1:
        return NotImplemented
    settings = {"kernel_size": call.setting(1, "kernel_size"), **call.kwargs}
    return _max_pool(call, call.delta, f"{call.x.ndim - 2}d", settings)


def _max_pool(call: Call, delta: Delta, kind: str, settings: dict[str, object]) -> Delta:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    function = getattr(functional, f"max_pool{kind}")
    a = delta.on(call.x).expand(delta.values.shape)
    _, places = function((a + delta.values).flatten(0, 1), **given, return_indices=True)
    places = places.flatten(2)
    base = _picked(a, places) - delta.on(call.output).expand(
        len(delta), *delta.values.shape[1:3], *call.output.shape[2:]
    ).flatten(3).flatten(0, 1)
    moved = base + _picked(delta.values, places)
    return delta.replaced(moved.view(*delta.values.shape[:3], *call.output.shape[2:]))


def _picked(values: Tensor, places: Tensor) -> Tensor:
    return values.flatten(0, 1).flatten(2).gather(2, places)
