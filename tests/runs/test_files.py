"""Files replaced as a whole, extended by whole lines, locked by one process."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The operating system refuses what would make a file longer than this, midway in a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen: list[tuple[bool, bytes]] = []

    def fsync(descriptor: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace(path, b"new")

    assert seen == [(False, b"old"), (True, b"new")]


def test_replacing_never_writes_into_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "same").hardlink_to(path)

    replace(path, b"new")

    assert (tmp_path / "same").read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_replaced_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    replace(tmp_path / "replaced", b"")
    (tmp_path / "plain").touch()

    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_our_temporary_files_are_removed(tmp_path: Path) -> None:
    ours, others = ".a.json.0123abcd.tmp", ["a.json.0123abcd.tmp", ".a.json.tmp", "a.json"]
    for name in (ours, *others):
        (tmp_path / name).touch()

    remove_temporary(tmp_path)

    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_lock_is_exclusive_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    with pytest.raises(RunFolderError, match=rf"in use by another run \(process {os.getpid()}\)"):
        lock(tmp_path / "lock")

    held.close()
    lock(tmp_path / "lock").close()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; .* is intact; free some space"),
        (errno.EROFS, "Read-only file system; choose a folder that you may write to with --out"),
        (errno.EIO, "Input/output error; check the path"),
    ],
)
def test_remedy_fits_the_error(number: int, remedy: str) -> None:
    with (
        pytest.raises(RunFolderError, match=f"run/x cannot be written: {remedy}"),
        explained("written", Path("run/x")),
    ):
        raise OSError(number, os.strerror(number))
