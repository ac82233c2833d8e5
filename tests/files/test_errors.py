"""Errors of the operating system, told with a way out."""

import errno
import os
from pathlib import Path

import pytest

from deepzero_apps.files import explained


class LostError(Exception):
    """What the caller calls it."""


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; .* is intact; free some space and go on"),
        (errno.EDQUOT, "Disk quota exceeded; .* is intact; free some space and go on"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to by hand"),
        (errno.EIO, "Input/output error; check the path, or choose another by hand"),
    ],
)
def test_remedy_fits_the_error(number: int, remedy: str) -> None:
    with (
        pytest.raises(LostError, match=f"run/x cannot be written: {remedy}"),
        explained("written", Path("run/x"), LostError, again="go on", elsewhere=" by hand"),
    ):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), explained("written", Path("x"), LostError):
        raise KeyError("x")
