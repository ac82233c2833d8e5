r"""Votes of a classifier under Gaussian noise, counted in full calls that many images share.

A *ballot* is one image's wish for votes: how many more it wants before it looks at them. The loop
fills each call of ``rows`` rows with noisy copies of as many ballots as that takes (``tallies``), has
it answered and counted, writes the counts to the log, and only then hands them to their ballots,
which may want more, or be over.

A ballot looks after exactly as many votes as it wished for. So what comes out for an image does
not depend on ``rows``, on the order or on the company of other images, unless a budget ends it.

With a budget, all images advance together, so that each has something when it ends; without, just
as many as fill a call.

**Workers.** A classifier that workers hold (`Spread`) has several calls under way at a time. A
ballot may be in several of them, with different votes. Answers are applied in the order of the
calls, and how many calls are formed ahead does not follow the clock, so that calls, votes and the
log's order are the same in every run, and for 1, 2 and 4 workers. When the budget ends, or the
classifier fails, no more is asked; what is under way was paid for, so it is waited for and
written, as far as the votes before it are there.
"""

__all__ = ["Ballot", "Count", "Polling", "poll"]

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier, ClassifierError
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.smoothing.tallies import Counter, Here, Stretch, Tally, Teller, worth_threads
from deepzero_apps.smoothing.vote_log import Entry, VoteLog
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter


class Ballot(Protocol):
    """One image's wish for votes."""

    index: int
    """The image."""

    phase: int
    """The stream of noise that its votes are drawn from now."""

    seen: int
    """Votes drawn in this phase."""

    wanted: int
    """Votes to be drawn before the next look; 0 where it is over."""

    def add(self, entry: Entry) -> None:
        """Takes votes, at most ``wanted`` of them, of this phase and from ``seen`` on."""


@dataclass
class Count:
    """The simplest ballot: a fixed number of votes of one phase.

    Args:
        index: The image.
        phase: The stream of noise.
        wanted: How many votes.
        counts: Votes by class so far.
        lost: Votes without an answer so far.
    """

    index: int
    phase: int
    wanted: int
    counts: np.ndarray
    seen: int = 0
    lost: int = 0
    seconds: float = 0.0

    def add(self, entry: Entry) -> None:
        """Takes votes."""
        for label, votes in entry.counts.items():
            self.counts[label] += votes
        self.lost += entry.lost
        self.seen += entry.rows
        self.wanted -= entry.rows
        self.seconds += entry.seconds


@dataclass(frozen=True)
class Polling:
    """Where votes come from and where they go.

    Args:
        classifier: The black box; gets float32 batches on ``device``.
        images: Images of shape ``(n, channel, height, width)``, floating.
        settings: Noise and seed.
        rows: Rows a call, at least 1.
        device: Where noise is drawn and votes are counted.
        meter: Charged one query a row; the log's `Ledger` where there is a log.
        log: Where votes are written before they count; nowhere by default.
        together: Whether all ballots advance together.
    """

    classifier: Classifier
    images: Tensor
    settings: Settings
    rows: int = 1024
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    meter: Meter = field(default_factory=Meter)
    log: VoteLog | None = None
    together: bool = False


@dataclass(eq=False)
class _Seat:
    """A ballot at work, and how many of the votes it wants are under way."""

    ballot: Ballot
    asked: int = 0

    @property
    def open(self) -> int:
        """Votes that it wants and that were not asked for yet."""
        return self.ballot.wanted - self.asked


@dataclass(frozen=True)
class _Piece:
    """Rows of a call that belong to one ballot."""

    seat: _Seat
    stretch: Stretch


def poll(polling: Polling, ballots: Iterable[Ballot]) -> Iterator[Ballot]:
    """Asks until every ballot is over, or the budget is spent to the query.

    Args:
        polling: Where votes come from and where they go.
        ballots: The ballots; read lazily unless all advance together.

    Yields:
        Each ballot that is over, as soon as it is. The others keep what they have.

    Raises:
        ClassifierError: If the classifier raises or its answer cannot be used.
        VoteLogError: If votes cannot be written.
    """
    counter = _counter(polling)
    try:
        yield from _Room(polling, ballots, counter).over()
    finally:
        counter.close()


def _counter(polling: Polling) -> Counter:
    classifier, images = polling.classifier, polling.images
    if isinstance(classifier, Spread):
        return classifier.counter(
            images,
            polling.settings,
            rows=polling.rows,
            meter=polling.meter,
            device=polling.device,
        )
    teller = Teller(classifier, images, polling.settings, device=polling.device)
    return Here(teller, polling.meter)


