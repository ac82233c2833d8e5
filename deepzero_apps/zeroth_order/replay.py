"""Runs the suffix of a traced network again: for one moved weight, or for K of them at once.

Only the weights of one parameter move; those after it stay. So K perturbed networks that differ
in one parameter share every operation after its site, and their activations pass through these
operations as one batch of bK rows: full kernels instead of K small ones. Rows are ordered by
sample first (`deepzero_apps.zeroth_order.rules` says why).

What an operation after the site needs to be right in such a batch:

- a tensor off the suffix, with one row a sample, is repeated K times; parameters, buffers and
  what is made of them alone are not;
- a number off the suffix that was read from a shape is read again from a shape of bK rows;
- batch norm with batch statistics, and whatever draws random numbers or moves buffers, treats
  each network apart, the latter two from the surroundings that the base pass met there.

Everything else is assumed to treat rows alike. That is an assumption about the network, so each
parameter's batched path must be compared with `Replay.rerun` before it is believed.
"""

__all__ = ["Replay"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from deepzero_apps.zeroth_order.graph import Suffix, Traced
from deepzero_apps.zeroth_order.rules import (
    Operation,
    by_network,
    has_batch_statistics,
    is_channelwise,
    laid_out,
    moved_channels,
    normalize_apart,
    repeated,
    with_channels,
    without_side_effects,
)
from deepzero_apps.zeroth_order.state import Slot, Surroundings, Weights, slots

Value = Any
"""Whatever an operation of a network takes or returns."""

Values = dict[fx.Node, Value]


class Replay:
    """The base pass of a traced network on one batch, and re-runs of its suffixes.

    Args:
        traced: The graph.
        network: The network that it was traced from.
        inputs: The batch, of shape ``(b, ...)``.
        moves: Whether a pass of this network moves buffers or random generators.

    Attributes:
        output: The base output, of shape ``(b, ...)``.
    """

    def __init__(self, traced: Traced, network: nn.Module, inputs: Tensor, *, moves: bool) -> None:
        self._traced = traced
        self._network = network
        self._rows = len(inputs)
        self._modules: dict[fx.Node, nn.Module] = {
            node: network.get_submodule(str(node.target))
            for node in traced.nodes
            if node.op == "call_module"
        }
        self._operations: dict[fx.Node, Operation] = {}
        self._apart: set[fx.Node] = {node for node in traced.nodes if _is_batch_norm(node)}
        self._base: Values = {}
        self._numbers: Values = {}
        self._networks = 1
        self._run_base(inputs, moves)
        self.output: Tensor = self._base[traced.result]

    def rerun(self, suffix: Suffix) -> Tensor:
        """Runs a suffix with the weights as they are now.

        Args:
            suffix: The suffix of the parameter that differs from the base pass.

        Returns:
            The network's output, of shape ``(b, ...)``.
        """
        return self._run(suffix, {}, 1)

    def rerun_moved(
        self, suffix: Suffix, weights: Weights, *, index: int, offsets: Sequence[int], mu: float
    ) -> Tensor:
        """Runs the suffix of one parameter for several moves of one entry as one batch.

        Args:
            suffix: The parameter's suffix, see `batchable`.
            weights: The network's weights.
            index: The parameter's number.
            offsets: The K entries to move, each in a network of its own.
            mu: The step.

        Returns:
            The K networks' outputs, of shape ``(K, b, ...)``.

        Raises:
            ValueError: If a value along the way has not one row a sample and network.
        """
        (site,) = suffix.sites
        module = self._modules.get(site)
        if site not in self._apart and is_channelwise(module):
            (source,) = site.all_input_nodes
            channels, values = moved_channels(
                module, self._base[source], weights.parameters[index], offsets=offsets, mu=mu
            )
            dim = -1 if isinstance(module, nn.Linear) else 2
            moved = with_channels(self._base[site], channels, values, dim=dim)
        else:
            moved = self._move_one_by_one(site, weights, index=index, offsets=offsets, mu=mu)
        output = self._run(suffix, {site: moved}, len(offsets))
        return by_network(output, self._rows, len(offsets)).transpose(0, 1).contiguous()

    def batchable(self, suffix: Suffix) -> bool:
        """Tells whether a suffix has one site, and that one row a sample.

        Args:
            suffix: The suffix.

        Returns:
            Whether `rerun_moved` may be tried.
        """
        if len(suffix.sites) != 1 or suffix.sites[0] not in self._traced.varying:
            return False
        value = self._base[suffix.sites[0]]
        return not isinstance(value, Tensor) or self._is_by_sample(value)

    def largest(self, suffix: Suffix) -> int:
        """Measures the largest activation of a suffix.

        Args:
            suffix: The suffix.

        Returns:
            Its size in bytes, for one network.
        """
        values = [self._base[node] for node in suffix.nodes]
        return max((v.nbytes for v in values if isinstance(v, Tensor)), default=1)

    def _run_base(self, inputs: Tensor, moves: bool) -> None:
        for node in self._traced.nodes:
            before = Surroundings(self._slots(node), inputs.device) if moves else None
            self._base[node] = self._first(node, inputs)
            if before is not None and before.moved():
                self._operations[node] = _starting_from(before, self._operations[node])
                self._apart.add(node)

    def _first(self, node: fx.Node, inputs: Tensor) -> object:
        if node is self._traced.source:
            return inputs
        if node in self._traced.fixed:
            return self._traced.fixed[node]
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._network.get_submodule(owner), name)
        self._operations[node] = self._operation(node)
        return self._apply(node, self._base.__getitem__)

    def _operation(self, node: fx.Node) -> Operation:
        if node.op == "call_module":
            return without_side_effects(self._modules[node])
        if node.op == "call_method":
            return _method(str(node.target))
        return cast("Operation", node.target)

    def _slots(self, node: fx.Node) -> list[Slot]:
        if node in self._modules:
            return slots(self._modules[node])
        targets = [str(used.target) for used in node.all_input_nodes if used.op == "get_attr"]
        parts = [target.rpartition(".") for target in targets]
        found = [(self._network.get_submodule(owner), name) for owner, _, name in parts]
        return [(module, name) for module, name in found if name in module._buffers]

    def _apply(self, node: fx.Node, value: Callable[[fx.Node], Value]) -> Value:
        args, kwargs = map_arg((node.args, node.kwargs), value)
        return self._operations[node](*args, **kwargs)

    def _run(self, suffix: Suffix, values: Values, k: int) -> Tensor:
        for node in suffix.nodes:
            if node not in values:
                values[node] = self._step(node, values, k)
            for expired in suffix.expired.get(node, ()):
                del values[expired]
        result = self._traced.result
        return cast("Tensor", values[result] if result in values else self._repeated(result, k))

    def _step(self, node: fx.Node, values: Values, k: int) -> Value:
        if k > 1 and node in self._apart:
            return self._step_apart(node, values, k)
        module = self._modules.get(node)
        if k > 1 and has_batch_statistics(module):
            (source,) = node.all_input_nodes
            return normalize_apart(module, values[source], self._rows, k)
        return self._apply(node, lambda n: values[n] if n in values else self._repeated(n, k))

    def _step_apart(self, node: fx.Node, values: Values, k: int) -> Value:
        def value(used: fx.Node, j: int) -> Value:
            base = self._base[used]
            return self._one_network(values[used], base, k=k, j=j) if used in values else base

        return self._joined([self._apply(node, partial(value, j=j)) for j in range(k)])

    def _one_network(self, value: Value, base: Value, *, k: int, j: int) -> Value:
        if isinstance(value, Tensor):
            return by_network(value, self._rows, k)[:, j]
        if isinstance(value, tuple | list) and not _is_number(value):
            pairs = zip(value, base, strict=True)
            return type(value)(self._one_network(v, b, k=k, j=j) for v, b in pairs)
        return base

    def _joined(self, outputs: Sequence[Value]) -> Value:
        first = outputs[0]
        if isinstance(first, Tensor):
            if not self._is_by_sample(first):
                raise ValueError(f"a value of shape {tuple(first.shape)} has not a row a sample")
            return laid_out(torch.stack(tuple(outputs), dim=1).flatten(0, 1))
        if isinstance(first, tuple):
            return tuple(self._joined(parts) for parts in zip(*outputs, strict=True))
        return first

    def _is_by_sample(self, value: Value) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == self._rows

    def _repeated(self, node: fx.Node, k: int) -> Value:
        """The base value of a node off the suffix, as a pass of K networks would have it."""
        value = self._base[node]
        if k == 1 or node not in self._traced.varying:
            return value
        if _is_number(value):
            return self._number(node, k)

        def repeat(part: Value) -> Value:
            return repeated(part, k) if self._is_by_sample(part) else part

        return map_aggregate(value, repeat)

    def _number(self, node: fx.Node, k: int) -> Value:
        if k != self._networks:
            self._numbers, self._networks = {}, k
        if node not in self._numbers:
            self._numbers[node] = self._apply(node, lambda n: self._shape_only(n, k))
        return self._numbers[node]

    def _shape_only(self, node: fx.Node, k: int) -> Value:
        value = self._base[node]
        if node not in self._traced.varying:
            return value
        if isinstance(value, Tensor):
            rows = [len(value) * k] if self._is_by_sample(value) else list(value.shape[:1])
            return torch.empty([*rows, *value.shape[1:]], dtype=value.dtype, device="meta")
        return self._number(node, k) if _is_number(value) else value

    def _move_one_by_one(
        self, site: fx.Node, weights: Weights, *, index: int, offsets: Sequence[int], mu: float
    ) -> Value:
        outputs = []
        for offset in offsets:
            with weights.moved(index, offset, mu):
                output = self._apply(site, self._base.__getitem__)
                # an expanded or transposed weight would move back with it
                outputs.append(map_aggregate(output, _copied))
        return self._joined(outputs)


def _is_batch_norm(node: fx.Node) -> bool:
    return node.target is nn.functional.batch_norm and bool(node.kwargs.get("training"))


def _is_number(value: object) -> bool:
    """Whether a value is an integer or made of integers, as shapes are; what else is kept."""
    if isinstance(value, tuple | list):
        return all(_is_number(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _copied(value: Value) -> Value:
    return value.clone() if isinstance(value, Tensor) else value


def _method(name: str) -> Operation:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _starting_from(before: Surroundings, operation: Operation) -> Operation:
    def replayed(*args: Value, **kwargs: Value) -> Value:
        before.restore()
        return operation(*args, **kwargs)

    return replayed
