"""Files of ours are files: a link, a pipe or a device in their place is refused."""

import os
import stat
from pathlib import Path

import pytest

from deepzero_apps.files import LineFile, append, lock
from deepzero_apps.files.opening import open_plain, read_plain

WRITERS = [lock, LineFile, lambda path: append(path, b"x\n"), lambda path: open_plain(path, "rb")]


def test_a_plain_file_is_opened_and_made_with_the_usual_rights(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with open_plain(tmp_path / "a", "ab+") as file:
        file.write(b"abc")
    with open_plain(tmp_path / "a", "rb") as file:
        assert file.read() == b"abc"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "absent", "rb")


@pytest.mark.parametrize("write", WRITERS)
def test_what_a_link_leads_to_is_not_touched(write: object, tmp_path: Path) -> None:
    assert callable(write)
    (tmp_path / "precious").write_bytes(b"no line, no number")
    (tmp_path / "link").symlink_to(tmp_path / "precious")

    with pytest.raises(OSError, match="it is a link, and must be a file"):
        write(tmp_path / "link")

    assert (tmp_path / "precious").read_bytes() == b"no line, no number"


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_into_nothing_makes_nothing(write: object, tmp_path: Path) -> None:
    assert callable(write)
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(OSError, match="it is a link"):
        write(tmp_path / "link")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("mode", ["ab+", "rb"])
def test_a_pipe_is_refused_and_not_waited_for(mode: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"pipe or a device|seekable"):
        open_plain(tmp_path / "pipe", mode)


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="pipe or a device"):
        open_plain(Path("/dev/null"), "rb")


def test_a_link_is_read_and_what_is_no_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")

    assert read_plain(tmp_path / "link") == b"abcdef"
    assert (read_plain(tmp_path / "file", last=2), read_plain(tmp_path / "file", last=9)) == (
        b"ef",
        b"abcdef",
    )
    for name in ("zero", "pipe"):
        with pytest.raises(OSError, match="pipe or a device"):
            read_plain(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_plain(tmp_path)
