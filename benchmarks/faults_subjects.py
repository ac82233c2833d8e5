"""What is disturbed in ``faults.py``: three commands, small and of the same parts as a run of days."""

__all__ = ["SUBJECTS", "Subject", "child", "lines", "prepared", "waited", "warm"]

import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from deepzero_apps.cli import main as command_line

BOX = """
import numpy as np
from sklearn.datasets import load_digits

_raw = load_digits()
_images = _raw.images.reshape(-1, 64) / 16
_centers = np.stack([_images[_raw.target == c].mean(0) for c in range(10)])


def scores(images):
    rows = images.reshape(len(images), 64)
    return -5 * ((rows[:, None] - _centers) ** 2).sum(2)
"""
"""A black box of the user's own: the nearest class mean."""

LIMIT = 120.0
"""Seconds after which a run counts as hanging."""


@dataclass(frozen=True)
class Subject:
    """A command.

    Args:
        name: What it is called.
        flags: The command and its flags, but for the folder.
        work: The file that grows while it works.
    """

    name: str
    flags: tuple[str, ...]
    work: str


def _flags(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = (
    Subject(
        "training",
        _flags(
            "train --depth 1 --width 2 --batch 100 --epochs 3 --sparsity 0.5 --interval 3 "
            "--stale-decay 0.8 --checkpoint-every 0"
        ),
        "metrics.jsonl",
    ),
    Subject(
        "certification",
        _flags(
            "certify --classifier box:scores --sigma 0.25 --images 12 --n 2000 --rows 64 "
            "--procedure decide --radii 0.1 0.2 0.3 --canaries 4"
        ),
        "votes.jsonl",
    ),
    Subject(
        "correction",
        _flags(
            "correct --problem burgers-1d --grid 1x16 --reference 1x32 --width 2 --batch 2 "
            "--unrolled 3 --rollout-steps 5 --updates 25 --checkpoint-every 0"
        ),
        "metrics.jsonl",
    ),
)
"""Small, and of the same parts as a run of days."""


def prepared(place: Path) -> Path:
    """Makes the folder in which a command runs, with the black box in it."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "box.py").write_text(BOX)
    return place


def warm(subject: Subject, place: Path) -> None:
    """Runs a command in this process, so that those forked from it find all modules imported.

    Raises:
        RuntimeError: If it fails.
    """
    before, prints = os.getcwd(), io.StringIO()
    os.chdir(prepared(place))
    try:
        with redirect_stdout(prints), redirect_stderr(prints):
            code = command_line([*subject.flags, "--out", "run"])
    finally:
        os.chdir(before)
    if code:
        raise RuntimeError(
            f"{subject.name} must succeed undisturbed, got {code}: {prints.getvalue()}"
        )


def child(
    subject: Subject,
    place: Path,
    *,
    resume: bool,
    arm: Callable[[], object] = lambda: None,
    said: Path | None = None,
) -> int:
    """Starts a command in a process forked from this one, which has imported everything.

    Args:
        subject: The command.
        place: Where it runs; its folder is ``run`` there.
        resume: Whether it continues.
        arm: What the process does first, such as arranging its own death.
        said: Where it prints; ``said.txt`` beside its folder by default.

    Returns:
        The process.
    """
    said = said or prepared(place) / "said.txt"
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.chdir(place)
        printed = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        arm()
        code = command_line([*subject.flags, "--out", "run", *["--resume"] * resume])
    except BaseException:  # noqa: BLE001 - nothing may reach the code of the parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(process: int, limit: float = LIMIT) -> int:
    """Waits for a process; gives its exit code, negative for the signal that ended it.

    Raises:
        TimeoutError: If it hangs; it is killed then.
    """
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} must end within {limit} s, got no end")
        time.sleep(0.001)


def lines(path: Path) -> int:
    """Counts the lines of a file, which may be absent."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
