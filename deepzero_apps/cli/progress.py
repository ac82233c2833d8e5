"""Progress bars with rate, remaining time and a few live numbers; silent without a terminal."""

__all__ = ["lines", "tracked", "watched"]

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deepzero_apps.cli.logs import console

T = TypeVar("T")


def tracked(
    items: Iterable[T],
    title: str,
    *,
    total: int,
    done: int = 0,
    note: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Passes items on while a bar on standard error counts them.

    Args:
        items: What is done, one by one.
        title: What the bar is called.
        total: The number of items in all, those done before included.
        done: The number of items done before (a resumed run).
        note: A few words on the newest item.

    Yields:
        The items.
    """
    with _bar() as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")
        for item in items:
            yield item
            bar.update(task, advance=1, rate=_rate(bar), note=note(item) if note else "")


@contextmanager
def watched(count: Callable[[], int], title: str, *, total: int) -> Iterator[None]:
    """Shows the progress of work in other processes, by looking once a second.

    Args:
        count: Says how many items are done.
        title: What the bar is called.
        total: The number of items in all.
    """
    over = Event()
    with _bar() as bar:
        task = bar.add_task(title, total=total, completed=count(), rate="", note="")

        def look() -> None:
            while not over.wait(1.0):
                bar.update(task, completed=count(), rate=_rate(bar))

        looking = Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
            bar.update(task, completed=count())


def lines(files: Iterable[Path]) -> int:
    """Counts the finished lines of those files that exist: what other processes have written."""
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def _bar() -> Progress:
    shared = console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=shared,
        disable=not shared.is_terminal,
    )


def _rate(bar: Progress) -> str:
    speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
    return f"{speed:.1f}/s" if speed else ""
