r"""A classifier that workers hold: images and votes spread over processes and machines.

`Spread` stands before workers that hold a copy of one classifier each (`Booth`), and is itself a
classifier. Images that it is asked for are cut into pieces whose number and size follow from the
number of images alone, so that answers are the same to the bit for any number of workers. For
votes it does better (`votes`): images travel once, then only the places of votes in the streams of
noise go out, and counts come back.

**Money.** The budget, and the log that every query is noted in before it is sent, stay with the
process that asks. A call is charged when it is handed over, at most two calls a worker ahead. A
call whose worker died is asked again, and charged again, with the most that it may have repeated.
What a service repeats is charged when its call comes back; with a budget, the most that a call may
repeat is charged beforehand, and what it leaves pays for later calls. So the budget holds, whatever
is killed. What is left of such an advance at the end of a run stays charged: at most the repetitions
of two calls a worker.

**A run that is killed itself** asks again, when it goes on, what was handed over and what waited for
an older call (answers are written in the order of the calls): at most `Voting.ahead` calls. Without
a budget, it does not know what the calls under way have repeated.

What training asks for is charged by its images: pieces of a dead worker are not charged again.
"""

__all__ = ["SEVERAL", "Spread", "Voting"]

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.adapters import Adapter, charge_retries, largest_call, most_repeats
from deepzero_apps.smoothing.answers import Classifier, ClassifierError, loses_votes
from deepzero_apps.smoothing.booth import Held, Noisy, Reply
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.tallies import Call, Tally
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

if TYPE_CHECKING:
    from deepzero_apps.workers import Pool, Shared

SEVERAL = 4
"""Up to so many workers calls are formed as for so many: votes do not depend on the number of
workers, even where a classifier rounds large batches in another way than small ones."""

_EACH = 2
"""Calls a worker that are charged and handed over: one at work, one that waits for it."""

_PIECES, _LEAST = 32, 8
"""The most pieces that images are cut into, and the fewest images of a piece."""


