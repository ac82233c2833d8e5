"""Errors of the operating system, told with the file's name and a way out."""

__all__ = ["explained"]

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def explained(
    action: str,
    path: Path,
    kind: type[Exception],
    *,
    again: str = "continue",
    elsewhere: str = "",
) -> Iterator[None]:
    """Turns an ``OSError`` of its block into another error, with a remedy.

    Args:
        action: What could not be done to the file, as a participle: ``"written"``.
        path: The file that the message names.
        kind: The error raised instead.
        again: How work goes on once there is space.
        elsewhere: How another place is chosen: ``" with --out"``.

    Raises:
        kind: If the block raises ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _remedy(error, again, elsewhere)
        raise kind(f"{path} cannot be {action}: {reason}; {remedy}") from error


def _remedy(error: OSError, again: str, elsewhere: str) -> str:
    if error.errno in _FULL:
        return f"what was there before is intact; free some space and {again}"
    if error.errno in _FORBIDDEN:
        return f"choose a folder that you may write to{elsewhere}"
    return f"check the path, or choose another{elsewhere}"
