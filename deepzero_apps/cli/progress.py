"""Progress bars with rate, remaining time and a few live numbers; silent without a terminal."""

__all__ = ["tracked"]

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")
        for item in items:
            yield item
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(
                task,
                advance=1,
                rate=f"{speed:.1f}/s" if speed else "",
                note=note(item) if note else "",
            )
