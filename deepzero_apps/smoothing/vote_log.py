"""Votes on disk: every batch is appended before it counts, so that no query is asked twice.

``votes.jsonl`` has one JSON object a line:

- ``{"settings": ..., "source": ...}``: the first line, what all votes were drawn with;
- ``{"index": 4, "label": 7, "image": "..."}``: an image, before its first votes;
- ``{"ask": 1024}``: so many queries are about to be sent: noisy copies, retries, canaries;
- ``{"votes": [[index, phase, start, {class: count}, lost], ...], "spent": 1024, "seconds": 0.5}``:
  answers, counted; ``start`` is the place in the image's stream of noise, ``lost`` how many
  had none. ``spent`` of the queries asked since the last such line went into them.

What was asked is spent, whatever becomes of it. A process that is killed before it writes the
answers of a call leaves them to be asked again by the next one. A torn line at the end is cut off.
The file alone says what is certified: certificates are made from it again.
"""

__all__ = ["Entry", "Ledger", "Pictured", "VoteLog", "VoteLogError", "Votes", "read_votes"]

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
)
from pydantic.dataclasses import dataclass as validated

from deepzero_apps.files import InUse, LineFile, lines_of
from deepzero_apps.files.opening import read_plain
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Source, difference
from deepzero_apps.zeroth_order.oracle import Meter

NAME = "votes.jsonl"
_STRICT = ConfigDict(extra="forbid", strict=True)


class VoteLogError(Exception):
    """A log of votes cannot be read, written or continued."""


@dataclass(frozen=True)
class Entry:
    """Consecutive votes of one image in one phase.

    Args:
        index: The image.
        phase: 0 for selection, 1 for estimation.
        start: Place of the first in the image's stream of noise.
        counts: Votes by class, only those above zero.
        lost: Votes without an answer.
        seconds: Time spent on them.
    """

    index: int
    phase: int
    start: int
    counts: dict[int, int]
    lost: int = 0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """How many votes."""
        return sum(self.counts.values()) + self.lost


@validated(frozen=True, config=_STRICT)
class Pictured:
    """An image that has votes: its place, its class, its fingerprint."""

    index: int
    label: int
    image: str


@dataclass
class Votes:
    """What a log holds.

    Args:
        settings: What all votes were drawn with.
        source: What gave them.
        images: The images by index.
        entries: The votes, in the order in which they were drawn.
        spent: Queries asked in all.
        unanswered: Of these, the queries that went into no vote and no check.
    """

    settings: Settings
    source: Source
    images: dict[int, Pictured] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    spent: int = 0
    unanswered: int = 0

    @property
    def identity(self) -> tuple[Settings, str]:
        """The settings and the fingerprint of the classifier."""
        return self.settings, self.source.classifier

    def by_image(self) -> dict[int, list[Entry]]:
        """Returns the votes of each image that has some, in the order in which they were drawn."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.index, []).append(entry)
        return found


@validated(frozen=True, config=_STRICT)
class _Head:
    settings: Settings
    source: Source


@validated(frozen=True, config=_STRICT)
class _Ask:
    ask: NonNegativeInt


_Vote = tuple[
    NonNegativeInt,
    NonNegativeInt,
    NonNegativeInt,
    dict[NonNegativeInt, PositiveInt],
    NonNegativeInt,
]


@validated(frozen=True, config=_STRICT)
class _Answers:
    votes: list[_Vote]
    spent: NonNegativeInt
    seconds: NonNegativeFloat


def _kind(line: object) -> str | None:
    """Tells what a line is meant to be by the key that only such lines have."""
    keys = line if isinstance(line, dict) else {}
    return next((key for key in ("votes", "ask", "index", "settings") if key in keys), None)


_LINE: TypeAdapter[_Head | Pictured | _Ask | _Answers] = TypeAdapter(
    Annotated[
        Annotated[_Head, Tag("settings")]
        | Annotated[Pictured, Tag("index")]
        | Annotated[_Ask, Tag("ask")]
        | Annotated[_Answers, Tag("votes")],
        Discriminator(_kind),
    ]
)


def read_votes(path: Path | str) -> Votes:
    """Reads a log; a torn last line is left out.

    Args:
        path: The log's folder, or the file.

    Returns:
        What it holds.

    Raises:
        VoteLogError: If there is no log, or a whole line is damaged or does not belong.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        content = read_plain(file)
    except OSError as error:
        raise VoteLogError(f"cannot read {file}: {error.strerror}") from error
    found = _parse(content, file)
    if found is None:
        raise VoteLogError(f"{file} holds no votes")
    return found