class Spread(Adapter):
    """A classifier that workers hold; see the module's docstring.

    Args:
        classifier: The black box. It travels by Ray's own means: networks, estimators and services as
            they are, what a module of the user's own defines by its name.
        pool: Workers that are `Booth`; they may not be asked for anything else at the same time.
        device: The type of device that networks run on and noise is drawn on there.

    Raises:
        ClassifierError: If it cannot travel.
    """

    def __init__(self, classifier: Classifier, pool: "Pool", *, device: str = "cpu") -> None:
        self.classes, self.may_lose = classifier.classes, loses_votes(classifier)
        self.largest_call, self.repeats = largest_call(classifier), most_repeats(classifier)
        behind = getattr(classifier, "name", type(classifier).__name__)
        self.name = f"{behind} held by workers"
        self._fingerprint = classifier.fingerprint
        self._pool, self._device = pool, torch.device(device).type
        self._held = self._shared(classifier)

    @property
    def fingerprint(self) -> str:
        """The classifier's own, when it was sent."""
        return self._fingerprint

    def counter(
        self, images: Tensor, settings: Settings, *, rows: int, meter: Meter, device: torch.device
    ) -> "Voting":
        """Opens the workers for votes.

        Args:
            images: Images of shape ``(n, channel, height, width)``, floating.
            settings: Noise and seed.
            rows: The most rows of a call.
            meter: What is charged, one query a row, and repetitions.
            device: Where noise is to be drawn.

        Raises:
            ValueError: If that is another type of device than the workers'.
        """
        if device.type != self._device:
            raise ValueError(
                f"device must be of the workers' type, {self._device}, got {device.type}"
            )
        pixels = self._pool.share(images.detach().to("cpu", torch.float32).numpy())
        subject = self._held, Noisy(pixels, settings)
        return Voting(self._pool, subject, rows=rows, repeats=self.repeats, meter=meter)

    def _shared(self, classifier: Classifier) -> "Shared":
        charged = classifier.meter if isinstance(classifier, Adapter) else None
        version = str(torch.__version__)
        held = Held(classifier, self._fingerprint, version, self._device, self._pool.count)
        try:
            charge_retries(classifier, None)  # a log is not for others to write to
            return self._pool.share(held)
        except Exception as error:  # whatever an object of the user's own does not allow
            raise ClassifierError(
                f"classifier must be one that can be sent to workers, got "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; "
                "define it by functions and classes of a module"
            ) from error
        finally:
            charge_retries(classifier, charged)

    def _answer(self, images: Tensor) -> Tensor:
        parts = images.cpu().split(max(_LEAST, -(-len(images) // _PIECES)))
        advance = self._advance(len(images) * self.repeats)
        shares = _shares(advance, [len(part) for part in parts])
        calls = [(self._held, part, most) for part, most in zip(parts, shares, strict=True)]
        replies: dict[int, Reply[Tensor]] = {}
        try:
            for place, reply in self._pool.ask("answer", calls):
                replies[place] = reply
        finally:
            self._settle(advance, sum(reply.repeats for reply in replies.values()))
        return torch.cat([_unwrapped(replies[place]) for place in range(len(calls))])

    def _advance(self, most: int) -> int | None:
        """Charges what may be repeated at most, where there is a budget."""
        if self.meter is None or self.meter.budget is None:
            return None
        advance = int(min(most, self.meter.remaining))
        self.meter.charge(advance)
        return advance

    def _settle(self, advance: int | None, repeats: int) -> None:
        if advance is not None and self.meter is not None:
            self.meter.spent -= advance - repeats
        elif self.meter is not None:
            self.meter.charge(repeats)


@dataclass(eq=False)
class _Order:
    """A call on its way.

    Args:
        call: The call.
        rows: How many rows it has.
        advance: How many repetitions were charged beforehand; None without a budget.
        reply: What came back.
    """

    call: Call
    rows: int
    advance: int | None = None
    reply: Reply[np.ndarray] | None = None


class Voting:
    """A `Counter` that has calls answered by workers; see the module's docstring.

    Args:
        pool: Workers that are `Booth`.
        subject: The first arguments of `Booth.count`: the classifier, and images under noise.
        rows: The most rows of a call.
        repeats: How often an image may be repeated at most.
        meter: What is charged.
    """

    def __init__(
        self,
        pool: "Pool",
        subject: tuple["Shared", Noisy],
        *,
        rows: int,
        repeats: int,
        meter: Meter,
    ) -> None:
        self.busy = max(SEVERAL, pool.count)
        self.ahead = _EACH * self.busy
        self._pool, self._subject, self._meter = pool, subject, meter
        self._rows, self._repeats = rows, repeats
        self._left = 0  # of advances: charged, and not spent
        self._orders: deque[_Order] = deque()  # that were not taken
        self._waiting: deque[_Order] = deque()  # that were not handed over
        self._under_way: dict[int, _Order] = {}
        pool.again = self._again

    def affordable(self) -> float:
        """Says how many rows may be put now.

        None, while calls are out whose advances may come back, if an advance would be cut short.
        """
        held_back = sum(order.rows for order in self._waiting) * (1 + self._repeats)
        left = self._remaining - held_back
        whole = self._rows * (1 + self._repeats)
        return 0 if self._repeats and self._orders and left < whole else left

    def put(self, call: Call) -> None:
        """Queues a call; it is charged when it is handed over."""
        order = _Order(call, sum(stretch.rows for stretch in call))
        self._orders.append(order)
        self._waiting.append(order)
        self._hand_over()

    def take(self) -> Tally:
        """Waits for the oldest call that was not taken."""
        order = self._orders.popleft()
        while order.reply is None:
            self._collect()
        if isinstance(order.reply.answer, np.ndarray):
            spent = order.rows + order.reply.repeats
            return Tally(order.reply.answer, order.reply.seconds, spent)
        self._cancel(order.reply.answer)
        raise order.reply.answer

    def forget(self, index: int) -> None:
        """Leaves it to the workers to forget."""

    def close(self) -> None:
        """Gives up what was not taken."""
        self._pool.again = None
        if self._under_way:
            self._pool.abandon()

    @property
    def _remaining(self) -> float:
        return self._meter.remaining + self._left

    def _hand_over(self) -> None:
        while self._waiting and len(self._under_way) < _EACH * self._pool.count:
            order = self._waiting.popleft()
            if self._meter.budget is not None:
                most = max(0.0, self._remaining - order.rows)
                order.advance = int(min(order.rows * self._repeats, most))
            try:
                self._pay(order)
            except BudgetExhausted as error:
                order.reply = Reply(error, 0, 0.0)
            else:
                number = self._pool.put("count", *self._subject, order.call, order.advance)
                self._under_way[number] = order

    def _pay(self, order: _Order) -> None:
        price = order.rows + (order.advance or 0)
        own = min(self._left, price)
        self._meter.charge(price - own)
        self._left -= own

    def _collect(self) -> None:
        """Waits for any answer, and settles what was repeated."""
        try:
            number, reply = self._pool.take()
        except BudgetExhausted:
            return  # `_again` has noted it
        order = self._under_way.pop(number)
        order.reply = reply
        if order.advance is None:
            self._meter.charge(reply.repeats)
        else:
            self._left += order.advance - reply.repeats
        if isinstance(reply.answer, ClassifierError | BudgetExhausted):
            self._cancel(reply.answer)
        self._hand_over()

    def _cancel(self, error: ClassifierError | BudgetExhausted) -> None:
        """Asks no more."""
        while self._waiting:
            self._waiting.popleft().reply = Reply(error, 0, 0.0)

    def _again(self, number: int) -> None:
        """Charges a call again: how much of it the worker that died has asked, nobody knows."""
        order = self._under_way[number]
        try:
            self._pay(order)
            if order.advance is None:  # so what it has repeated was not charged either
                self._meter.charge(order.rows * self._repeats)
        except BudgetExhausted as error:
            del self._under_way[number]
            order.reply = Reply(error, 0, 0.0)
            raise


def _shares(advance: int | None, rows: Sequence[int]) -> list[int | None]:
    """Divides an advance among pieces by their rows; what does not divide goes to nobody."""
    if advance is None:
        return [None for _ in rows]
    return [advance * mine // sum(rows) for mine in rows]


def _unwrapped(reply: Reply[Tensor]) -> Tensor:
    if isinstance(reply.answer, Tensor):
        return reply.answer
    raise reply.answer
