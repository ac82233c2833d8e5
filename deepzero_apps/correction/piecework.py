"""What a worker does for the training of a corrector: whole pieces, in a simulator of its own.

A call names an update and some pieces of its minibatch by their numbers; start, references, signs and
directions are drawn again where they are needed, and simulator and network run side by side for all
steps of a piece. Each piece is worked on by itself, so that its bits depend neither on what else a call
asks for nor on who answers. What comes back is small: losses, moments, the gradient of each piece.

`Windowed` is asked in rounds, for its windows follow from all pieces. What was seen in a round stays in
the memory of the machine (`Kept`); whoever finds it gone, with the process that saw it, makes
it again to the same bits.
"""

__all__ = ["Kept", "Known", "Looked", "Measured", "Piecework"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.simulator import SimulatorFailure
from deepzero_apps.correction.training import Recipe, pieces
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective, Windows
from deepzero_apps.correction.windowed import Effects, Seen, Windowed
from deepzero_apps.workers import Shared
from deepzero_apps.zeroth_order.gradients import read_gradient
from deepzero_apps.zeroth_order.state import Weights

Array = NDArray[Any]


class Measured(NamedTuple):
    """What the windows of credit follow from: the largest response, and the powers by lag."""

    unit: float
    powers: dict[int, Array]


class Looked(NamedTuple):
    """What the first round tells of a piece: its loss, and the fit (inside) or the moments (after)."""

    loss: float
    sums: tuple[float, float] | None
    measured: Measured | None


class Known(NamedTuple):
    """What a later round is given: what the first kept, the slope of the fit, the windows by lag."""

    kept: "Kept"
    share: float
    windows: Mapping[int, Array] = {}


class Kept:
    """A value that stays in the memory of the machine where it was made, and goes with its maker.

    Args:
        value: The value; numpy arrays in it come back read-only.
    """

    def __init__(self, value: object) -> None:
        import ray

        self._reference = [ray.put(value)]  # in a list, for a call would fetch it by itself

    def value(self) -> Any | None:  # noqa: ANN401 - whatever was kept
        """Returns the value, or None if it is lost."""
        import ray

        try:
            return ray.get(self._reference[0])
        except ray.exceptions.RayError:
            return None


class Piecework:
    """What a worker holds: loop, method and the training simulations.

    Args:
        loop: Simulator and corrector; the weights are overwritten by those that come with calls.
        method: The method, equal to that of the process that asks.
        objective: The loss.
        trajectories: The training simulations.
        recipe: How pieces are drawn.
    """

    def __init__(
        self,
        loop: Loop,
        method: Method,
        objective: Objective,
        *,
        trajectories: Trajectories,
        recipe: Recipe,
    ) -> None:
        self._loop, self._method, self._objective = loop, method, objective
        self._trajectories, self._recipe = trajectories, recipe
        self._weights = Weights(loop.corrector.network)
        self._at: int | None = None
        self._drawn: tuple[int, Tensor] | None = None

    def whole(self, weights: Shared, step: int, asked: Sequence[int]) -> list[tuple[float, Array]]:
        """Computes the gradient of pieces, for a method that looks at each by itself.

        Args:
            weights: The corrector's state; see `state_of`.
            step: The number of the update.
            asked: The numbers of the pieces in its minibatch.

        Returns:
            Loss and gradient, ``(d,)``, of each.

        Raises:
            SimulatorFailure: If the simulator fails; it names update and piece.
        """
        self._take(weights)
        return [self._whole(step, piece) for piece in asked]

    def look(self, weights: Shared, step: int, asked: Sequence[int]) -> tuple[list[Looked], Kept]:
        """The first round of `Windowed`: runs pieces with their displaced copies.

        Args:
            weights: As `whole` has them.
            step: As `whole` has it.
            asked: As `whole` has it.

        Returns:
            What is to be told of each, and what the later rounds need.

        Raises:
            SimulatorFailure: As `whole`.
        """
        self._take(weights)
        seen = self._seen(step, asked)
        told = [self._told(step, piece, one) for piece, one in zip(asked, seen, strict=True)]
        return told, Kept([_plain(one) for one in seen])

    def measure(
        self, weights: Shared, step: int, asked: Sequence[int], known: Known
    ) -> list[Measured]:
        """The round between, where corrections act inside: moments of what the fit leaves over.

        Args:
            weights: As `whole` has them.
            step: As `whole` has it.
            asked: As in the first round.
            known: What followed from it.

        Returns:
            The moments of each piece.

        Raises:
            SimulatorFailure: As `whole`.
        """
        self._take(weights)
        found = self._found(step, asked, known.kept)
        return [self._measured(self._effects(step, p, one, known.share)) for p, one in found]

    def write(self, weights: Shared, step: int, asked: Sequence[int], known: Known) -> list[Array]:
        """The last round of `Windowed`: the gradient.

        Args:
            weights: As `whole` has them.
            step: As `whole` has it.
            asked: As in the first round.
            known: What followed from the rounds before.

        Returns:
            The gradient of each piece, ``(d,)``.

        Raises:
            SimulatorFailure: As `whole`.
        """
        self._take(weights)
        share, network = known.share, self._loop.corrector.network
        windows = {lag: torch.tensor(window) for lag, window in known.windows.items()}
        gradients = []
        for piece, seen in self._found(step, asked, known.kept):
            network.zero_grad()
            effects = self._effects(step, piece, seen, share)
            self._windowed.write(self._loop, seen, effects, share=share, windows=windows)
            gradients.append(read_gradient(self._weights).numpy())
        return gradients

    @property
    def _windowed(self) -> Windowed:
        if not isinstance(self._method, Windowed):
            raise TypeError(
                f"method must be Windowed to be asked in rounds, got {type(self._method).__name__}"
            )
        return self._method

    def _take(self, weights: Shared) -> None:
        """Loads weights, once for all calls of an update."""
        if weights.number != self._at:
            state = {name: torch.tensor(value) for name, value in weights.value().items()}
            self._loop.corrector.load_state_dict(state)
            self._at = weights.number

    def _window(self, step: int, piece: int) -> Windows:
        return pieces(self._trajectories, self._recipe, step, only=(piece,))

    def _whole(self, step: int, piece: int) -> tuple[float, Array]:
        self._loop.corrector.network.zero_grad()
        with _placed(step, piece):
            seen = self._method(self._loop, self._objective, self._window(step, piece), step=step)
        return seen.loss, read_gradient(self._weights).numpy()

    def _seen(self, step: int, asked: Sequence[int]) -> list[Seen]:
        """Runs pieces side by side; if that fails, one by one, to tell which it was."""
        windows = [self._window(step, piece) for piece in asked]
        signs = [self._signs(step, piece) for piece in asked]
        alone = len(asked) == 1
        try:
            with _placed(step, asked[0]) if alone else nullcontext():
                return self._windowed.look(self._loop, self._objective, windows, signs)
        except SimulatorFailure:
            if alone:
                raise
            return [seen for piece in asked for seen in self._seen(step, [piece])]

    def _signs(self, step: int, piece: int) -> Tensor:
        """The signs of a piece: those of the whole minibatch are drawn, once an update."""
        if self._drawn is None or self._drawn[0] != step:
            recipe = self._recipe
            fields = torch.empty(recipe.batch, *self._loop.simulator.shape, dtype=torch.float64)
            drawn = self._windowed.signs(self._loop, fields, steps=recipe.unrolled, step=step)
            self._drawn = step, drawn
        return self._drawn[1][:, :, piece : piece + 1]

    def _told(self, step: int, piece: int, seen: Seen) -> Looked:
        if not self._loop.inside:
            return Looked(seen.loss, None, self._measured(self._effects(step, piece, seen, 1.0)))
        own = self._own(step, piece)
        return Looked(seen.loss, self._windowed.credit.sums(seen.changes, own), None)

    def _found(self, step: int, asked: Sequence[int], kept: Kept) -> list[tuple[int, Seen]]:
        """What an earlier round saw, or what it would see again."""
        found = kept.value()
        if found is None:
            return list(zip(asked, self._seen(step, asked), strict=True))
        return [(piece, _seen(one)) for piece, one in zip(asked, found, strict=True)]

    def _own(self, step: int, piece: int) -> Tensor:
        grid = tuple(self._loop.simulator.shape[1:])
        return self._windowed.own(self._loop, self._signs(step, piece), grid)

    def _effects(self, step: int, piece: int, seen: Seen, share: float) -> Effects:
        own = self._own(step, piece)
        return self._windowed.effects(seen, self._signs(step, piece), share * own)

    def _measured(self, effects: Effects) -> Measured:
        powers = self._windowed.powers(self._loop, effects)
        return Measured(effects.unit, {lag: now.numpy() for lag, now in powers.items()})


def _plain(seen: Seen) -> tuple[Any, ...]:
    return seen.features.numpy(), seen.changes.numpy(), seen.cotangents.numpy(), seen.loss


def _seen(plain: tuple[Any, ...]) -> Seen:
    features, changes, cotangents, loss = plain
    return Seen(torch.tensor(features), torch.tensor(changes), torch.tensor(cotangents), loss)


@contextmanager
def _placed(step: int, piece: int) -> Iterator[None]:
    """Tells of a failure where in the training it was: a worker's own count says little of that."""
    try:
        yield
    except SimulatorFailure as error:
        raise SimulatorFailure(
            f"update {step + 1}, piece {piece + 1}: {error}",
            step=error.step,
            fields=error.fields,
            native=error.native,
        ) from error
