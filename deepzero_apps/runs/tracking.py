"""Watchers of a run: what its folder is told, trackers such as TensorBoard are told too.

A run's folder is the truth, and a tracker a copy for the eye. So a tracker is handed, at the
beginning, the rows that the folder holds and brings itself to them: one that was added late, or
lost its last seconds to a ``kill -9``, lacks nothing, and nothing is there twice. And a tracker
that fails (a server that is gone, a full disk) is dropped with a warning; the run goes on.
"""

__all__ = ["Row", "Tracker", "Trackers", "Untracked", "flattened", "numbers"]

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

_LOGGER = logging.getLogger(__name__)

_CREDENTIALS = re.compile(r"://[^\s/@]+@")  # of a server's address, which its errors repeat

Row: TypeAlias = Mapping[str, Any]
"""One row of metrics, of JSON's types, by custom with ``step``."""


class Tracker(Protocol):
    """Something that shows a run while it goes on."""

    def begin(self, rows: Sequence[Row], /) -> None:
        """Starts, or takes up the run where its folder is.

        Args:
            rows: All rows that the folder holds; those of later steps will come again.
        """
        ...

    def log(self, row: Row, /) -> None:
        """Takes one row of metrics."""
        ...

    def flush(self) -> None:
        """Hands on what it holds back; called before every checkpoint."""
        ...

    def finish(self, result: Row, /) -> None:
        """Takes the result; figures lie in the folder by now."""
        ...

    def close(self) -> None:
        """Ends, after ``finish`` or after an interruption."""
        ...


class Untracked:
    """Takes everything and shows nothing."""

    def begin(self, rows: Sequence[Row], /) -> None:
        """Does nothing."""

    def log(self, row: Row, /) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def finish(self, result: Row, /) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Trackers:
    """Several trackers as one that never fails; they are made when the run begins.

    Args:
        makers: What makes each tracker, by its name.

    Warns:
        UserWarning: Once for each tracker that fails, at any call.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]]) -> None:
        self._makers = dict(makers)
        self._trackers: dict[str, Tracker] = {}
        self._begun = False

    def begin(self, rows: Sequence[Row], /) -> None:
        """Makes the trackers and starts them."""
        self._begun = True
        for name, make in self._makers.items():
            self._attempt(name, partial(self._start, name, make, rows))

    def log(self, row: Row, /) -> None:
        """Passes a row on."""
        self._each(lambda tracker: tracker.log(row))

    def flush(self) -> None:
        """Lets all hand on what they hold back."""
        self._each(lambda tracker: tracker.flush(), start=False)

    def finish(self, result: Row, /) -> None:
        """Passes the result on."""
        self._each(lambda tracker: tracker.finish(result))

    def close(self) -> None:
        """Ends all; those that never began are not made."""
        self._each(lambda tracker: tracker.close(), start=False)
        self._trackers = {}

    def _start(self, name: str, make: Callable[[], Tracker], rows: Sequence[Row]) -> None:
        tracker = make()
        tracker.begin(rows)
        self._trackers[name] = tracker
        _LOGGER.info("%s has taken up the run with %d rows", name, len(rows))

    def _each(self, do: Callable[[Tracker], None], *, start: bool = True) -> None:
        if start and not self._begun:
            self.begin(())
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, partial(do, tracker))

    def _attempt(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the run goes on
            self._trackers.pop(name, None)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            reason = _CREDENTIALS.sub("://", reason)
            warnings.warn(
                f"{name} has failed and is told no more in this process: {reason}; the run goes "
                "on, and metrics.jsonl has everything",
                stacklevel=2,
            )


def numbers(row: Row) -> dict[str, float]:
    """Picks what can be drawn: all numbers of a row that are finite, but for its step."""
    return {
        name: float(value) for name, value in row.items() if name != "step" and _is_number(value)
    }


def flattened(tree: Row, *, lists: bool = False) -> dict[str, Any]:
    """Turns nested settings or results into plain fields.

    Args:
        tree: Dicts of JSON's types.
        lists: Whether lists are taken apart too; else each is one field of text.

    Returns:
        Plain values by names such as ``votes.n`` and ``rows.0.acr``.
    """
    return dict(_leaves(tree, "", lists))


def _leaves(value: object, name: str, lists: bool) -> Iterator[tuple[str, Any]]:
    inner: Iterator[tuple[object, object]] | None = None
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, list | tuple) and lists:
        inner = iter(enumerate(value))
    if inner is None:
        yield name, json.dumps(value) if isinstance(value, list | tuple) else value
        return
    for key, item in inner:
        yield from _leaves(item, f"{name}.{key}" if name else str(key), lists)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False
