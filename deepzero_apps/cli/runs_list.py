"""``deepzero-apps runs list``: the runs below folders, with their state and main result."""

__all__ = ["RunsListSettings", "run"]

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepzero_apps.cli.answers import write_json
from deepzero_apps.cli.found_runs import FoundRun, State, runs_below
from deepzero_apps.cli.settings import Misuse, PlainSettings
from deepzero_apps.foreign.text import printable

_USUAL = Path("runs")
_LARGE = 10**15  # nothing that was counted


class RunsListSettings(PlainSettings):
    """Lists runs: of which command, in which state, what they cost and what came out."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = (_USUAL,)
    """Where to look, at any depth."""

    sort: Literal["age", "name", "kind", "queries", "seconds"] = "age"
    """What comes first: the newest, the first by name or kind, the most queries or seconds."""

    kind: str | None = None
    """Only runs of this command, such as train or "compare defence"."""

    state: State | None = None
    """Only runs in this state."""


def run(settings: RunsListSettings) -> int:
    """Finds runs and prints the table."""
    absent = [folder for folder in settings.folders if not folder.is_dir()]
    if absent and settings.folders != (_USUAL,):
        raise Misuse(f"FOLDERS must be folders, got {absent[0]}")
    closed = [folder for folder in settings.folders if not _open(folder)]
    if closed:
        raise Misuse(f"FOLDERS must be folders that you may read, got {closed[0]}")
    found = [one for one in runs_below(settings.folders) if _wanted(one, settings)]
    found.sort(key=_ORDERS[settings.sort])
    if found:
        show(runs_table(found))
    else:
        places = ", ".join(map(str, settings.folders))
        Console(soft_wrap=True).print(f"no runs in {places}", markup=False, highlight=False)
    write_json(settings.json_file, {"runs": [one.document() for one in found]})
    return 0


def _open(folder: Path) -> bool:
    return not folder.exists() or os.access(folder, os.R_OK | os.X_OK)


def runs_table(runs: Sequence[FoundRun]) -> Table:
    """Lays runs out, a line each.

    Args:
        runs: The runs.

    Returns:
        A table to be printed by a rich console.
    """
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in ("run", "kind", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "queries", "seconds", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result")
    for one in runs:
        table.add_row(
            Text(printable(str(one.path))),
            Text(printable(one.kind) or "-"),
            Text(one.state, style=_STYLES[one.state]),
            counted(one.steps),
            counted(one.queries),
            counted(one.seconds),
            _age(one.changed),
            Text(printable(one.outcome)),
        )
    return table


def show(table: Table) -> None:
    """Prints a table at its own width: a narrow terminal wraps lines, but nothing is cut."""
    width = Console(width=10_000).measure(table).maximum
    Console(width=max(Console().width, width)).print(table)


def counted(number: float | None) -> str:
    """Writes a count, or a dash where it is not known."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if abs(number) < _LARGE else f"{number:.3g}"


def _wanted(one: FoundRun, settings: RunsListSettings) -> bool:
    return settings.kind in (None, one.kind) and settings.state in (None, one.state)


def _age(changed: float) -> str:
    seconds = max(0.0, time.time() - changed)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


_STYLES = {"running": "green", "finished": "", "interrupted": "yellow", "damaged": "bold red"}
_ORDERS: dict[str, Callable[[FoundRun], tuple[object, ...]]] = {
    "age": lambda one: (-one.changed, str(one.path)),
    "name": lambda one: (str(one.path),),
    "kind": lambda one: (one.kind, str(one.path)),
    "queries": lambda one: (-(one.queries or 0), str(one.path)),
    "seconds": lambda one: (-(one.seconds or 0), str(one.path)),
}
