"""An estimate of a gradient as pieces of work that know nothing of each other.

A gradient from values alone is thousands of evaluations, none of which needs another: the paper's
forward parallelization. Here an estimate is begun, which makes the base pass and says what its
pieces are; pieces are measured, here or anywhere, in any order; and the estimate is finished from
what they gave. A piece is what one pass evaluates together. So it gives the same bits in whatever
company it is measured, and a gradient does not depend on where its pieces were.

References:
    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 4
    | https://arxiv.org/abs/2310.02025
"""

__all__ = ["Divisible", "Work", "all_at_once"]

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from deepzero_apps.zeroth_order.checks import Checking
from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.training import Observation


class Work(Protocol):
    """One estimate that was begun: a network on a batch, at its weights."""

    @property
    def kinds(self) -> Sequence[int]:
        """What each piece is of, such as the parameter that it moves: a kind costs about the same."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """How many numbers each piece gives."""
        ...

    def measure(self, pieces: Sequence[int]) -> Tensor:
        """Measures pieces.

        Args:
            pieces: Their numbers, ascending.

        Returns:
            Their numbers one after the other, float64 of shape ``(sum of lengths,)``.
        """
        ...

    def finish(self, measured: Tensor) -> Observation:
        """Writes ``.grad`` of the trainable parameters.

        Args:
            measured: What all pieces gave, in their order.

        Returns:
            What was seen.
        """
        ...


@runtime_checkable
class Divisible(Checking, Protocol):
    """A gradient that comes in pieces.

    Its pieces depend on what was found out about the network. Who begins at a later step must cut the
    same ones, and evaluate them in the same way: before that, it is to `believe` what was known.
    """

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Measures all pieces here, writes ``.grad`` and returns what was seen."""
        ...

    def begin(self, network: nn.Module, inputs: Tensor, head: Head, *, step: int) -> Work:
        """Makes the base pass and says what is to be measured.

        Args:
            network: The network, in the mode (train or eval) that is wanted.
            inputs: A batch of shape ``(b, ...)``.
            head: The rest of the loss.
            step: The number of the training step, for what is drawn at random.
        """
        ...


def all_at_once(work: Work) -> Observation:
    """Measures all pieces here and writes the gradient."""
    return work.finish(work.measure(range(len(work.kinds))))
