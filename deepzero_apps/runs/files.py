"""Crash-safe files (:mod:`deepzero_apps.files`) as a run's folder needs them.

Every ``OSError`` becomes a :class:`RunFolderError` that names the file and a way out.
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

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from deepzero_apps import files
from deepzero_apps.files import InUse, is_temporary, sync


class RunFolderError(Exception):
    """A run's folder, or a file in it, cannot be used as asked. The message says why."""


def explained(action: str, path: Path) -> AbstractContextManager[None]:
    """Turns an ``OSError`` of its block into a :class:`RunFolderError` with a remedy.

    Args:
        action: What could not be done to the file, as a participle: ``"written"``.
        path: The file that the message names.

    Raises:
        RunFolderError: If the block raises ``OSError``.
    """
    return files.explained(
        action, path, RunFolderError, again="continue with --resume", elsewhere=" with --out"
    )


def replace(path: Path, data: bytes) -> None:
    """Writes a file as a whole, durably: afterwards it holds ``data``, or what it held before.

    Args:
        path: The file; its folder exists.
        data: All of its new content.

    Raises:
        RunFolderError: If it cannot be written; the old content is then intact.
    """
    with explained("written", path):
        files.replace(path, data)


def append(path: Path, data: bytes) -> None:
    """Appends to a file and hands the bytes to the operating system, all of them or none.

    They survive the death of the process; only :func:`sync` makes them survive a power cut.

    Args:
        path: The file; made if it is absent.
        data: What to append.

    Raises:
        RunFolderError: If it cannot be written; the file is then as it was.
    """
    with explained("extended", path):
        files.append(path, data)


def lock(path: Path) -> IO[bytes]:
    """Takes an exclusive lock, which ends when the file is closed or the process dies.

    Args:
        path: The lock's file; made if it is absent. It holds the owner's process id.

    Returns:
        The open file; close it to release the lock.

    Raises:
        RunFolderError: If another process, or this one, holds the lock already.
    """
    with explained("locked", path):
        try:
            return files.lock(path)
        except InUse as error:
            raise RunFolderError(
                f"{path.parent} is in use by another run (process {error.owner}); "
                "wait for it to end or choose another --out"
            ) from None


def remove_temporary(folder: Path) -> None:
    """Removes what a process killed inside :func:`replace` left behind.

    Args:
        folder: The folder, locked by the caller: a file in the making would be lost.

    Raises:
        RunFolderError: If a file cannot be removed.
    """
    with explained("tidied", folder):
        files.remove_temporary(folder)