class _Room:
    """Where ballots sit until they are over."""

    def __init__(self, polling: Polling, ballots: Iterable[Ballot], counter: Counter) -> None:
        self._polling, self._waiting, self._counter = polling, iter(ballots), counter
        self._seats: dict[_Seat, None] = {}  # in the order in which they are served
        self._under_way: deque[list[_Piece]] = deque()
        self._ended: list[ClassifierError | BudgetExhausted] = []
        # each thread forms copies of another ballot
        threads = worth_threads(polling.rows, polling.images.shape[1:])
        self._share = -(-polling.rows // threads)

    def over(self) -> Iterator[Ballot]:
        """Passes on the ballots that are over."""
        while True:
            yield from self._ask()
            if not self._under_way:
                break
            yield from self._served()
        for error in self._ended:
            if isinstance(error, ClassifierError):
                raise error

    def _ask(self) -> Iterator[Ballot]:
        """Forms calls until enough are under way, or no more can be formed."""
        while not self._ended and len(self._under_way) < self._counter.ahead:
            yield from self._admitted()
            rows = int(min(self._polling.rows, self._counter.affordable()))
            pieces = self._pieces(rows)
            full = sum(piece.stretch.rows for piece in pieces) == rows
            if not pieces or not (full or len(self._under_way) < self._counter.busy):
                return
            self._seat_behind(pieces)
            self._counter.put([piece.stretch for piece in pieces])
            self._under_way.append(pieces)

    def _admitted(self) -> Iterator[Ballot]:
        """Seats ballots until they fill a call; passes on those that are over already."""
        everybody = self._polling.together
        open_rows = 0 if everybody else sum(min(self._share, s.open) for s in self._seats)
        while everybody or open_rows < self._polling.rows:
            ballot = next(self._waiting, None)
            if ballot is None:
                return
            if ballot.wanted == 0:
                yield ballot
                continue
            self._seats[_Seat(ballot)] = None
            open_rows += min(self._share, ballot.wanted)

    def _pieces(self, rows: int) -> list[_Piece]:
        """Shares the rows of a call among the ballots, first come first served."""
        pieces: list[_Piece] = []
        for seat in self._seats:
            taken = min(rows, self._share, seat.open)
            if taken:
                start = seat.ballot.seen + seat.asked
                stretch = Stretch(seat.ballot.index, seat.ballot.phase, start, taken)
                pieces.append(_Piece(seat, stretch))
            rows -= taken
            if rows == 0:
                break
        return pieces

    def _seat_behind(self, pieces: Sequence[_Piece]) -> None:
        """Notes what is under way; if all advance together, those who are served sit down last."""
        for piece in pieces:
            piece.seat.asked += piece.stretch.rows
            if self._polling.together:
                self._seats[piece.seat] = self._seats.pop(piece.seat)

    def _served(self) -> Iterator[Ballot]:
        """Takes the oldest call's answers: writes them, and hands them to their ballots."""
        pieces = self._under_way.popleft()
        try:
            tally = self._counter.take()
        except (ClassifierError, BudgetExhausted) as error:
            self._ended.append(error)  # of repetitions that were refused, or an outage
            return
        usable = self._written(pieces, tally)
        for piece, entry in usable:
            piece.seat.asked -= entry.rows
            piece.seat.ballot.add(entry)
        for piece, _ in usable:
            if not piece.seat.ballot.wanted:
                del self._seats[piece.seat]
                self._counter.forget(piece.stretch.index)
                yield piece.seat.ballot

    def _written(self, pieces: Sequence[_Piece], tally: Tally) -> list[tuple[_Piece, Entry]]:
        """Writes the votes that follow those that their ballots have: all, unless a call failed."""
        usable = []
        for piece, entry in zip(pieces, _entries(pieces, tally), strict=True):
            ballot = piece.seat.ballot
            if (entry.phase, entry.start) == (ballot.phase, ballot.seen):
                usable.append((piece, entry))
        if usable and self._polling.log is not None:
            entries = [entry for _, entry in usable]
            useless = sum(p.stretch.rows for p in pieces) - sum(entry.rows for entry in entries)
            self._polling.log.append(entries, spent=tally.spent - useless)
        return usable


def _entries(pieces: Sequence[_Piece], tally: Tally) -> list[Entry]:
    row_seconds = tally.seconds / sum(piece.stretch.rows for piece in pieces)
    return [
        Entry(
            piece.stretch.index,
            piece.stretch.phase,
            piece.stretch.start,
            {int(label): int(votes[label + 1]) for label in votes[1:].nonzero()[0]},
            int(votes[0]),
            row_seconds * piece.stretch.rows,
        )
        for piece, votes in zip(pieces, tally.counts, strict=True)
    ]
