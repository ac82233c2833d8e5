"""Faults of ``faults.py`` in what a run finds: damaged files, full disks, read-only folders, locks."""

__all__ = ["damaged", "full", "locked", "read_only"]

import ctypes
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults_kills import interrupted
from benchmarks.faults_outcomes import Row, Setting
from benchmarks.faults_subjects import child, prepared, waited

_CAPABILITIES = 0x20080522
"""The version of the kernel's interface."""

_OVERRIDE = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


def damaged(setting: Setting, row: Row, faults: int) -> None:
    """The newest checkpoint of a killed run loses its tail, a bit, or all its content.

    Of a certification, which has none, the last line of the votes is torn.
    """
    for trial in range(faults):
        place = setting.place / str(trial)
        interrupted(setting, place)
        newest = max((place / "run" / "checkpoints").iterdir(), default=None, key=_step)
        if newest is None:
            newest = place / "run" / setting.subject.work
            content = newest.read_bytes()
            start = content[:-1].rfind(b"\n") + 1
            newest.write_bytes(content[: setting.chance.randrange(start + 1, len(content))])
            row.note("last line torn")
        else:
            row.note(_damage(newest, setting.chance))
        row.faults += 1
        setting.ended(place, row)


def _step(path: Path) -> str:
    return path.name if path.name.startswith("step-") else ""


def _damage(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = chance.choice(("bit flipped", "cut short", "filled with zeros"))
    if how == "bit flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "cut short":
        content = content[: chance.randrange(len(content))]
    else:
        content = bytearray(len(content))
    path.write_bytes(content)
    return how


def full(setting: Setting, row: Row, faults: int) -> None:
    """A disk that is full again and again: a small tmpfs, or where mounting is forbidden a limit."""
    trial, said = 0, setting.place / "said.txt"
    while row.faults < faults:
        place, trial = prepared(setting.place / str(trial)), trial + 1
        with _tmpfs(place, setting.mount) as mounted:
            row.note("on a tmpfs" if mounted else "by a limit on the length of files")
            code, kilobytes = 1, 16.0
            while code and kilobytes < 4_096:
                kilobytes *= setting.chance.uniform(1.5, 3)
                code = _confined(setting, place, int(kilobytes) if mounted else 0, row)
            if mounted:
                _remount(place, "size=64m")
            if code:
                code = waited(child(setting.subject, place, resume=True, said=said))
            setting.compare(place, row, code, said=said)


def _confined(setting: Setting, place: Path, kilobytes: int, row: Row) -> int:
    said, limit = setting.place / "said.txt", None
    if kilobytes:
        prepared(place)
        _remount(place, f"size={kilobytes}k")
    else:
        limit = setting.chance.randrange(200, 60_000)
    code = waited(
        child(setting.subject, place, resume=True, said=said, arm=lambda: _limited(limit))
    )
    if code:
        row.faults += 1
        row.note(_told(said.read_text(), code, "No space left", "File too large"))
    return code


def _told(said: str, code: int, *words: str) -> str:
    if code == 1 and "Traceback" not in said and any(word in said for word in words):
        return "refused and said so"
    return f"exit code {code}: {said[-300:]}"


@contextmanager
def _tmpfs(place: Path, wanted: bool) -> Iterator[bool]:
    """Mounts a file system of its own over a folder; gives whether that is wanted and allowed."""
    mounted = wanted and _mounts(place)
    if mounted:
        prepared(place)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def _mounts(place: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _remount(place: Path, options: str) -> None:
    # A file system cannot become smaller than what it holds; it stays as full as it was then.
    subprocess.run(
        ["mount", "-o", f"remount,{options}", str(place)], check=False, capture_output=True
    )


def _limited(size: int | None) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if size is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def read_only(setting: Setting, row: Row, faults: int) -> None:
    """A folder that turns read-only under a killed run: refused, left as it is, continued later."""
    said = setting.place / "said.txt"
    for trial in range(faults):
        place = prepared(setting.place / str(trial))
        with _tmpfs(place, setting.mount) as mounted:
            interrupted(setting, place)
            before = _contents(place / "run")
            row.note("read-only tmpfs" if mounted else "no right to write")
            _write_protect(place, mounted=mounted, on=True)
            arm = (lambda: None) if mounted else _powerless
            code = waited(child(setting.subject, place, resume=True, said=said, arm=arm))
            _write_protect(place, mounted=mounted, on=False)
            row.faults += 1
            row.note(_told(said.read_text(), code, "Permission denied", "Read-only file system"))
            row.note("left as it was" if _contents(place / "run") == before else "CHANGED")
            code = waited(child(setting.subject, place, resume=True, said=said))
            setting.compare(place, row, code, said=said)


def _write_protect(place: Path, *, mounted: bool, on: bool) -> None:
    if mounted:
        _remount(place, "ro" if on else "rw")
        return
    for path in place.rglob("*"):
        rights = 0o555 if path.is_dir() else 0o444
        path.chmod(rights if on else rights | 0o200)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _powerless() -> None:
    """Takes root's power to write where rights forbid it; it keeps what it owns and may read."""
    if os.getuid() != 0:
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words, high words
    libc.capget(header, data)
    for word in range(3):
        data[word] &= ~_OVERRIDE
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def locked(setting: Setting, row: Row, faults: int) -> None:
    """A second process on the folder of a run at work: refused, and the first is not disturbed."""
    said = setting.place / "said.txt"
    for trial in range(faults):
        place = setting.place / str(trial)
        first = child(setting.subject, place, resume=False)
        while not (place / "run" / "config.json").exists():
            time.sleep(0.001)
        os.kill(first, signal.SIGSTOP)  # it does not end meanwhile
        code = waited(child(setting.subject, place, resume=True, said=said))
        os.kill(first, signal.SIGCONT)
        row.faults += 1
        words = f"in use by another run (process {first})", "being made by another process"
        row.note(_told(said.read_text(), code, *words))
        setting.compare(place, row, waited(first))
