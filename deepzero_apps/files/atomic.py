"""A file replaced as a whole, by the usual protocol of POSIX file systems.

Write a temporary file in the same folder, fsync it, rename it over the old one, fsync the folder.
A process killed at any moment leaves the old content or the new, and perhaps a temporary file,
which `remove_temporary` clears away.
"""

__all__ = ["is_temporary", "put", "remove_temporary", "replace", "sync", "write_all"]

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


def replace(path: Path, data: bytes) -> None:
    """Writes a file as a whole, durably: afterwards it holds ``data``, or what it held before.

    Args:
        path: The file; its folder exists.
        data: All of its new content.

    Raises:
        OSError: If it cannot be written; the old content is then intact.
    """
    put(path, data, before=lambda _: None).close()


def put(path: Path, data: bytes, *, before: Callable[[IO[bytes]], None]) -> IO[bytes]:
    """Replaces a file as `replace` does, and leaves the new one open.

    Args:
        path: The file; its folder exists.
        data: All of its new content.
        before: Called with the new file before it takes the name, to lock it for one.

    Returns:
        The new file, unbuffered, to be read and appended to.

    Raises:
        OSError: If it cannot be written; the old content is then intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    file: IO[bytes] = open(temporary, "ab+", buffering=0, opener=_new)  # noqa: SIM115 - returned
    try:
        before(file)
        write_all(file, data)
        os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        file.close()
        with suppress(OSError):
            temporary.unlink()
        raise
    return file


def _new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o666)


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


def is_temporary(path: Path, name: str | None = None) -> bool:
    """Whether a file's name is one that `replace` gives to its temporary files.

    Args:
        path: The file.
        name: The name of the file that it was to become; any by default.
    """
    match = _TEMPORARY.fullmatch(path.name)
    return match is not None and name in (None, match[1])


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Removes what a process killed inside `replace` left behind.

    Args:
        folder: The folder, locked by the caller: a file in the making would be lost.
        name: The name of the only file whose remains are meant; any by default.

    Raises:
        OSError: If a file cannot be removed.
    """
    for path in list(folder.iterdir()):
        if is_temporary(path, name):
            path.unlink()


def write_all(file: IO[bytes], data: bytes) -> None:
    """Writes to an unbuffered file, all of it.

    Args:
        file: The file.
        data: What to write.

    Raises:
        OSError: If it cannot all be written; a part of it may then be there.
    """
    # A raw write may stop short, on a full disk for one; the next call then says why.
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
