"""``deepzero-apps runs compare``: runs side by side, in what they were told and what came out.

The table has the settings in which they differ, then their cost and result; the figure lays their
curves over each other.
"""

__all__ = ["RunsCompareSettings", "run"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import field_validator
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepzero_apps.cli.answers import write_json
from deepzero_apps.cli.found_runs import FoundRun, found_run, short_names
from deepzero_apps.cli.runs_curves import draw_runs
from deepzero_apps.cli.runs_list import counted, show
from deepzero_apps.cli.settings import Misuse, PlainSettings
from deepzero_apps.foreign.text import printable
from deepzero_apps.runs.tracking import flattened


class RunsCompareSettings(PlainSettings):
    """Compares runs: a table of what differs and what came out, and a figure of their curves."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The folders of the runs, two or more."""

    out: Path = Path("runs/compare.png")
    """The figure, .png, .svg or .pdf; one that is there is replaced."""

    @field_validator("out")
    @classmethod
    def _drawable(cls, out: Path) -> Path:
        if out.suffix not in (".png", ".svg", ".pdf") or out.is_dir():
            raise ValueError(f"out must name a .png, .svg or .pdf file, got {out}")
        return out


def run(settings: RunsCompareSettings) -> int:
    """Prints the table and draws the figure."""
    found = [_found(path) for path in dict.fromkeys(settings.runs)]
    if len(found) < 2:
        raise Misuse(f"RUNS must be two folders at least, got {len(found)}")
    names = short_names([one.path for one in found])
    differing = _differing(found)
    show(_table(found, names, differing))
    console = Console(soft_wrap=True, highlight=False)
    drawn = draw_runs(dict(zip(names, found, strict=True)), settings.out)
    console.print(f"figure in {settings.out}" if drawn else "no curves to draw", markup=False)
    document = {
        "differing": differing,
        "runs": [one.document() for one in found],
        "figure": str(settings.out) if drawn else None,
    }
    write_json(settings.json_file, document)
    return 0


def _found(path: Path) -> FoundRun:
    found = found_run(path)
    if found is None:
        raise Misuse(f"RUNS must be folders of runs, got {path}")
    return found


def _differing(found: Sequence[FoundRun]) -> list[str]:
    """The settings in which runs of one command differ; those of two commands mean other things."""
    differing: dict[str, None] = {}
    for kind in dict.fromkeys(one.kind for one in found):
        fields = [flattened(one.config) for one in found if one.kind == kind and one.config]
        names = dict.fromkeys(name for own in fields for name in own)
        for name in names:
            values = [json.dumps(own.get(name)) for own in fields]  # as text: true is not 1
            if len(set(values)) > 1:
                differing[name] = None
    return list(differing)


def _table(found: Sequence[FoundRun], names: Sequence[str], differing: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    kinds = len({one.kind for one in found}) > 1
    for name in ("run", *(["kind"] if kinds else []), *map(printable, differing), "state"):
        table.add_column(Text(name), no_wrap=True)
    for name in ("steps", "queries", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result")
    for one, name in zip(found, names, strict=True):
        settings = flattened(one.config)
        words = [name, *([one.kind] if kinds else [])]
        words += [_written(settings.get(field, "-")) for field in differing]
        numbers = [counted(n) for n in (one.steps, one.queries, one.seconds)]
        table.add_row(*(Text(printable(w)) for w in (*words, one.state, *numbers, one.outcome)))
    return table


def _written(value: Any) -> str:  # noqa: ANN401 - of JSON's types
    return value if isinstance(value, str) else json.dumps(value)
