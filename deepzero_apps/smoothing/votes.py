r"""Votes of a classifier under Gaussian noise, counted in full calls that many images share.

A *ballot* is one image's wish for votes: how many more it wants before it looks at them. The loop
fills each call of ``rows`` rows with noisy copies of as many ballots as that takes, counts the
answers where they arise (one small transfer a call), writes them to the log, and only then hands
them to their ballots, which may want more, or be over. Copies are formed in place, in one buffer
that all calls share.

A ballot looks after exactly as many votes as it wished for. So what comes out for an image does
not depend on ``rows``, on the order or on the company of other images, unless a budget ends it.

With a budget, all images advance together, so that each has something when it ends; without, just
as many as fill a call.
"""

__all__ = ["Ballot", "Count", "Polling", "poll"]

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier, labels_of
from deepzero_apps.smoothing.blackbox import ask
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.noise import NoisyCopies
from deepzero_apps.smoothing.vote_log import Entry, VoteLog
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

_WORTH_THREADS = 2**20
"""Random numbers in a call from which on several threads make them."""


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


@dataclass
class _Seat:
    """A ballot at work with its stream of copies."""

    ballot: Ballot
    copies: NoisyCopies | None = None
    phase: int = -1


@dataclass(frozen=True)
class _Piece:
    """Rows of a call that belong to one ballot."""

    seat: _Seat
    rows: int


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
    waiting = iter(ballots)
    active: deque[_Seat] = deque()
    buffer = torch.empty(0)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        while True:
            yield from _admit(active, waiting, polling)
            rows = int(min(polling.rows, polling.meter.remaining))
            pieces = _pieces(active, rows, _share(polling))
            total = sum(piece.rows for piece in pieces)
            if total == 0:
                return
            if len(buffer) < total:
                shape = (total, *polling.images.shape[1:])
                buffer = torch.empty(shape, dtype=torch.float32, device=polling.device)
            try:
                _serve(buffer[:total], pieces, polling, pool)
            except BudgetExhausted:  # a service's retries have spent what was left
                return
            yield from _rise(active, pieces, together=polling.together)


def _serve(
    rows: Tensor, pieces: Sequence[_Piece], polling: Polling, pool: ThreadPoolExecutor
) -> None:
    """Makes one call: forms the copies, asks, writes, and hands the votes to their ballots."""
    start = time.perf_counter()
    _fill(rows, pieces, polling, pool)
    labels, spent = _answers(rows, polling)
    entries = _entries(labels, pieces, classes=polling.classifier.classes, start=start)
    if polling.log is not None:
        polling.log.append(entries, spent=spent)
    for piece, entry in zip(pieces, entries, strict=True):
        piece.seat.ballot.add(entry)


def _rise(active: deque[_Seat], pieces: Sequence[_Piece], *, together: bool) -> Iterator[Ballot]:
    """Takes away the ballots that are over; if all advance together, those just served wait."""
    served = [active.popleft() for _ in pieces]
    going_on = [seat for seat in served if seat.ballot.wanted]
    if together:
        active.extend(going_on)
    else:
        active.extendleft(reversed(going_on))
    yield from (seat.ballot for seat in served if not seat.ballot.wanted)


def _admit(active: deque[_Seat], waiting: Iterator[Ballot], polling: Polling) -> Iterator[Ballot]:
    """Seats ballots until they fill a call; passes on those that are over already."""
    most = _share(polling)
    wanted = sum(min(most, seat.ballot.wanted) for seat in active)
    while polling.together or wanted < polling.rows:
        ballot = next(waiting, None)
        if ballot is None:
            return
        if ballot.wanted == 0:
            yield ballot
            continue
        active.append(_Seat(ballot))
        wanted += min(most, ballot.wanted)


def _pieces(active: Iterable[_Seat], rows: int, most: int) -> list[_Piece]:
    """Shares the rows of a call among the ballots, first come first served."""
    pieces: list[_Piece] = []
    for seat in active:
        if rows == 0:
            break
        taken = min(rows, most, seat.ballot.wanted)
        pieces.append(_Piece(seat, taken))
        rows -= taken
    return pieces


def _share(polling: Polling) -> int:
    """The most rows of a call that one ballot takes: each thread forms copies of another one."""
    return -(-polling.rows // _threads(polling))


def _threads(polling: Polling) -> int:
    """How many threads form copies: one, where a call has few numbers."""
    numbers = polling.rows * polling.images[0].numel()
    return torch.get_num_threads() if numbers >= _WORTH_THREADS else 1


def _fill(
    rows: Tensor, pieces: Sequence[_Piece], polling: Polling, pool: ThreadPoolExecutor
) -> None:
    def write(part: Tensor, seat: _Seat) -> None:
        _copies(seat, polling).write(part)

    parts = rows.split([piece.rows for piece in pieces])
    seats = [piece.seat for piece in pieces]
    if len(pieces) == 1 or _threads(polling) == 1:
        for part, seat in zip(parts, seats, strict=True):
            write(part, seat)
    else:
        list(pool.map(write, parts, seats))


def _copies(seat: _Seat, polling: Polling) -> NoisyCopies:
    ballot, settings = seat.ballot, polling.settings
    if seat.copies is None or seat.phase != ballot.phase:
        seat.phase = ballot.phase
        seat.copies = NoisyCopies(
            polling.images[ballot.index],
            sigma=settings.sigma,
            seed=settings.seed,
            index=ballot.index,
            phase=ballot.phase,
            noise=settings.noise,
            start=ballot.seen,
            device=polling.device,
        )
    return seat.copies


def _answers(rows: Tensor, polling: Polling) -> tuple[Tensor, int]:
    """Charges and asks one call; gives its labels and the queries that they took."""
    before = polling.meter.spent
    polling.meter.charge(len(rows))
    labels = labels_of(ask(polling.classifier, rows))
    return labels, polling.meter.spent - before


def _entries(
    labels: Tensor, pieces: Sequence[_Piece], *, classes: int, start: float
) -> list[Entry]:
    """Counts the answers of one call."""
    counts = _counts(labels, [piece.rows for piece in pieces], classes)
    row_seconds = (time.perf_counter() - start) / len(labels)
    return [
        Entry(
            piece.seat.ballot.index,
            piece.seat.ballot.phase,
            piece.seat.ballot.seen,
            {int(label): int(votes[label + 1]) for label in votes[1:].nonzero()[0]},
            int(votes[0]),
            row_seconds * piece.rows,
        )
        for piece, votes in zip(pieces, counts, strict=True)
    ]


def _counts(labels: Tensor, sizes: Sequence[int], classes: int) -> np.ndarray:
    """Counts the votes of each piece: ``(pieces, 1 + classes)``, those without answer first."""
    lengths = torch.tensor(sizes, device=labels.device)
    owners = torch.arange(len(sizes), device=labels.device).repeat_interleave(
        lengths, output_size=len(labels)
    )
    cells = owners * (classes + 1) + labels + 1
    counts = torch.bincount(cells, minlength=len(sizes) * (classes + 1))
    return counts.view(len(sizes), classes + 1).cpu().numpy()
