"""A black box with a meter: counts and caps queries, splits batches, keeps autograd out.

One query is one row: one point of one problem (an image, a state, a weight vector). The charge
falls before the call, so a budget is never overdrawn, whatever fails afterwards.
"""

__all__ = ["BudgetExhausted", "Meter", "NonFiniteAnswer", "Oracle"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 2**28
"""The most bytes of points handed over in one call (256 MiB)."""


class BudgetExhausted(RuntimeError):
    """Raised before a query that the budget does not cover; none of its rows were asked."""


class NonFiniteAnswer(ValueError):
    """Raised when a black box answers NaN or an infinity."""


@dataclass
class Meter:
    """Counts queries and holds a hard budget.

    Args:
        budget: The most queries that may ever be spent; None for no limit.
        spent: The queries spent so far (a resumed run starts where it stopped).
    """

    budget: int | None = None
    spent: int = 0

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 0:
            raise ValueError(f"budget must be at least 0 queries, got {self.budget}")

    @property
    def remaining(self) -> float:
        """The queries left; infinite without a budget."""
        return float("inf") if self.budget is None else self.budget - self.spent

    def charge(self, queries: int) -> None:
        """Spends queries.

        Raises:
            BudgetExhausted: If fewer are left; nothing is spent then.
        """
        if queries > self.remaining:
            raise BudgetExhausted(
                f"the budget of {self.budget:,} queries does not cover {queries:,} more: "
                f"{self.spent:,} are spent; raise the budget or ask for less"
            )
        self.spent += queries


class Oracle:
    """Wraps a batched function so that nothing can be asked unseen.

    Args:
        function: Points ``(n, ...)`` to values ``(n, ...)``; the rows are independent.
        meter: Charged one query a row; a fresh one without limit by default.
        memory: The most bytes of points in one call; larger batches are split.
        name: What the function is called in errors.

    Example:
        >>> oracle = Oracle(lambda p: p.sum(-1), meter=Meter(budget=10))
        >>> oracle(torch.ones(8, 3)).shape, oracle.meter.spent
        (torch.Size([8]), 8)
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        meter: Meter | None = None,
        memory: int = MEMORY,
        name: str = "black box",
    ) -> None:
        if memory < 1:
            raise ValueError(f"memory must be at least 1 byte, got {memory}")
        self.function = function
        self.meter = meter if meter is not None else Meter()
        self.memory = memory
        self.name = name

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """Asks for the values at points.

        Args:
            points: Of shape ``(n, ...)``.

        Returns:
            The values, of shape ``(n, ...)``, detached.

        Raises:
            BudgetExhausted: Before the call, if the meter does not cover n rows.
            NonFiniteAnswer: If a value is NaN or infinite.
            ValueError: If the number of answers differs from the number of points.
        """
        points = points.detach()
        self.meter.charge(len(points))
        rows = max(1, self.memory // max(1, points[:1].nbytes))
        return torch.cat([self._ask(part) for part in points.split(rows)])

    def _ask(self, points: Tensor) -> Tensor:
        values = self.function(points).detach()
        if len(values) != len(points):
            raise ValueError(
                f"{self.name} must answer one value a point, got {len(values)} for {len(points)}"
            )
        finite = values.isfinite()
        if not finite.all():
            bad = (~finite).flatten(1).any(1) if values.ndim > 1 else ~finite
            row = int(bad.nonzero()[0])
            raise NonFiniteAnswer(
                f"{self.name} must answer finite values, got {values[row].tolist()} at row {row} "
                f"({int(bad.sum())} of {len(values)} rows are not finite)"
            )
        return values
