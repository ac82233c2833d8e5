"""What stands behind a network: its outputs to losses, and how losses differ as outputs do."""

__all__ = ["DifferenceHead", "Head", "Losses"]

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Outputs ``(k, b, ...)`` of k networks on b samples to per-sample losses ``(k, b)``.

It may be a black box and is never differentiated. It must be deterministic, and must treat all
networks and samples alike: how many networks come in one call is the engine's choice."""


@runtime_checkable
class DifferenceHead(Protocol):
    """A head that can tell how losses differ from how outputs differ, without cancellation."""

    def __call__(self, outputs: Tensor, /) -> Tensor:
        """Maps outputs ``(k, b, ...)`` to losses ``(k, b)``, as any head."""
        ...

    def differences(self, base: Tensor, deltas: Tensor, /) -> Tensor:
        """Maps base outputs ``(b, ...)`` and differences ``(k, b, ...)`` to those of losses."""
        ...


class Losses:
    """The losses of a batch, and how they change with the network's output.

    Args:
        head: The rest of the loss.
        output: The base output, of shape ``(b, ...)``.

    Attributes:
        queries: The number of networks whose outputs the head has seen so far.
    """

    def __init__(self, head: Head, output: Tensor) -> None:
        self.queries = 0
        self._head, self._output = head, output
        self._base: Tensor | None = None

    @property
    def base(self) -> Tensor:
        """The samples' losses, float64 of shape ``(b,)``; one query when first asked for."""
        if self._base is None:
            self._base = self.of(self._output[None])[0]
        return self._base

    def of(self, outputs: Tensor) -> Tensor:
        """Evaluates outputs.

        Args:
            outputs: The outputs of k networks, of shape ``(k, b, ...)``.

        Returns:
            Their losses, float64 of shape ``(k, b)``; k queries.

        Raises:
            TypeError: If the head does not return a tensor.
            ValueError: If it does not return one loss a network and sample.
        """
        return self._checked(self._head(outputs), outputs)

    def changes(self, deltas: Tensor) -> Tensor:
        """Evaluates outputs that are given by their differences from the base output.

        Args:
            deltas: The differences, of shape ``(k, b, ...)``.

        Returns:
            How the losses differ from ``base``, float64 of shape ``(k, b)``; k queries, and one
            for the base unless it is known.

        Raises:
            TypeError: As ``of``.
            ValueError: As ``of``.
        """
        base = self.base
        if isinstance(self._head, DifferenceHead):
            return self._checked(self._head.differences(self._output, deltas), deltas)
        return self.of(self._output + deltas) - base

    def between(self, up: Tensor, down: Tensor) -> Tensor:
        """The losses of some differences less those of others, without the base."""
        if isinstance(self._head, DifferenceHead):
            changes = [self._head.differences(self._output, d) for d in (up, down)]
            return self._checked(changes[0], up) - self._checked(changes[1], down)
        return self.of(self._output + up) - self.of(self._output + down)

    def _checked(self, losses: object, outputs: Tensor) -> Tensor:
        if not isinstance(losses, Tensor):
            raise TypeError(f"head must return a tensor, got {type(losses).__name__}")
        if losses.shape != outputs.shape[:2]:
            raise ValueError(
                f"head must return one loss a network and sample, shape "
                f"{tuple(outputs.shape[:2])}, got {tuple(losses.shape)}; do not average"
            )
        self.queries += len(losses)
        return losses.detach().to(self._output.device, torch.float64)
