"""Carries differences from a moved weight to the output of a network.

Each node after the site turns the differences of its inputs into that of its output, by its rule
(`deepzero_apps.zeroth_order.propagation.table`) or by the fallback. What does not differ is None.
"""

__all__ = ["Propagation"]

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from deepzero_apps.zeroth_order.base_pass import BasePass, Value
from deepzero_apps.zeroth_order.graph import Suffix
from deepzero_apps.zeroth_order.propagation.delta import Delta, NoDifference, Undefined
from deepzero_apps.zeroth_order.propagation.fallback import fallback
from deepzero_apps.zeroth_order.propagation.fused import (
    Group,
    Rows,
    groups_of,
    is_dense_image,
    normalized_and_rectified,
)
from deepzero_apps.zeroth_order.propagation.normalization import batch_statistics
from deepzero_apps.zeroth_order.propagation.plan import Step, steps_of
from deepzero_apps.zeroth_order.propagation.starts import start
from deepzero_apps.zeroth_order.propagation.table import Call, rule_for
from deepzero_apps.zeroth_order.state import Weights

See = Callable[[fx.Node, Delta], None]
"""Notes the differences of a node."""


class Propagation:
    """Differences around one base pass.

    Args:
        base: The base pass.
        precision: The type of dense mixing; None for that of the values.
    """

    def __init__(self, base: BasePass, *, precision: torch.dtype | None = None) -> None:
        self.base = base
        self._precision = precision
        self._groups = groups_of(base)
        self._plans: dict[fx.Node, tuple[Step, ...]] = {}
        self._kept: dict[fx.Node, dict[str, Any]] = {}

    def run(
        self, suffix: Suffix, weights: Weights, *, index: int, offsets: Sequence[int], mu: float
    ) -> tuple[Tensor, int]:
        """Moves one entry of a parameter in each of K networks.

        Args:
            suffix: The suffix of the parameter, of one site.
            weights: The network's weights.
            index: The parameter's number.
            offsets: The K entries.
            mu: The step.

        Returns:
            The differences of the network's output, of shape ``(K, b, ...)``, and the bytes of
            the largest difference on the way, for one network.
        """
        first = start(self.base, suffix.sites[0], weights, index=index, offsets=offsets, mu=mu)
        return self.carry(suffix, first, networks=len(offsets))

    def carry(
        self, suffix: Suffix, first: Value, *, networks: int, see: See | None = None
    ) -> tuple[Tensor, int]:
        """Carries differences from the site of a suffix to the output.

        Args:
            suffix: The suffix, of one site.
            first: The differences of the site's value.
            networks: Their number K.
            see: Called with each node and its differences, as soon as they are known.

        Returns:
            As of `run`.
        """
        (site,) = suffix.sites
        values: dict[fx.Node, Value] = {}
        largest = 0
        for step in (Step(site, None, ()), *self._plan(suffix, site)):
            value = first if step.node is site else self._after(step, values, networks)
            values[step.node] = value
            largest = max(largest, _size(value))
            if see is not None and isinstance(value, Delta):
                see(step.node, value)
            for expired in step.expired:
                del values[expired]
        return self._output(values.get(self.base.traced.result), networks), largest // networks

    def draws(self, suffix: Suffix) -> bool:
        """Tells whether passing a suffix draws random numbers or moves buffers."""
        return not self.base.moving.isdisjoint(suffix.nodes)

    def _plan(self, suffix: Suffix, site: fx.Node) -> tuple[Step, ...]:
        if site not in self._plans:
            self._plans[site] = steps_of(suffix, self.base.traced.result, self._groups)
        return self._plans[site]

    def _after(self, step: Step, values: dict[fx.Node, Value], k: int) -> Value:
        group = step.group
        if group is None:
            return self._step(step.node, values, k)
        delta = values[group.source]
        if isinstance(delta, Delta) and is_dense_image(delta, self.base.values[group.source]):
            return normalized_and_rectified(delta, self._side(group, values), self._rows(group))
        within = dict(values)
        for node in group.members:
            within[node] = self._step(node, within, k)
        return within[step.node]

    def _side(self, group: Group, values: dict[fx.Node, Value]) -> Delta | None:
        if group.other is None:
            return None
        side: Delta | None = values.get(group.other)
        if side is None or side.channels is None or side.dim == 1:
            return side
        return Delta(side.dense(self.base.values[group.other]))

    def _rows(self, group: Group) -> Rows:
        kept = self._kept.setdefault(group.norm, {})
        if "rows" not in kept:
            call = self._call(group.norm, (), {}, 0)
            pre = self.base.values[group.members[-2]] if group.relu is not None else None
            kept["rows"] = Rows.of(batch_statistics(call), pre)
        return kept["rows"]  # type: ignore[no-any-return]

    def _step(self, node: fx.Node, values: dict[fx.Node, Value], k: int) -> Value:
        deltas, keywords = _deltas_of(node.args, values), _deltas_of(node.kwargs, values)
        if not _holds((deltas, keywords), Delta, Undefined):
            return None
        if not _holds(self.base.values[node], Tensor):
            return None  # sizes and the like are the same in all networks
        if node.target is not operator.getitem and _holds((deltas, keywords), Undefined):
            raise _no_difference(f"an input of {node}")
        call = self._call(node, deltas, keywords, k)
        found = rule_for(node, call.module)
        if found is not None and not _holds(keywords, Delta, Undefined):
            rule, several = found
            if several or not _holds(deltas[1:], Delta, Undefined):
                result = rule(call)
                if result is not NotImplemented:
                    return result
        return fallback(call)

    def _call(self, node: fx.Node, deltas: Value, keywords: Value, k: int) -> Call:
        base = self.base
        return Call(
            operation=base.operations[node],
            module=base.modules.get(node),
            args=map_arg(node.args, base.values.__getitem__),
            kwargs=map_arg(node.kwargs, base.values.__getitem__),
            output=base.values[node],
            deltas=deltas,
            keyword_deltas=keywords,
            networks=k,
            moving=node in base.moving,
            precision=self._precision,
            kept=self._kept.setdefault(node, {}),
        )

    def _output(self, delta: Delta | None, k: int) -> Tensor:
        output = self.base.output
        if isinstance(delta, Undefined):
            raise _no_difference("the output")
        if delta is None:
            return output.new_zeros(k, *output.shape)
        return delta.dense(output).expand(k, *output.shape)


def _no_difference(what: str) -> NoDifference:
    return NoDifference(f"{what} changes and is no number, so that it has no difference")


def _deltas_of(argument: Value, values: dict[fx.Node, Value]) -> Value:
    """Puts differences in place of nodes, and None in place of all that does not differ."""
    return map_aggregate(argument, lambda v: values.get(v) if isinstance(v, fx.Node) else None)


def _holds(value: Value, *kinds: type) -> bool:
    """Whether a value is of one of some kinds, or has a part that is."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return any(_holds(part, *kinds) for part in value)
    return isinstance(value, kinds)


def _size(value: Value) -> int:
    if isinstance(value, Delta):
        return value.values.nbytes
    return sum(map(_size, value)) if isinstance(value, tuple | list) else 0
