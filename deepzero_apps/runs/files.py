"""Files that survive a crash: replaced as a whole, extended by whole lines, locked by one process.

Replacing follows the usual protocol of POSIX file systems: write a temporary file in the same
folder, fsync it, rename it over the old one, fsync the folder. A process killed at any moment
leaves the old content or the new, and perhaps a temporary file, which :func:`remove_temporary`
clears away. Every ``OSError`` becomes a :class:`RunFolderError` that names the file and a way out.
"""

__all__ = [
    "RunFolderError",
    "append",
    "explained",
    "is_temporary",
    "lock",
    "remove_temporary",
    "replace",
    "sync",
]

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class RunFolderError(Exception):
    """A run's folder, or a file in it, cannot be used as asked. The message says why."""


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turns an ``OSError`` of its block into a :class:`RunFolderError` with a remedy.

    Args:
        action: What could not be done to the file, as a participle: ``"written"``.
        path: The file that the message names.

    Raises:
        RunFolderError: If the block raises ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(f"{path} cannot be {action}: {reason}; {_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "what was there before is intact; free some space and continue with --resume"
    if error.errno in _FORBIDDEN:
        return "choose a folder that you may write to with --out"
    return "check the path, or choose another with --out"


def replace(path: Path, data: bytes) -> None:
    """Writes a file as a whole, durably: afterwards it holds ``data``, or what it held before.

    Args:
        path: The file; its folder exists.
        data: All of its new content.

    Raises:
        RunFolderError: If it cannot be written; the old content is then intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained("written", path):
        try:
            with temporary.open("xb", buffering=0) as file:
                _write_all(file, data)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def append(path: Path, data: bytes) -> None:
    """Appends to a file and hands the bytes to the operating system, all of them or none.

    They survive the death of the process; only :func:`sync` makes them survive a power cut.

    Args:
        path: The file; made if it is absent.
        data: What to append.

    Raises:
        RunFolderError: If it cannot be written; the file is then as it was.
    """
    with explained("extended", path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            _write_all(file, data)
        except OSError:
            file.truncate(end)
            raise


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk.

    Args:
        path: The file or folder.

    Raises:
        OSError: If it cannot be opened or the disk reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> IO[bytes]:
    """Takes an exclusive lock, which ends when the file is closed or the process dies.

    A child made by ``fork`` shares the lock, and holds it for as long as it lives.

    Args:
        path: The lock's file; made if it is absent. It holds the owner's process id.

    Returns:
        The open file; close it to release the lock.

    Raises:
        RunFolderError: If another process, or this one, holds the lock already.
    """
    with explained("locked", path):
        file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).decode(errors="replace") or "unknown"
            file.close()
            raise RunFolderError(
                f"{path.parent} is in use by another run (process {owner}); "
                "wait for it to end or choose another --out"
            ) from None
        except OSError:
            file.close()
            raise
    return file


def is_temporary(path: Path) -> bool:
    """Whether a file's name is one that :func:`replace` gives to its temporary files."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Removes what a process killed inside :func:`replace` left behind.

    Args:
        folder: The folder, locked by the caller: a file in the making would be lost.

    Raises:
        RunFolderError: If a file cannot be removed.
    """
    with explained("tidied", folder):
        for path in filter(is_temporary, list(folder.iterdir())):
            path.unlink()


def _write_all(file: IO[bytes], data: bytes) -> None:
    # A raw write may stop short, on a full disk for one; the next call then says why.
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
