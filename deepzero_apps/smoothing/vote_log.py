"""Votes on disk: every batch is appended before it counts, so that no query is asked twice.

``votes.jsonl`` has one JSON object a line:

- ``{"settings": ..., "source": ...}``: the first line, what all votes were drawn with;
- ``{"index": 4, "label": 7, "image": "..."}``: an image, before its first votes;
- ``{"ask": 1024}``: so many queries are about to be sent: noisy copies, retries, canaries;
- ``{"votes": [[index, phase, start, {class: count}, lost], ...], "spent": 1024, "seconds": 0.5}``:
  answers, counted; ``start`` is the place in the image's stream of noise, ``lost`` how many
  had none. ``spent`` of the queries asked since the last such line went into them.

What was asked is spent, whatever becomes of it. A process that is killed before it writes the
answers of a call leaves them to be asked again by the next one. A torn line at the end is cut off. The file alone says what is certified: certificates are made from it again.
"""

__all__ = ["Entry", "Ledger", "Pictured", "VoteLog", "VoteLogError", "Votes", "read_votes"]

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as validated

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Source
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
        content = file.read_bytes()
    except OSError as error:
        raise VoteLogError(f"cannot read {file}: {error.strerror}") from error
    found = _parse(content, file)[0]
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
        self._file: IO[bytes] | None = None
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
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self._file.flush()
        except OSError as error:
            self._close()  # the line may be torn: nothing must follow it
            raise VoteLogError(
                f"cannot write {self.path}: {error.strerror}; what was written before stays, "
                "and a later run continues from it"
            ) from error

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
            self._continue(self._file)
        except OSError as error:
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
        self._close()

    def _continue(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VoteLogError(f"{self.path} is in use by another process") from error
        file.seek(0)
        found, whole = _parse(file.read(), self.path)
        if found is not None:
            self._refuse_other(found)
            self.votes = found
        file.truncate(whole)
        if found is None:
            self._write(
                {"settings": asdict(self.votes.settings), "source": asdict(self.votes.source)}
            )

    def _refuse_other(self, found: Votes) -> None:
        expected = {**asdict(self.votes.settings), "classifier": self.votes.source.classifier}
        has = {**asdict(found.settings), "classifier": found.source.classifier}
        for name, value in expected.items():
            if has[name] != value:
                raise VoteLogError(
                    f"{self.path} has {name} {has[name]!r}, this run {value!r}; "
                    "choose another folder"
                )

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with file:
                os.fsync(file.fileno())


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


def _parse(content: bytes, file: Path) -> tuple[Votes | None, int]:
    """Gives what a file holds, and the number of bytes that it takes without a torn line."""
    whole = content.rfind(b"\n") + 1
    found: Votes | None = None
    asked = answered = 0
    for number, text in enumerate(content[:whole].splitlines(), 1):
        line = _line(text, file, number)
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
    return found, whole


def _line(text: bytes, file: Path, number: int) -> _Head | Pictured | _Ask | _Answers:
    try:
        return _LINE.validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"][1:]) or "JSON"
        raise VoteLogError(
            f"{file}, line {number} is no line of votes: {place}: {fault['msg']}"
        ) from error
    except (OverflowError, TypeError) as error:  # of a number that no settings can have
        raise VoteLogError(f"{file}, line {number} is no line of votes: {error}") from error


def _entries(line: _Answers) -> Iterable[Entry]:
    entries = [Entry(*vote) for vote in line.votes]
    rows = max(1, sum(entry.rows for entry in entries))
    for entry in entries:
        share = {"seconds": line.seconds * entry.rows / rows}
        yield Entry(**{f.name: getattr(entry, f.name) for f in fields(entry)} | share)
