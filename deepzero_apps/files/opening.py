"""A file of ours, opened where it is: never what a link of its name leads to.

A folder that came from a stranger may hold links in place of files. Whoever cut, locked or
extended what they lead to would change a file that lies elsewhere.
"""

__all__ = ["open_plain"]

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
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device, and must be a file", str(path))
    return file


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe would be waited for.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
