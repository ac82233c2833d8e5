"""A file of ours, opened where it is: never what a link of its name leads to.

A folder that came from a stranger may hold links in place of files. Whoever cut, locked or
extended what they lead to would change a file that lies elsewhere. Reading does follow links, but
to files alone: a pipe would be waited for without end, and a device may never end.
"""

__all__ = ["open_plain", "read_plain"]

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_plain(path: Path, mode: str) -> IO[bytes]:
    """Opens a file, unbuffered.

    Args:
        path: The file.
        mode: As of ``open``, with ``b``.

    Returns:
        The open file.

    Raises:
        OSError: If it cannot be opened, is a link, or is a pipe, a device or a folder.
    """
    try:
        file = open(path, mode, buffering=0, opener=_open)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and must be a file", str(path)) from error
        raise
    return _file_alone(file, path)


def read_plain(path: Path, *, last: int | None = None) -> bytes:
    """Reads a file, or the file that a link leads to.

    Args:
        path: The file.
        last: How many bytes of its end; all of it by default.

    Returns:
        Its content.

    Raises:
        OSError: If it cannot be read, or is a pipe, a device or a folder.
    """
    with open(path, "rb", buffering=0, opener=_wait_for_nobody) as file:
        size = os.fstat(_file_alone(file, path).fileno()).st_size
        if last is not None and size > last:
            file.seek(size - last)
        return file.read()


def _file_alone(file: IO[bytes], path: Path) -> IO[bytes]:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, and must be a file", str(path))
    return file


def _open(path: str, flags: int) -> int:
    return _wait_for_nobody(path, flags | os.O_NOFOLLOW)


def _wait_for_nobody(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe would be waited for.
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
