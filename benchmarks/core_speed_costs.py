r"""How many multiply-adds of convolutions and linear layers one query of an engine executes.

The operations of a network are counted in the order in which they run, on one image. An output
entry of a convolution costs ``in_channels / groups * kernel`` multiply-adds, of a linear layer
``in_features``. The networks meant are chains in this respect: every later operation depends on
every earlier one (in a ResNet as well, its shortcuts own no weights). So with operations
:math:`1 \dots n` of :math:`m_j` multiply-adds, :math:`o_j` outputs and :math:`i_j` inputs channels,
a query of a weight of operation p costs

=============== ============================================================================
`whole`         :math:`\sum_j m_j`: the network, as torch.func.vmap and plain loops run it
`block`         :math:`\sum_{j \ge s} m_j`, s being the first operation of p's residual block
`suffix`        :math:`\sum_{j \ge p} m_j`
`moved_channel` :math:`m_p / o_p + \sum_{j > p} m_j`: at p one output channel
`one_channel`   :math:`m_q / i_q + \sum_{j > q} m_j`, q being the first operation after p that
                mixes channels: at p a shifted copy of one input channel, nothing to multiply;
                at q one input channel; then all is dense
=============== ============================================================================

Batch norm runs as an operation of no multiply-adds. Everything that is not a product with a
weight matrix is left out, such as ReLU, and so is the base pass, which many queries share.
"""

__all__ = [
    "Operation",
    "Rule",
    "block",
    "mean_cost",
    "moved_channel",
    "one_channel",
    "operations",
    "suffix",
    "whole",
]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Operation:
    """A module with weights.

    Attributes:
        name: Its name in the network.
        multiply_adds: What it executes for one image.
        inputs: The channels of its input.
        outputs: The channels of its output.
    """

    name: str
    multiply_adds: int
    inputs: int
    outputs: int


Rule = Callable[[Sequence[Operation], int], float]
"""All operations and the number of the one whose weight moves, to multiply-adds an image."""


def operations(network: nn.Module, image: Tensor) -> list[Operation]:
    """Lists the operations of a network in the order they run.

    Args:
        network: The network; its buffers move as by an ordinary pass.
        image: Input of shape ``(n, ...)``.
    """
    found: list[Operation] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):

            def note(
                module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
            ) -> None:
                entries = output[0].numel() * _reach(module)
                found.append(Operation(name, entries, inputs[0].shape[1], output.shape[1]))

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return found


def _reach(module: nn.Module) -> int:
    """How many weights an output entry is a product with."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.weight[0].numel()
    return 0


def whole(found: Sequence[Operation], place: int) -> float:  # noqa: ARG001
    """Counts a whole pass."""
    return _sum(found)


def block(found: Sequence[Operation], place: int) -> float:
    """Counts from the beginning of the block that holds the weight."""
    names = [operation.name.rpartition(".") for operation in found]
    own = names[place]
    first = place if not own[0] else next(i for i, name in enumerate(names) if name[0] == own[0])
    return _sum(found[first:])


def suffix(found: Sequence[Operation], place: int) -> float:
    """Counts from the weight's own operation on."""
    return _sum(found[place:])


def moved_channel(found: Sequence[Operation], place: int) -> float:
    """Counts one output channel of the weight's own operation and all later ones."""
    return found[place].multiply_adds / found[place].outputs + _sum(found[place + 1 :])


def one_channel(found: Sequence[Operation], place: int) -> float:
    """Counts one input channel of the next operation that mixes, and all later ones."""
    after = [operation for operation in found[place + 1 :] if operation.multiply_adds]
    if not after:
        return 0.0
    return after[0].multiply_adds / after[0].inputs + _sum(after[1:])


def _sum(found: Sequence[Operation]) -> int:
    return sum(operation.multiply_adds for operation in found)


def mean_cost(found: Sequence[Operation], counts: Mapping[str, int], rule: Rule) -> float:
    """Averages over the weights of a mask.

    Args:
        found: The operations.
        counts: The number of coordinates of each parameter, by its name.
        rule: What a query of a parameter costs.

    Returns:
        Multiply-adds a query and image.
    """
    places = {operation.name: i for i, operation in enumerate(found)}
    costs = {name: rule(found, places[name.rpartition(".")[0]]) for name in counts}
    return sum(counts[name] * costs[name] for name in counts) / sum(counts.values())
