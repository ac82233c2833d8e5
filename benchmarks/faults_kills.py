"""Faults of ``faults.py`` that kill: at any moment, inside of a write, under a jumping clock."""

__all__ = ["interrupted", "jumping_clock", "killed", "killed_in_writes", "killed_programs"]

import datetime
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from benchmarks.faults_outcomes import Row, Setting
from benchmarks.faults_subjects import Subject, child, lines, prepared, waited
from deepzero_apps.cli import driving
from deepzero_apps.files import atomic
from deepzero_apps.files import lines as line_files

T = TypeVar("T")

_DAYS = 86_400.0
_PROGRAM = "import sys; from deepzero_apps.cli import main; sys.exit(main())"


def killed(setting: Setting, row: Row, faults: int) -> None:
    """SIGKILL from outside at a random moment, of the work for the most part."""

    def start(place: Path, *, resume: bool) -> int:
        return _shot(setting, place, child(setting.subject, place, resume=resume))

    _again_and_again(setting, row, faults, start)


def _shot(setting: Setting, place: Path, process: int) -> int:
    """Kills a process at its start, or after so many further lines and some milliseconds."""
    chance, work = setting.chance, place / "run" / setting.subject.work
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 0.5 * setting.seconds))
    else:
        wanted = chance.randint(min(lines(work), setting.lines - 1) + 1, setting.lines)
        while lines(work) < wanted and not _ended(process):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 2 * setting.seconds / setting.lines))
    os.kill(process, signal.SIGKILL)
    return process


def _ended(process: int) -> bool:
    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def interrupted(setting: Setting, place: Path) -> None:
    """Runs until some work is on the disk, and kills."""
    process = child(setting.subject, place, resume=False)
    wanted = setting.chance.randrange(4, 20)
    while lines(place / "run" / setting.subject.work) < wanted and not _ended(process):
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    waited(process)


def killed_in_writes(setting: Setting, row: Row, faults: int) -> None:
    """SIGKILL between and within the steps of writing files: before, half-way, after."""
    counted = setting.place / "steps"
    process = child(
        setting.subject, setting.place / "counted", resume=False, arm=lambda: _dying(None, counted)
    )
    waited(process)
    steps = int(counted.read_text())

    def start(place: Path, *, resume: bool) -> int:
        at = setting.chance.randrange(steps)
        return child(setting.subject, place, resume=resume, arm=lambda: _dying(at))

    _again_and_again(setting, row, faults, start)


def _again_and_again(setting: Setting, row: Row, faults: int, start: Callable[..., int]) -> None:
    """Kills runs, half of them again when they go on, and lets all of them end."""
    trial = 0
    while row.faults < faults:
        place, code, trial = setting.place / str(trial), -1, trial + 1
        resume = False
        while code < 0:
            code = waited(start(place, resume=resume))
            resume = True
            if code == -signal.SIGKILL:
                row.faults += 1
                row.note(_when(place / "run", setting.subject))
                if row.faults == faults or setting.chance.random() < 0.5:
                    code = waited(child(setting.subject, place, resume=True))
        setting.compare(place, row, code)


def _when(folder: Path, subject: Subject) -> str:
    if any(path.name.endswith(".tmp") for path in folder.rglob("*")):
        return "while a file was written"
    work = folder / subject.work
    if work.exists() and work.read_bytes()[-1:] not in (b"", b"\n"):
        return "within a line"
    if (folder / "result.json").exists():
        return "after the result"
    return "while it worked" if work.exists() else "before it worked"


def _dying(at: int | None, counted: Path | None = None) -> None:
    """Arms this process: it kills itself at the given step of writing files, or counts the steps."""
    seen = iter(range(1_000_000_000))

    def instant() -> None:
        now = next(seen)
        if now == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if counted is not None:
            counted.write_text(str(now + 1))

    def around(function: Callable[..., T]) -> Callable[..., T]:
        def doing(*args: object) -> T:
            instant()
            result = function(*args)
            instant()
            return result

        return doing

    whole = atomic.write_all

    def halves(file: IO[bytes], data: bytes) -> None:
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            instant()
            whole(file, part)

    line_files.write_all = atomic.write_all = halves
    os.fsync = around(os.fsync)
    Path.replace = around(Path.replace)  # type: ignore[method-assign]
    Path.unlink = around(Path.unlink)  # type: ignore[method-assign]


def jumping_clock(setting: Setting, row: Row, faults: int) -> None:
    """A clock that jumps by days, forth and back, at each look; the run is killed on the way."""

    def start(place: Path, *, resume: bool) -> int:
        seed = setting.chance.random()
        process = child(setting.subject, place, resume=resume, arm=lambda: _jumping(seed))
        return _shot(setting, place, process)

    _again_and_again(setting, row, faults, start)


def _jumping(seed: float) -> None:
    chance, real = random.Random(seed), time.time

    def now() -> float:
        return real() + chance.uniform(-30, 30) * _DAYS

    class Moment(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Moment":
            return cls.fromtimestamp(now(), tz)

    time.time = now
    time.time_ns = lambda: int(1e9 * now())
    driving.datetime = Moment  # type: ignore[attr-defined]


def killed_programs(setting: Setting, row: Row, faults: int) -> None:
    """SIGKILL to the command line itself, each time in a new interpreter."""

    def start(place: Path, *, resume: bool) -> int:
        return _shot(setting, place, _program(setting, place, resume=resume))

    _again_and_again(setting, row, faults, start)


def _program(setting: Setting, place: Path, *, resume: bool) -> int:
    words = [*setting.subject.flags, "--out", "run", *["--resume"] * resume]
    command = [sys.executable, "-c", _PROGRAM, *words]
    said = os.open(prepared(place) / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    before = os.getcwd()
    os.chdir(place)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    finally:
        os.chdir(before)
        os.close(said)
