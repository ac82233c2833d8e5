r"""The training loop: write an estimate to ``.grad``, step any torch optimizer, yield metrics.

The loop knows nothing of how a gradient comes about. It calls ``gradient(step)``, which writes
``.grad`` and returns what it saw, then clips, steps and reports. Everything random inside a step is
a pure function of (seed, step), torch's global generator included, so a run that is stopped at
any moment and restored from ``state_dict()`` ends with the same bits.

**Sparse gradients and unselected weights.** With momentum or weight decay an optimizer also moves
weights whose gradient is zero in this step. ``hold_unselected=True`` puts those back after the
step; False lets them drift, as plain SGD with a sparse gradient would (and as the public DeepZero
code does). The optimizer's own state moves on either way.
"""

__all__ = ["Companions", "GradientFunction", "Observation", "Stateful", "Training", "minibatch"]

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.state import Weights


@dataclass(frozen=True)
class Observation:
    """What one gradient saw.

    Attributes:
        loss: The loss at the weights before the step.
        support: The flat coordinates that were estimated; None for all of them.
        extra: Further numbers for the metrics.
        redrawn: Whether the support was drawn anew for this step.
    """

    loss: float
    support: Tensor | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    redrawn: bool = False


GradientFunction = Callable[[int], Observation]
"""A step number to an observation; writes ``.grad`` of the trained network's parameters."""


class Stateful(Protocol):
    """Something that learns while a network is trained and must resume with it."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the rest of the run depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Takes up what ``state_dict()`` returned."""
        ...


class Companions:
    """Several things that learn during one run, stored under their names.

    Args:
        named: The companions.
    """

    def __init__(self, named: Mapping[str, Stateful]) -> None:
        self._named = dict(named)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each."""
        return {name: companion.state_dict() for name, companion in self._named.items()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up what ``state_dict()`` returned."""
        for name, companion in self._named.items():
            companion.load_state_dict(state[name])


class Training:
    """A training run that can be stopped and restored at any step.

    Args:
        network: The network whose trainable parameters are moved.
        optimizer: Any torch optimizer over them.
        gradient: Writes ``.grad``; see ``GradientFunction``.
        scheduler: A learning-rate schedule, stepped once a step.
        meter: The meter that the gradient's queries are charged to; reported and stored.
        companion: What else learns during the run, such as a surrogate; stored with it.
        clip_norm: The largest gradient norm; larger ones are scaled down to it.
        hold_unselected: Whether weights outside of the support stay where they are.
        seed: The seed of torch's global generator at every step (dropout).

    Raises:
        ValueError: If ``clip_norm`` is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        gradient: GradientFunction,
        *,
        scheduler: LRScheduler | None = None,
        meter: Meter | None = None,
        companion: Stateful | None = None,
        clip_norm: float | None = None,
        hold_unselected: bool = False,
        seed: int = 0,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}")
        self.network = network
        self.optimizer = optimizer
        self.gradient = gradient
        self.scheduler = scheduler
        self.meter = meter if meter is not None else Meter()
        self.companion = companion
        self.clip_norm = clip_norm
        self.hold_unselected = hold_unselected
        self.seed = seed
        self.step = 0
        self.seconds = 0.0

    def run(self, steps: int, *, stop_at_budget: bool = True) -> Iterator[dict[str, float]]:
        """Trains until ``steps`` steps have been made in all, yielding metrics after each.

        Args:
            steps: The number of the last step; a restored run goes on from where it stopped.
            stop_at_budget: Whether an exhausted query budget ends the run cleanly. Either way
                no step is made from a gradient that is not whole.

        Yields:
            ``step``, ``loss``, ``queries``, ``seconds``, ``lr``, ``gradient_norm`` and what the
            gradient adds.

        Raises:
            BudgetExhausted: If the budget ends and ``stop_at_budget`` is False.
            FloatingPointError: If the loss or the gradient is not finite; the weights are those
                before the step.
        """
        while self.step < steps:
            started = time.perf_counter()
            try:
                metrics = self._step()
            except BudgetExhausted:
                if stop_at_budget:
                    return
                raise
            self.seconds += time.perf_counter() - started
            yield {"step": self.step, **metrics, "seconds": self.seconds}

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the rest of the run depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "companion": self.companion.state_dict() if self.companion else None,
            "step": self.step,
            "spent": self.meter.spent,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a run from what ``state_dict()`` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.companion:
            self.companion.load_state_dict(state["companion"])
        self.step = state["step"]
        self.meter.spent = state["spent"]
        self.seconds = state["seconds"]

    def _step(self) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        devices = [p.device for p in self.network.parameters() if p.is_cuda][:1]
        with torch.random.fork_rng(devices):
            torch.manual_seed(generator_for(self.seed, "step", self.step).initial_seed())
            seen = self.gradient(self.step)
        norm = self._clipped_norm()
        self._refuse_non_finite(seen.loss, norm)
        lr = float(self.optimizer.param_groups[0]["lr"])

        before = self._weights_to_hold(seen.support)
        self.optimizer.step()
        if before is not None and seen.support is not None:
            self._put_back(before, seen.support)
        if self.scheduler:
            self.scheduler.step()
        self.step += 1
        return {
            "loss": seen.loss,
            "queries": self.meter.spent,
            "lr": lr,
            "gradient_norm": norm,
            **seen.extra,
        }

    def _clipped_norm(self) -> float:
        bound = self.clip_norm if self.clip_norm is not None else float("inf")
        return float(nn.utils.clip_grad_norm_(self.network.parameters(), bound))

    def _refuse_non_finite(self, loss: float, norm: float) -> None:
        if not torch.tensor([loss, norm]).isfinite().all():
            raise FloatingPointError(
                f"loss and gradient must be finite, got loss {loss} and gradient norm {norm} at "
                f"step {self.step}; try a smaller learning rate or clip_norm"
            )

    def _weights_to_hold(self, support: Tensor | None) -> list[Tensor] | None:
        if not self.hold_unselected or support is None:
            return None
        return [p.detach().clone() for p in Weights(self.network).parameters]

    @torch.no_grad()
    def _put_back(self, before: list[Tensor], support: Tensor) -> None:
        weights = Weights(self.network)
        selected = torch.zeros(weights.total, dtype=torch.bool, device=support.device)
        selected[support] = True
        parts = selected.split(list(weights.sizes))
        for p, old, part in zip(weights.parameters, before, parts, strict=True):
            p.copy_(torch.where(part.view(p.shape).to(p.device), p, old))


def minibatch(step: int, *, samples: int, size: int, seed: int) -> Tensor:
    """Returns the rows of a step: every epoch deals all samples once, in an order of its own.

    A pure function of its arguments. The last, incomplete batch of an epoch is left out.

    Args:
        step: The number of the step, from 0.
        samples: The number of samples.
        size: The number of rows, at most ``samples``.
        seed: The seed of the orders.

    Returns:
        Row indices, of shape ``(size,)``.

    Raises:
        ValueError: If ``size`` does not lie in ``[1, samples]``.
    """
    if not 1 <= size <= samples:
        raise ValueError(f"size must lie in [1, {samples}], got {size}")
    epoch, batch = divmod(step, samples // size)
    order = torch.randperm(samples, generator=generator_for(seed, "order", epoch))
    return order[batch * size : (batch + 1) * size]
