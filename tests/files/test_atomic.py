"""Files replaced as a whole."""

import os
import stat
from pathlib import Path

import pytest

from deepzero_apps.files import is_temporary, remove_temporary, replace
from tests.files.limits import largest_file


def test_replacing_that_fails_midway_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace(path, b"old")

    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        replace(path, bytes(1001))

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


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


def test_link_in_place_of_the_file_is_replaced_and_its_target_is_not(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "file").symlink_to(tmp_path / "target")

    replace(tmp_path / "file", b"new")

    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"old"


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


def test_temporary_files_of_one_name_alone_can_be_removed(tmp_path: Path) -> None:
    for name in (".a.json.0123abcd.tmp", ".b.json.0123abcd.tmp"):
        (tmp_path / name).touch()

    remove_temporary(tmp_path, "a.json")

    assert os.listdir(tmp_path) == [".b.json.0123abcd.tmp"]
    assert is_temporary(tmp_path / ".b.json.0123abcd.tmp", "b.json")
