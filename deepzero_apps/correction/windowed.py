r"""`zo-field` for a simulator that acts far: random signs on all controls, and windows of credit.

The gradient is the one of ``methods``, whose first part is exact: what a control does to its own step's
answer. The rest is estimated by ``credit`` from what signs on all controls at once do to the states.

Corrections inside of a step leave nothing exact. It is then predicted that a control changes its own
step's answer by :math:`\beta \Phi z`, as it would after the step, and :math:`\beta` is fitted to what the signs did:
1 for an acceleration that passes the simulator unchanged, 0 for one that is not like that. The
windows see what is left over, so the prediction costs no bias, only takes noise away.
"""

__all__ = ["Effects", "Seen", "Windowed"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import at_once, plane, pull_back
from deepzero_apps.correction.unrolled import Loop, Objective, Trace, Windows
from deepzero_apps.zeroth_order.directions import Rademacher
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation


@dataclass(frozen=True)
class Seen:
    """What signs on the controls of b pieces did.

    Attributes:
        features: What the network saw without them, ``(n, b, c + 1, rows, columns)``.
        changes: What each direction changed, by its size, float64 ``(n, q, b, c, *grid)``.
        cotangents: The gradient with respect to each state by itself, ``(n, b, c, *grid)``.
        loss: The mean loss without signs.
    """

    features: Tensor
    changes: Tensor
    cotangents: Tensor
    loss: float


@dataclass(frozen=True)
class Effects:
    """Signs and what each number of the states then added to the loss, in single precision.

    Attributes:
        signs: Of shape ``(n, q, b, channels, rows, columns)``.
        responses: In units of ``unit``, ``(n, q, b, c, rows, columns)``.
        unit: The largest response.
    """

    signs: Tensor
    responses: Tensor
    unit: float


@dataclass(frozen=True)
class Windowed:
    """`zo-field` for a simulator that acts far: signs on all controls, windows of credit.

    Between what is measured and what is written stand three numbers of the whole minibatch: the
    fit of the prediction (inside), the powers, and the windows that follow. All else is a sum over
    pieces, so that each can be worked on apart: see ``spread``.

    Args:
        mu: The size of the signs, in the units of the controls.
        q: The number of directions, at least 2.
        credit: The windows; learns, and is to be stored with the run.
        seed: The seed of the signs.

    Raises:
        ValueError: If ``mu`` is not positive or ``q`` less than 2.
    """

    mu: float
    q: int
    credit: Credit
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.mu > 0:
            raise ValueError(f"mu must be positive, got {self.mu}")
        if self.q < 2:
            raise ValueError(f"q must be at least 2, to tell signal from noise, got {self.q}")

    def __call__(
        self, loop: Loop, objective: Objective, windows: Windows, *, step: int
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows."""
        signs = self.signs(loop, windows.fields, steps=windows.steps, step=step)
        (seen,) = self.look(loop, objective, [windows], [signs])
        own = self.own(loop, signs, windows.grid)
        share = self.credit.share(seen.changes, own) if loop.inside else 1.0
        effects = self.effects(seen, signs, share * own)
        powers = self.powers(loop, effects)
        self.credit.learn({lag: now.to(effects.responses) for lag, now in powers.items()})
        self.write(loop, seen, effects, share=share, windows=self.credit.windows(powers))
        return Observation(seen.loss)

    def signs(self, loop: Loop, fields: Tensor, *, steps: int, step: int) -> Tensor:
        """Draws the signs of an update.

        Args:
            loop: Simulator and corrector.
            fields: The states at the start of b pieces, for their number, kind and device alone.
            steps: The steps n of a piece.
            step: The number of the update.

        Returns:
            Signs ``(n, q, b, channels, rows, columns)``.
        """
        grid = plane(tuple(fields.shape[2:]))
        like = fields.new_empty(
            (steps, self.q, len(fields), loop.corrector.output.channels, *grid)
        )
        return Rademacher().sample(like, generator=generator_for(self.seed, "signs", step))

    def look(
        self, loop: Loop, objective: Objective, sets: Sequence[Windows], signs: Sequence[Tensor]
    ) -> list["Seen"]:
        """Runs sets of pieces as they are and with signs on their controls, all at once.

        Args:
            loop: Simulator and corrector.
            objective: The loss.
            sets: The pieces; each set is seen as if it were alone.
            signs: The signs of each set.

        Returns:
            What was seen of each.
        """
        many = [one.repeated(self.q + 1) for one in sets]
        traces = loop.run_together(many, pushes=[self._push(own) for own in signs])
        return [self._seen(objective, *each) for each in zip(sets, traces, strict=True)]

    def _push(self, signs: Tensor) -> Callable[[int], Tensor]:
        still = torch.zeros_like(signs[:, :1])
        pushes: Tensor = self.mu * torch.cat((still, signs), 1).flatten(1, 2)
        return pushes.__getitem__

    def _seen(self, objective: Objective, windows: Windows, trace: Trace) -> "Seen":
        b = len(windows.fields)
        states = trace.states.unflatten(1, (self.q + 1, b))
        return Seen(
            trace.features[:, :b],
            (states[:, 1:] - states[:, :1]) / self.mu,
            objective.cotangents(states[:, 0], windows),
            float(objective.losses(states[:, 0], windows).mean()),
        )

    def own(self, loop: Loop, signs: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Predicts what signs change at once, ``(n, q, b, c, *grid)``: their own corrections."""
        own = loop.corrector.correction(signs.flatten(0, 2), grid)
        by_direction: Tensor = own.unflatten(0, signs.shape[:3])
        return by_direction

    def effects(self, seen: "Seen", signs: Tensor, predicted: Tensor) -> "Effects":
        """Weighs what is left of the changes once the prediction is taken off."""
        responses = _on_plane((seen.changes - predicted) * seen.cotangents[:, None])
        unit = responses.abs().max().clamp_min(torch.finfo(responses.dtype).tiny)
        return Effects(signs.float(), (responses / unit).float(), float(unit))

    def powers(self, loop: Loop, effects: "Effects") -> dict[int, Tensor]:
        """Measures signal and total power by lag; see `Credit.powers`."""
        first_lag = 0 if loop.inside else 1
        return self.credit.powers(effects.signs, effects.responses, first_lag=first_lag)

    def write(
        self,
        loop: Loop,
        seen: "Seen",
        effects: "Effects",
        *,
        share: float,
        windows: Mapping[int, Tensor],
    ) -> None:
        """Writes the gradient: the prediction's exactly, the rest by windows of credit."""
        estimate = self.credit.estimate(effects.signs, effects.responses, windows)
        own_part = share * at_once(loop, seen.cotangents)
        pull_back(loop, seen.features, own_part + estimate.double() * effects.unit)

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return (self.q + 1) * steps


def _on_plane(x: Tensor) -> Tensor:
    return x if x.ndim == 6 else x.unsqueeze(-2)
