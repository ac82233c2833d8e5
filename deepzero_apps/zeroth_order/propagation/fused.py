r"""Normalization, shortcut and ReLU of dense differences in two passes over memory.

Once differences are dense, most of their time goes not into convolutions but into the sums,
products and comparisons between them, each a pass over memory. So a batch norm, a sum whose other
part may differ too, and a ReLU are found in the graph as one group,

.. math::
    y = \max(\mathrm{norm}(x) + s, 0)

and their differences are evaluated by two kernels (`deepzero_apps.zeroth_order.kernels`): one
for the moments of the differences, one for all the rest. Differences on one channel, other types
and other devices go through the rules of the members, one after another.
"""

__all__ = ["Group", "Rows", "groups_of", "is_dense_image", "normalized_and_rectified"]

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.base_pass import BasePass
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.normalization import Statistics, moved_scales

if TYPE_CHECKING:
    from deepzero_apps.zeroth_order.kernels import OneChannel


@dataclass(frozen=True)
class Group:
    """A normalization and what follows it.

    Attributes:
        norm: The batch norm.
        total: The sum with something else, if there is one.
        relu: The ReLU, if there is one; the group's value is that of its last member.
    """

    norm: fx.Node
    total: fx.Node | None
    relu: fx.Node | None

    @property
    def members(self) -> tuple[fx.Node, ...]:
        """The nodes in the order in which they run."""
        return tuple(node for node in (self.norm, self.total, self.relu) if node is not None)

    @property
    def source(self) -> fx.Node:
        """The node that is normalized."""
        return self.norm.all_input_nodes[0]

    @property
    def other(self) -> fx.Node | None:
        """The other part of the sum."""
        if self.total is None:
            return None
        return next(node for node in self.total.all_input_nodes if node is not self.norm)


def groups_of(base: BasePass) -> Mapping[fx.Node, Group]:
    """Finds the groups of a network, by their last member.

    Args:
        base: The base pass.

    Returns:
        Groups of images that float32 kernels can evaluate.
    """
    groups = {}
    for node in base.traced.nodes:
        if _is_norm(node, base):
            group = _group(node, base)
            groups[group.members[-1]] = group
    return groups


def _group(norm: fx.Node, base: BasePass) -> Group:
    total = relu = None
    user = _only_user(norm)
    if user is not None and _is_sum(user, norm, base):
        total = user
        user = _only_user(user)
    if user is not None and _is_relu(user, base):
        relu = user
    return Group(norm, total, relu)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_norm(node: fx.Node, base: BasePass) -> bool:
    return type(base.modules.get(node)) is nn.BatchNorm2d


def _is_sum(node: fx.Node, norm: fx.Node, base: BasePass) -> bool:
    parts = node.all_input_nodes
    if node.target not in (operator.add, torch.add, "add") or node.kwargs or len(parts) != 2:
        return False
    shape = base.values[norm].shape
    return all(getattr(base.values[part], "shape", None) == shape for part in parts)


def _is_relu(node: fx.Node, base: BasePass) -> bool:
    if type(base.modules.get(node)) is nn.ReLU:
        return True
    return node.target in (functional.relu, torch.relu, "relu")


@dataclass(frozen=True)
class Rows:
    """What a group met in the base pass, as rows of channels.

    Attributes:
        centered: The input less its channels' means, float32 of shape ``(R, C)``; None with
            fixed statistics.
        scale: One over the standard deviation, float64 of shape ``(C,)``.
        weight: The weight of the norm, float64 of shape ``(C,)``.
        pre: What goes into the ReLU, float32 of shape ``(R, C)``; None without one.
    """

    centered: Tensor | None
    scale: Tensor
    weight: Tensor
    pre: Tensor | None

    @classmethod
    def of(cls, base: Statistics, pre: Tensor | None) -> "Rows":
        """Lays out what the rules keep as images ``(b, c, h, w)``."""
        scale = base.scale.flatten().double()
        return cls(
            None if base.centered is None else _rows(base.centered[None])[0],
            scale,
            torch.ones_like(scale) if base.weight is None else base.weight.flatten().double(),
            None if pre is None else _rows(pre[None])[0],
        )


def is_dense_image(delta: Delta, base: Tensor) -> bool:
    """Whether the kernels are for a difference: dense, of float32 images on a CPU."""
    values = delta.values
    kind = values.dtype in (torch.float32, torch.bfloat16) and base.dtype == torch.float32
    return delta.channels is None and values.ndim == 5 and values.device.type == "cpu" and kind


def normalized_and_rectified(delta: Delta, side: Delta | None, base: Rows) -> Delta:
    """Evaluates a group.

    Args:
        delta: The difference of the norm's input, see `is_dense_image`.
        side: That of the other part of the sum.
        base: What the group met in the base pass.

    Returns:
        The difference of the group's value, dense and of the type of ``delta``.
    """
    from deepzero_apps.zeroth_order.kernels import affine_relu, moments

    rows = _rows(delta.values)
    coefficients: tuple[Tensor | None, Tensor, Tensor]
    if base.centered is None:
        slope = (base.scale * base.weight).expand(len(rows), -1)
        coefficients = None, slope, torch.zeros_like(slope)
    else:
        mean, second = moments(rows, base.centered)
        scale, change = moved_scales(base.scale, second - mean.square())
        slope = scale * base.weight
        coefficients = change * base.weight, slope, -mean * slope
    y = affine_relu(
        rows, coefficients, centered=base.centered, side=_beside(side, rows), pre=base.pre
    )
    networks, b, channels, height, width = delta.values.shape
    return Delta(y.view(networks, b, height, width, channels).permute(0, 1, 4, 2, 3))


def _beside(side: Delta | None, rows: Tensor) -> "Tensor | OneChannel | None":
    from deepzero_apps.zeroth_order.kernels import OneChannel

    if side is None:
        return None
    if side.channels is None:
        return _rows(side.values).to(rows.dtype)
    return OneChannel(side.values.reshape(len(rows), -1).float(), side.channels)


def _rows(images: Tensor) -> Tensor:
    """``(K, b, c, h, w)`` as ``(K, b * h * w, c)``, a view where channels come last in memory."""
    return images.permute(0, 1, 3, 4, 2).flatten(1, 3).contiguous()
