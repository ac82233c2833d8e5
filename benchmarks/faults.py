"""Training, certification and correction under faults: killed, out of space, damaged, locked out.

    OMP_NUM_THREADS=1 python -m benchmarks.faults --json faults.json

The commands are the real ones, with real processes, signals and files (``faults_subjects``); the
faults are in ``faults_kills`` and ``faults_disks``. Every disturbed run is let go on to its end, and what it comes to is
compared with an undisturbed run, to the bit: weights, checkpoint of the best, metrics, result;
certificates, and that the log of votes supports them. Processes are forked from one that has
imported everything, but for *killed programs*, which start a new interpreter each.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.faults_disks import damaged, full, locked, read_only
from benchmarks.faults_kills import jumping_clock, killed, killed_in_writes, killed_programs
from benchmarks.faults_outcomes import Row, Setting, undisturbed
from benchmarks.faults_subjects import SUBJECTS, Subject

KINDS: dict[str, tuple[Callable[[Setting, Row, int], None], int]] = {
    "killed": (killed, 50),
    "killed in writes": (killed_in_writes, 50),
    "killed programs": (killed_programs, 5),
    "damaged": (damaged, 10),
    "full": (full, 10),
    "read-only": (read_only, 3),
    "locked": (locked, 3),
    "clock": (jumping_clock, 10),
}
"""The faults by name, and how often each is made to happen to each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Disturbs and prints; the exit code is 1 where a run came to something else."""
    options = _options(argv)
    torch.set_num_threads(1)
    rows: list[Row] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.place, ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        for subject in SUBJECTS:
            if subject.name in options.subjects:
                rows += disturbed(subject, Path(place), options)
        kind = _file_system(Path(place))
    console = Console(width=150)
    console.print(table(rows))
    for row in rows:
        for words in row.unlike:
            console.print(f"{row.kind}, {row.subject}: {words}", style="bold red", markup=False)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "files": kind}
    document = {
        "machine": machine,
        "seconds": round(time.monotonic() - begun),
        "seed": options.seed,
    }
    if options.json:
        document["rows"] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(row.identical < row.runs for row in rows))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="commands under faults")
    parser.add_argument(
        "--kinds", nargs="+", type=_kind, default=list(map(_kind, KINDS)), help="names, or name=N"
    )
    parser.add_argument("--subjects", nargs="+", choices=names, default=names)
    parser.add_argument("--place", type=Path, help="where the runs go: a temporary folder there")
    parser.add_argument(
        "--no-mount", action="store_true", help="mount no tmpfs, though root might"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    return parser.parse_args(argv)


def _kind(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in KINDS or not (number or "1").isdigit():
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(KINDS)}, or NAME=N, got {text}"
        )
    return name, int(number) if number else KINDS[name][1]


def disturbed(subject: Subject, place: Path, options: argparse.Namespace) -> list[Row]:
    """Lets a command meet all kinds of fault; gives a row a kind."""
    known = undisturbed(subject, place / f"{subject.name} undisturbed")
    rows = []
    for kind, faults in options.kinds:
        chance = random.Random(f"{options.seed} {subject.name} {kind}")
        folder = place / f"{subject.name} {kind}"
        folder.mkdir()
        row, begun = Row(kind, subject.name), time.monotonic()
        disturb = KINDS[kind][0]
        disturb(Setting(subject, *known, folder, chance, not options.no_mount), row, faults)
        took = time.monotonic() - begun
        print(f"{kind}, {subject.name}: {row.faults} faults, {took:.0f} s", file=sys.stderr)
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Lays out what happened."""
    found = Table("fault", "command", "faults", "runs ended", "identical", "seen on the way")
    for row in rows:
        notes = ", ".join(f"{what} {times}" for what, times in sorted(row.notes.items()))
        counts = (row.faults, row.runs, row.identical)
        found.add_row(row.kind, row.subject, *map(str, counts), notes)
    return found


def _file_system(place: Path) -> str:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
