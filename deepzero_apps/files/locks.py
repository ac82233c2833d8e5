"""Exclusive locks, which end when the file is closed or the process dies, however it dies.

The lock is ``flock``: it belongs to the open file, so that a child made by ``fork`` shares it, and
holds it for as long as it lives. Nothing has to be cleared away after a crash, and no clock is read.
"""

__all__ = ["InUse", "hold", "lock"]

import fcntl
import os
from pathlib import Path
from typing import IO

from deepzero_apps.files.opening import open_plain


class InUse(BlockingIOError):
    """A file is locked by another process, or by this one.

    Attributes:
        owner: The process that holds it, as it wrote there; ``unknown`` where it wrote nothing.
    """

    def __init__(self, path: Path | str, owner: str = "unknown") -> None:
        super().__init__(f"{path} is in use by another process")
        self.owner = owner


def lock(path: Path) -> IO[bytes]:
    """Takes an exclusive lock.

    Args:
        path: The lock's file; made if it is absent. It holds the owner's process id.

    Returns:
        The open file; close it to release the lock.

    Raises:
        InUse: If another process, or this one, holds the lock already.
        OSError: If the file cannot be opened, locked or written.
    """
    file = open_plain(path, "ab+")
    try:
        hold(file, path)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    except InUse:
        file.seek(0)
        owner = file.read(20).decode(errors="replace") or "unknown"
        file.close()
        raise InUse(path, owner) from None
    except BaseException:
        file.close()
        raise
    return file


def hold(file: IO[bytes], path: Path) -> None:
    """Locks an open file.

    Args:
        file: The file.
        path: Its name, for the error.

    Raises:
        InUse: If it is locked already.
        OSError: If the file system cannot lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(path) from None
