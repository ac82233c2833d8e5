"""Crash-safe files as a run's folder needs them: the same, with errors that name a way out."""

import errno
import os
from pathlib import Path

import pytest

from deepzero_apps.runs.files import (
    RunFolderError,
    append,
    explained,
    lock,
    remove_temporary,
    replace,
)
from tests.files.limits import largest_file


def test_replacing_that_fails_midway_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace(path, b"old")

    with (
        largest_file(1000),
        pytest.raises(RunFolderError, match=r"file cannot be written: .*free"),
    ):
        replace(path, bytes(1001))

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_appending_that_fails_midway_takes_its_bytes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"a" * 900)

    with largest_file(1000), pytest.raises(RunFolderError, match="file cannot be extended"):
        append(path, b"b" * 200)
    append(path, b"c")

    assert path.read_bytes() == b"a" * 900 + b"c"


def test_folder_that_cannot_be_tidied_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="absent cannot be tidied: No such file"):
        remove_temporary(tmp_path / "absent")


def test_lock_is_exclusive_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    with pytest.raises(RunFolderError, match=rf"in use by another run \(process {os.getpid()}\)"):
        lock(tmp_path / "lock")

    held.close()
    lock(tmp_path / "lock").close()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; .* free some space and continue with --resume"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to with --out"),
        (errno.EIO, "Input/output error; check the path, or choose another with --out"),
    ],
)
def test_remedy_names_the_flag(number: int, remedy: str) -> None:
    with (
        pytest.raises(RunFolderError, match=f"run/x cannot be written: {remedy}"),
        explained("written", Path("run/x")),
    ):
        raise OSError(number, os.strerror(number))