class VoteLog:
    """A log that votes are appended to; a context manager.

    Opening makes the file or continues it, and holds a lock until it is closed. ``votes`` is what
    the file held when it was opened: what is appended later is not kept in memory.

    Args:
        folder: The folder.
        settings: What all votes in it are drawn with.
        source: What gives them; its versions may differ from those of the first process.

    Raises:
        VoteLogError: On entry, if the file holds votes of other settings or of another
            classifier, is damaged, in use or cannot be written.
    """

    def __init__(self, folder: Path | str, settings: Settings, source: Source) -> None:
        self.path = Path(folder) / NAME
        self.votes = Votes(settings, source)
        self._file: LineFile | None = None
        self._lock = Lock()

    def picture(self, pictured: Pictured) -> None:
        """Notes an image before its first votes.

        Raises:
            VoteLogError: If another image has its index.
        """
        known = self.votes.images.get(pictured.index)
        if known is None:
            self._write(asdict(pictured))
            self.votes.images[pictured.index] = pictured
        elif known != pictured:
            raise VoteLogError(
                f"{self.path} has another image at {pictured.index}: image {known.image[:12]} "
                f"of class {known.label}, this run {pictured.image[:12]} of class "
                f"{pictured.label}; choose another folder"
            )

    def ask(self, queries: int) -> None:
        """Notes that so many queries are about to be sent; see `Ledger`."""
        self._write({"ask": queries})

    def append(self, entries: Sequence[Entry], *, spent: int) -> None:
        """Notes the answers; only then they may count.

        Args:
            entries: The votes.
            spent: The queries, noted by `ask`, that they took, retries included.
        """
        rows = [[e.index, e.phase, e.start, e.counts, e.lost] for e in entries]
        seconds = sum(e.seconds for e in entries)
        self._write({"votes": rows, "spent": spent, "seconds": seconds})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            raise VoteLogError("log must be open; use `with VoteLog(...) as log:`")
        try:
            with self._lock:  # retries are noted by the threads that make them
                self._file.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        except OSError as error:
            with suppress(OSError):
                self._close()
            raise VoteLogError(
                f"cannot write {self.path}: {error.strerror}; what was written before stays, "
                "and a later run continues from it"
            ) from error

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = LineFile(self.path)
            self._continue(self._file)
        except InUse as error:
            raise VoteLogError(f"{self.path} is in use by another process") from error
        except OSError as error:
            with suppress(OSError):
                self._close()
            raise VoteLogError(f"cannot open {self.path}: {error}") from error
        except VoteLogError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._close()
        except OSError as fault:
            if error is None:
                raise VoteLogError(f"cannot write {self.path}: {fault}") from fault

    def _continue(self, file: LineFile) -> None:
        found = _parse(file.read(), self.path)
        if found is not None:
            self._refuse_other(found)
            self.votes = found
        file.cut()
        if found is None:
            self._write(
                {"settings": asdict(self.votes.settings), "source": asdict(self.votes.source)}
            )

    def _refuse_other(self, found: Votes) -> None:
        unequal = difference(found.identity, self.votes.identity)
        if unequal:
            name, has, wanted = unequal
            raise VoteLogError(
                f"{self.path} has {name} {has!r}, this run {wanted!r}; choose another folder"
            )

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class Ledger(Meter):
    """A meter that notes every charge in a log of votes before the query is sent.

    So a budget is hard to the query, whenever the process is killed.

    Args:
        log: The log, open; what it holds is spent already.
        budget: The most queries that may ever be spent; None for no limit.
    """

    def __init__(self, log: VoteLog, budget: int | None = None) -> None:
        super().__init__(budget, log.votes.spent)
        self._log = log

    def charge(self, queries: int) -> None:
        """Spends queries and notes them.

        Raises:
            BudgetExhausted: If fewer are left; nothing is spent then.
            VoteLogError: If they cannot be noted.
        """
        super().charge(queries)
        if queries:
            self._log.ask(queries)


def _parse(content: bytes, file: Path) -> Votes | None:
    """Gives what a file holds; None if it holds no whole line."""
    found: Votes | None = None
    asked = answered = 0
    lines = lines_of(content, _LINE, what="line of votes", file=file, kind=VoteLogError)
    for number, line in enumerate(lines, 1):
        if isinstance(line, _Head) != (found is None):
            raise VoteLogError(f"{file}, line {number}: settings must be the first line alone")
        if isinstance(line, _Head):
            found = Votes(line.settings, line.source)
        assert found is not None
        if isinstance(line, Pictured):
            found.images[line.index] = line
        elif isinstance(line, _Ask):
            asked += line.ask
        elif isinstance(line, _Answers):
            found.entries += _entries(line)
            answered += line.spent
    if found is not None:
        found.spent, found.unanswered = max(asked, answered), max(0, asked - answered)
    return found


def _entries(line: _Answers) -> Iterable[Entry]:
    entries = [Entry(*vote) for vote in line.votes]
    rows = max(1, sum(entry.rows for entry in entries))
    return (replace(entry, seconds=line.seconds * (entry.rows / rows)) for entry in entries)
