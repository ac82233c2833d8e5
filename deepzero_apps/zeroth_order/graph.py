"""A torch.fx view of a network: which operations must run again when one parameter moves.

Let the operations of a network be the nodes of a graph, in the order in which they run. A
parameter's *sites* are the nodes that call its module or fetch it; its *suffix* is the sites and all that depends on
them. Every other node keeps its value when the parameter moves, so its base value serves for
all queries of that parameter. The feature reuse of DeepZero is this with a network split by
hand; here the split is read off the graph, for any network that torch.fx can trace.

Values that are kept must not be overwritten, hence operations that work in place are rewritten
to return a new tensor, and later uses of the overwritten one are pointed to it. Where views
hide such a use, the rewritten graph differs from the network; whoever runs it must compare the
two outputs (`deepzero_apps.zeroth_order.engines` does).

References:
    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 4
    | https://arxiv.org/abs/2310.02025

    | torch.fx: Practical Program Capture and Transformation (Reed et al., 2022)
    | https://arxiv.org/abs/2112.08429
"""

__all__ = ["Suffix", "Traced", "Untraceable", "trace"]

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_OUT_OF_PLACE: dict[object, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


class Untraceable(RuntimeError):
    """A network that has no faithful graph; the message says why."""


@dataclass(frozen=True)
class Suffix:
    """What must be run again when one parameter moves.

    Attributes:
        sites: The nodes that call its module or fetch it; none if the network ignores it.
        nodes: The sites and all that depends on them, in the order in which they run.
        expired: For each of these nodes, the nodes of the suffix whose value is not needed
            after it.
    """

    sites: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    expired: Mapping[fx.Node, tuple[fx.Node, ...]]


class Traced:
    """The graph of a network, and what depends on what in it.

    Args:
        graph: The graph, free of operations that work in place.
        network: The network of which it was made; not kept.
        fixed: The values of nodes that are the same in each pass: tensors that the network's
            code makes by itself, and default arguments.

    Attributes:
        nodes: The operations in the order in which they run.
        source: The node of the network's input.
        result: The node of its output.
        varying: The nodes that depend on the input.
        fixed: As given.
        verdicts: Free for a user of the graph to note which fast paths it has checked.
    """

    def __init__(self, graph: fx.Graph, network: nn.Module, fixed: Mapping[fx.Node, Any]) -> None:
        self.nodes: tuple[fx.Node, ...] = tuple(n for n in graph.nodes if n.op != "output")
        self.result: fx.Node = _result(graph)
        self.source: fx.Node = self.nodes[0]
        self.varying: frozenset[fx.Node] = frozenset(self._downstream([self.source]))
        self.fixed = fixed
        self.verdicts: dict[str, int] = {}
        self._graph = graph
        self._uses = _uses(self.nodes, network)
        self._suffixes: dict[str, Suffix] = {}

    def suffix(self, name: str) -> Suffix:
        """Finds what must run again when a parameter moves.

        Args:
            name: The parameter's name.

        Returns:
            The parameter's suffix; computed once.
        """
        if name not in self._suffixes:
            sites = self._uses.get(name, ())
            nodes = self._downstream(sites)
            self._suffixes[name] = Suffix(tuple(sites), nodes, _expired(nodes, self.result))
        return self._suffixes[name]

    def after(self, node: fx.Node) -> Suffix:
        """Finds what must run again when the value of a node differs.

        Args:
            node: The node.

        Returns:
            A suffix whose only site is the node.
        """
        nodes = self._downstream([node])
        return Suffix((node,), nodes, _expired(nodes, self.result))

    def _downstream(self, roots: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        reached = set(roots)
        for node in self.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return tuple(node for node in self.nodes if node in reached)


def trace(network: nn.Module) -> Traced:
    """Traces a network into a graph without operations in place.

    The network itself is not changed, except for what its own code does when it runs.

    Args:
        network: The network, of one tensor and possibly arguments with defaults.

    Returns:
        The graph.

    Raises:
        Untraceable: If a module has forward hooks, which a graph would miss, if torch.fx fails,
            or if an operation in place has no counterpart that returns its result.
    """
    _refuse_hooks(network)
    known = set(vars(network))
    defaults = _defaults(network)
    try:
        graph = fx.Tracer().trace(network, concrete_args=defaults)
        _leave_nothing_in_place(graph, network)
    except Untraceable:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Untraceable(f"{type(error).__name__}: {reason}") from error
    finally:
        # fx parks tensors that the code creates on the network itself
        made = {name: vars(network).pop(name) for name in set(vars(network)) - known}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    fixed = dict(zip(placeholders[1:], (defaults or {}).values(), strict=True))
    fixed |= {n: made[n.target] for n in graph.nodes if n.op == "get_attr" and n.target in made}
    return Traced(graph, network, fixed)


def _refuse_hooks(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Untraceable(f"module {name or 'network'!r} has forward hooks")
        if "forward" in vars(module):
            raise Untraceable(
                f"module {name or 'network'!r} has a forward of its own, unlike its type"
            )


def _defaults(network: nn.Module) -> dict[str, Any] | None:
    parameters = list(inspect.signature(network.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


def _result(graph: fx.Graph) -> fx.Node:
    (value,) = next(node.args for node in graph.nodes if node.op == "output")
    if not isinstance(value, fx.Node):
        raise Untraceable(f"the output is a {type(value).__name__}, not one tensor")
    return value


def _uses(nodes: Iterable[fx.Node], network: nn.Module) -> dict[str, list[fx.Node]]:
    names = {id(p): name for name, p in network.named_parameters()}
    uses: defaultdict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        if node.op == "call_module":
            for p in network.get_submodule(str(node.target)).parameters():
                uses[names[id(p)]].append(node)
        elif node.op == "get_attr":
            name = names.get(id(_attribute(network, str(node.target))))
            if name is not None:
                uses[name].append(node)
    return {name: list(dict.fromkeys(users)) for name, users in uses.items()}


def _attribute(network: nn.Module, target: str) -> object:
    value: object = network
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def _expired(nodes: tuple[fx.Node, ...], result: fx.Node) -> dict[fx.Node, tuple[fx.Node, ...]]:
    last = {used: node for node in nodes for used in node.all_input_nodes}
    expired: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        if node is not result:
            expired[last.get(node, node)].append(node)
    return {node: tuple(gone) for node, gone in expired.items()}


def _leave_nothing_in_place(graph: fx.Graph, network: nn.Module) -> None:
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes):
        if _rewrite(node, network):
            _redirect(node, set(nodes[i + 1 :]))


def _redirect(node: fx.Node, later: set[fx.Node]) -> None:
    node.all_input_nodes[0].replace_all_uses_with(node, lambda user: user in later)


def _rewrite(node: fx.Node, network: nn.Module) -> bool:
    """Makes a node return its result; tells whether it overwrote its first input."""
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return _rewrite_method(node)
    if node.op == "call_function":
        return _rewrite_function(node)
    return False


def _rewrite_method(node: fx.Node) -> bool:
    name = str(node.target)
    if not name.endswith("_") or name.endswith("__"):
        return False
    if not callable(getattr(Tensor, name[:-1], None)):
        raise Untraceable(f"method {name!r} works in place and has no other form")
    node.target = name[:-1]
    return True


def _rewrite_function(node: fx.Node) -> bool:
    if "out" in node.kwargs:
        raise Untraceable(f"{node.target} writes to out=")
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    counterpart = _counterpart(node.target)
    if counterpart is None:
        return False
    node.target = counterpart
    return True


def _counterpart(function: object) -> Callable[..., Any] | None:
    known = _OUT_OF_PLACE.get(function)
    if known is not None:
        return known
    name = str(getattr(function, "__name__", ""))
    if not name.endswith("_") or name.endswith("__"):
        return None
    found = getattr(torch, name[:-1], None) or getattr(functional, name[:-1], None)
    if found is None:
        raise Untraceable(f"function {name!r} works in place and has no other form")
    return found  # type: ignore[no-any-return]
