r"""A minibatch divided among workers: its gradient is the mean of those of its pieces.

A worker answers whole pieces (``piecework``); weights go out once an update, a gradient of the network's
size comes back for each piece, and the mean is taken here in the order of the pieces. So the bits
depend neither on the number of workers nor on which of them died. They differ in rounding from those
without workers, where the pieces of a minibatch share the passes of the network.

What `Windowed` learns from a minibatch needs more than sums: its rounds and what passes between them are

    | look    | out: weights, signs' seed      | back: loss, fit (inside) or largest response and powers
    | measure | out: share of the prediction   | back: largest response and powers (inside alone)
    | write   | out: windows                   | back: gradient

With responses in units of their largest, :math:`r_i` in piece i and r over all, the powers of the minibatch are

.. math::
    P = \frac1b \sum_i \Big(\frac{r_i}{r}\Big)^2 P_i                                  \tag{1}
"""

__all__ = ["Spread", "Workers", "state_of"]

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.piecework import Known, Looked, Measured
from deepzero_apps.correction.unrolled import Loop, Objective, Windows
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.workers import Shared
from deepzero_apps.zeroth_order.gradients import write_gradient
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Observation

Array = NDArray[Any]


class Workers(Protocol):
    """Who is asked: a `deepzero_apps.workers.Pool` of `Piecework`."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def share(self, value: object) -> Shared:
        """Puts a value where all can have it."""
        ...

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        """Makes calls; yields the place of each and its answer, as they come."""
        ...


@dataclass(frozen=True)
class Spread:
    """A method whose pieces workers answer; itself a `Method`.

    Every piece is charged before it is sent, as it would be without workers. What is done again,
    because a worker died, is not charged: the budget counts what the result is made of.

    Args:
        method: The method; what it learns (`Credit`) it learns here.
        workers: Who holds a `Piecework` of the same method.
        queries: The state-steps that a piece costs.
        charge: Charges state-steps.
    """

    method: Method
    workers: Workers
    queries_each: int
    charge: Callable[[int], None] = lambda _: None

    def __call__(
        self,
        loop: Loop,
        objective: Objective,  # noqa: ARG002 - the workers' own
        windows: Windows,
        *,
        step: int,
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows.

        Raises:
            BudgetExhausted: Before anything is sent, if the budget does not cover the minibatch.
            SimulatorFailure: If a worker's simulator fails; it names update and piece.
        """
        b = len(windows.fields)
        self.charge(b * self.queries_each)
        weights = self.workers.share(state_of(loop.corrector))
        update = _Update(self.workers, (weights, step), _groups(b, self.workers.count))
        if isinstance(self.method, Windowed):
            losses, gradients = _in_rounds(update, self.method.credit, inside=loop.inside)
        else:
            answers = update.pieces(update.ask("whole"))
            losses, gradients = map(list, zip(*answers, strict=True))
        mean = np.mean(np.stack(gradients), 0, dtype=np.float64)
        write_gradient(Weights(loop.corrector.network), torch.from_numpy(mean))
        return Observation(float(np.mean(losses)))

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return self.method.queries(steps)


def state_of(corrector: Corrector) -> dict[str, Array]:
    """Copies what a corrector answers by: weights and units."""
    return {name: x.detach().cpu().numpy().copy() for name, x in corrector.state_dict().items()}


@dataclass(frozen=True)
class _Update:
    """The calls of one update: pieces in groups, each asked with the update's own arguments."""

    workers: Workers
    opening: tuple[object, ...]
    groups: Sequence[Sequence[int]]

    def ask(self, method: str, each: Sequence[object] = ()) -> list[Any]:
        """Asks of every group, with an argument of its own if it has one; answers in order."""
        calls = [(*self.opening, group) for group in self.groups]
        if each:
            calls = [(*call, one) for call, one in zip(calls, each, strict=True)]
        answers: list[Any] = [None] * len(calls)
        for place, answer in self.workers.ask(method, calls):
            answers[place] = answer
        return answers

    @staticmethod
    def pieces(answers: Iterable[Iterable[Any]]) -> list[Any]:
        """Returns what was answered of each piece, in their order."""
        return [one for answer in answers for one in answer]


def _in_rounds(
    update: _Update, credit: Credit, *, inside: bool
) -> tuple[list[float], list[Array]]:
    answers = update.ask("look")
    looked: list[Looked] = update.pieces(told for told, _ in answers)
    known = [Known(kept, 1.0) for _, kept in answers]
    measured = [one.measured for one in looked if one.measured is not None]
    if inside:
        changed, predicted = np.array([one.sums for one in looked]).sum(0)
        share = credit.fit((float(changed), float(predicted)))
        known = [one._replace(share=share) for one in known]
        measured = update.pieces(update.ask("measure", known))
    powers = _folded(measured)
    credit.learn(powers)
    windows = {lag: window.numpy() for lag, window in credit.windows(powers).items()}
    known = [one._replace(windows=windows) for one in known]
    return [one.loss for one in looked], update.pieces(update.ask("write", known))


def _folded(measured: Sequence[Measured]) -> dict[int, Tensor]:
    """The powers of a minibatch from those of its pieces, eq. (1), in single precision."""
    unit = max(one.unit for one in measured)
    folded = {}
    for lag in measured[0].powers:
        weighed = [(one.unit / unit) ** 2 * one.powers[lag] for one in measured]
        folded[lag] = torch.from_numpy(np.mean(weighed, 0)).float()
    return folded


def _groups(pieces: int, most: int) -> list[list[int]]:
    """Neighboring pieces in groups of about one size, a call each: many rows a step are cheaper."""
    count = min(pieces, most)
    return [part.tolist() for part in np.array_split(np.arange(pieces), count)]
