"""Files of lines: whole lines, one writer, read strictly and in linear time."""

import os
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from deepzero_apps.files import InUse, LineFile, append, lines_of
from deepzero_apps.files import lines as module
from tests.files.limits import largest_file

NUMBERS: TypeAdapter[int] = TypeAdapter(int)


class DamagedError(Exception):
    """What the caller calls it."""


def numbers(content: bytes) -> list[int]:
    return list(lines_of(content, NUMBERS, what="number", file=Path("log"), kind=DamagedError))


def test_appending_that_fails_midway_takes_its_bytes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"a" * 900)

    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        append(path, b"b" * 200)
    append(path, b"c")

    assert path.read_bytes() == b"a" * 900 + b"c"


def test_line_that_does_not_fit_leaves_the_others_whole(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log")
    file.append(b"1" * 900 + b"\n")

    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        file.append(b"2" * 200 + b"\n")
    file.append(b"3\n")
    file.close()

    assert (tmp_path / "log").read_bytes() == b"1" * 900 + b"\n3\n"


def test_torn_last_line_is_not_read_and_goes_when_it_is_cut_not_before(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"1\n2\n3")
    (tmp_path / ".log.0123abcd.tmp").touch()

    file = LineFile(path)
    assert file.read() == b"1\n2\n"
    assert path.read_bytes() == b"1\n2\n3"
    file.cut()
    file.append(b"4\n")
    file.close()

    assert path.read_bytes() == b"1\n2\n4\n"
    assert os.listdir(tmp_path) == ["log"]


def test_file_has_one_writer_also_after_it_was_rewritten(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log")
    with pytest.raises(InUse):
        LineFile(tmp_path / "log")
    file.append(b"1\n")
    file.rewrite(b"2\n")
    with pytest.raises(InUse):
        LineFile(tmp_path / "log")
    file.append(b"3\n")
    assert file.read() == b"2\n3\n"
    file.close()

    LineFile(tmp_path / "log").close()


def test_writer_that_opened_a_file_just_rewritten_gets_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process replaces the file and closes between our opening and our locking.
    path, others, hold = tmp_path / "log", [LineFile(tmp_path / "log")], module.hold

    def late(file: object, name: Path) -> None:
        while others:
            other = others.pop()
            other.rewrite(b"new\n")
            other.close()
        hold(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "hold", late)
    file = LineFile(path)
    file.append(b"mine\n")
    file.close()

    assert path.read_bytes() == b"new\nmine\n"


def test_rewriting_that_fails_keeps_the_lines_and_the_lock(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log")
    file.append(b"1\n")
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        file.rewrite(b"2" * 2000 + b"\n")
    with pytest.raises(InUse):
        LineFile(tmp_path / "log")
    file.append(b"3\n")
    file.close()

    assert (tmp_path / "log").read_bytes() == b"1\n3\n"
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\nx\n3\n", "log, line 2 is no number: JSON: Invalid JSON"),
        (b'1\n2\n"3"\n', "log, line 3 is no number: JSON: Input should be a valid integer"),
        (b"\n", "log, line 1 is no number"),
        (b"\xff\n", "log, line 1 is no number"),
    ],
)
def test_damaged_line_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        numbers(content)


def test_unfinished_line_is_left_out_whatever_it_holds() -> None:
    assert numbers(b"1\n2\n\xff{") == [1, 2]
    assert numbers(b"1") == numbers(b"") == []


def test_time_to_read_grows_with_the_number_of_lines_and_not_faster() -> None:
    def seconds(lines: int) -> float:
        content = b"123456\n" * lines
        start = time.perf_counter()
        assert len(numbers(content)) == lines
        return time.perf_counter() - start

    short = min(seconds(20_000) for _ in range(3))
    # Ten times the lines: ten times the time, and a hundred if it were quadratic.
    assert min(seconds(200_000) for _ in range(2)) < 30 * short
