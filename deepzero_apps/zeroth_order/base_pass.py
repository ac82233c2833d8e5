"""The base pass of a traced network on one batch: all values, and re-runs of its suffixes.

Operations run out of place and without side effects on running statistics. An operation that
moves a generator or a buffer starts, whenever it runs again, from where the base pass met it
(common random numbers).
"""

__all__ = ["BasePass", "Operation", "Value"]

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional

from deepzero_apps.zeroth_order.graph import Suffix, Traced
from deepzero_apps.zeroth_order.state import Slot, Surroundings, slots

Value = Any
"""Whatever an operation of a network takes or returns."""

Operation = Callable[..., Any]

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class BasePass:
    """The values of a traced network at its weights, on one batch.

    Args:
        traced: The graph.
        network: The network that it was traced from.
        inputs: The batch, of shape ``(b, ...)``.
        moves: Whether a pass of this network moves buffers or random generators.

    Attributes:
        values: The value of each node.
        operations: What each node that computes does.
        modules: The modules of the nodes that call one.
        moving: The nodes that move buffers or generators.
        output: The network's output, of shape ``(b, ...)``.
    """

    def __init__(self, traced: Traced, network: nn.Module, inputs: Tensor, *, moves: bool) -> None:
        self.traced = traced
        self.modules: dict[fx.Node, nn.Module] = {
            node: network.get_submodule(str(node.target))
            for node in traced.nodes
            if node.op == "call_module"
        }
        self.operations: dict[fx.Node, Operation] = {}
        self.values: dict[fx.Node, Value] = {}
        self.moving: set[fx.Node] = set()
        self._network = network
        for node in traced.nodes:
            before = Surroundings(self._slots(node), inputs.device) if moves else None
            self.values[node] = self._first(node, inputs)
            if before is not None and before.moved():
                self.operations[node] = _starting_from(before, self.operations[node])
                self.moving.add(node)
        self.output: Tensor = self.values[traced.result]

    def rerun(self, suffix: Suffix, *, given: Mapping[fx.Node, Value] | None = None) -> Tensor:
        """Runs a suffix with the weights as they are now.

        Args:
            suffix: The suffix of the parameter that differs from the base pass.
            given: Values of nodes that are not run.

        Returns:
            The network's output, of shape ``(b, ...)``.
        """
        values: dict[fx.Node, Value] = dict(given or {})
        for node in suffix.nodes:
            if node not in values:
                values[node] = self.apply(
                    node, lambda n: values[n] if n in values else self.values[n]
                )
            for expired in suffix.expired.get(node, ()):
                del values[expired]
        result = self.traced.result
        return cast("Tensor", values[result] if result in values else self.values[result])

    def apply(self, node: fx.Node, value: Callable[[fx.Node], Value]) -> Value:
        """Runs one node on the values that a function gives of the nodes that it uses."""
        if node.op == "get_attr":
            return self.values[node]  # a weight moves in place
        args, kwargs = map_arg((node.args, node.kwargs), value)
        return self.operations[node](*args, **kwargs)

    def _first(self, node: fx.Node, inputs: Tensor) -> object:
        if node is self.traced.source:
            return inputs
        if node in self.traced.fixed:
            return self.traced.fixed[node]
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._network.get_submodule(owner), name)
        self.operations[node] = self._operation(node)
        return self.apply(node, self.values.__getitem__)

    def _operation(self, node: fx.Node) -> Operation:
        if node.op == "call_module":
            return _without_side_effects(self.modules[node])
        if node.op == "call_method":
            return _method(str(node.target))
        return cast("Operation", node.target)

    def _slots(self, node: fx.Node) -> list[Slot]:
        if node in self.modules:
            return slots(self.modules[node])
        targets = [str(used.target) for used in node.all_input_nodes if used.op == "get_attr"]
        parts = [target.rpartition(".") for target in targets]
        found = [(self._network.get_submodule(owner), name) for owner, _, name in parts]
        return [(module, name) for module, name in found if name in module._buffers]


def _without_side_effects(module: nn.Module) -> Operation:
    """Makes a function of a module that overwrites neither its input nor running statistics."""
    if isinstance(module, _Norm) and type(module) in _Norm.__args__:
        norm = module
        return lambda x: _normalized(norm, x)
    if getattr(module, "inplace", False):
        module = copy(module)
        module.inplace = False  # type: ignore[assignment]
    return module


def _normalized(norm: _Norm, x: Tensor) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    training = norm.training or mean is None
    if training:
        mean = variance = None
    return functional.batch_norm(
        x, mean, variance, norm.weight, norm.bias, training=training, eps=norm.eps
    )


def _method(name: str) -> Operation:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _starting_from(before: Surroundings, operation: Operation) -> Operation:
    def replayed(*args: Value, **kwargs: Value) -> Value:
        before.restore()
        return operation(*args, **kwargs)

    return replayed
