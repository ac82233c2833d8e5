"""In which steps differences pass through the suffix of a parameter."""

__all__ = ["Step", "steps_of"]

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from deepzero_apps.zeroth_order.graph import Suffix
from deepzero_apps.zeroth_order.propagation.fused import Group


@dataclass(frozen=True)
class Step:
    """One operation, or a group that is evaluated at once.

    Attributes:
        node: The node whose difference results.
        group: The group that ends there, if it is one.
        expired: The nodes whose differences are not needed any more.
    """

    node: fx.Node
    group: Group | None
    expired: tuple[fx.Node, ...]

    @property
    def uses(self) -> set[fx.Node]:
        """The nodes whose differences it needs."""
        if self.group is None:
            return set(self.node.all_input_nodes)
        return {node for node in (self.group.source, self.group.other) if node is not None}


def steps_of(suffix: Suffix, result: fx.Node, groups: Mapping[fx.Node, Group]) -> tuple[Step, ...]:
    """Plans the suffix of a parameter with one site.

    Args:
        suffix: The suffix.
        result: The network's output.
        groups: The network's groups, by their last member.

    Returns:
        The steps after the site. A group is taken whole or not at all: not where the site lies
        inside, nor where only the other part of its sum differs.
    """
    (site,) = suffix.sites
    after = set(suffix.nodes) - {site}
    whole = {last: group for last, group in groups.items() if after.issuperset(group.members)}
    inner = {node for last, group in whole.items() for node in group.members if node is not last}
    order = [node for node in suffix.nodes if node in after and node not in inner]
    steps = [Step(node, whole.get(node), ()) for node in order]
    last = {site: -1} | {node: i for i, node in enumerate(order)}
    for i, step in enumerate(steps):
        last |= {node: i for node in step.uses if node in last}
    last.pop(result, None)
    return tuple(
        Step(step.node, step.group, tuple(node for node, end in last.items() if end == i))
        for i, step in enumerate(steps)
    )
