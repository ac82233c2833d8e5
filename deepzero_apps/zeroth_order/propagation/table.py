r"""The table of rules: how a difference passes through one operation.

An operation y = f(x, ...) of the base pass becomes, in a network whose input to it differs by
:math:`\delta`,

.. math::
    \delta_y = f(x + \delta, \dots) - f(x, \dots)                                      \tag{1}

A rule computes (1) without subtracting nearly equal numbers, and keeps a difference on one channel
where it can. To add a rule, write one function of a `Call` and name the operations it is for: the
types of modules, the functions, and the names of tensor methods.

    >>> @rule(nn.Identity, "contiguous")
    ... def unchanged(call: Call) -> Delta:
    ...     return call.delta

An operation without a rule, and a call for which its rule returns `NotImplemented`, goes to
`deepzero_apps.zeroth_order.propagation.fallback`, which evaluates (1) as it stands.
"""

__all__ = ["Call", "Rule", "rule", "rule_for"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from deepzero_apps.zeroth_order.base_pass import Operation, Value
from deepzero_apps.zeroth_order.propagation.delta import Delta, laid_out


@dataclass(frozen=True)
class Call:
    """One operation of the base pass, and how its inputs differ in K networks.

    Attributes:
        operation: What it does, out of place and without side effects.
        module: The module that it calls, if it does.
        args: Its positional arguments in the base pass.
        kwargs: Its keyword arguments in the base pass.
        output: Its result in the base pass.
        deltas: As ``args``, with a `Delta` for what differs and None for the rest.
        keyword_deltas: As ``kwargs``, likewise.
        networks: The number K of networks.
        moving: Whether it draws random numbers or moves buffers.
        precision: The type in which dense mixing is done; None for that of the differences.
        kept: What rules keep for further calls at the same node of the same base pass.
    """

    operation: Operation
    module: nn.Module | None
    args: tuple[Value, ...]
    kwargs: Mapping[str, Value]
    output: Value
    deltas: tuple[Value, ...]
    keyword_deltas: Mapping[str, Value]
    networks: int
    moving: bool = False
    precision: torch.dtype | None = None
    kept: dict[str, Value] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The first argument in the base pass."""
        return self.args[0]  # type: ignore[no-any-return]

    @property
    def delta(self) -> Delta:
        """How the first argument differs."""
        return self.deltas[0]  # type: ignore[no-any-return]

    @property
    def dense(self) -> Tensor:
        """How the first argument differs, on all channels."""
        return self.delta.dense(self.x)

    def base(self, delta: Delta) -> Tensor:
        """What a difference of the first argument is a difference of, in the same layout."""
        if delta.channels is not None:
            return delta.on(self.x)
        return self.once("laid out", lambda: laid_out(self.x))[None]  # type: ignore[no-any-return]

    def once(self, name: str, make: Callable[[], Value]) -> Value:
        """Returns what was kept under a name, made at the first call."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def setting(self, position: int, name: str, default: Value = None) -> Value:
        """Looks a setting up: the module's own, or an argument by position or by name."""
        if self.module is not None:
            return getattr(self.module, name)
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Rule = Callable[[Call], Value]

_RULES: dict[object, tuple[Rule, bool]] = {}


def rule(*operations: object, several: bool = False) -> Callable[[Rule], Rule]:
    """Enters a function into the table.

    Args:
        operations: Module types, functions, and names of tensor methods that it is for.
        several: Whether it deals with differences of other arguments than the first.

    Returns:
        A decorator that returns the function as it is.
    """

    def enter(function: Rule) -> Rule:
        for operation in operations:
            _RULES[operation] = (function, several)
        return function

    return enter


def rule_for(node: fx.Node, module: nn.Module | None) -> tuple[Rule, bool] | None:
    """Looks up the rule of a node, and whether it deals with several differences."""
    return _RULES.get(type(module) if module is not None else node.target)
