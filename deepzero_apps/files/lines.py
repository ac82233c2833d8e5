"""A file of lines, extended by whole lines: what a killed process leaves is whole but for the last.

A line counts once its newline is there. Appending hands the bytes to the operating system, which
keeps them when the process dies; only closing, or `sync`, makes them survive a power cut.
"""

__all__ = ["LineFile", "append", "lines_of"]

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

from pydantic import TypeAdapter, ValidationError

from deepzero_apps.files.atomic import put, remove_temporary, write_all
from deepzero_apps.files.locks import hold
from deepzero_apps.files.opening import open_plain

T = TypeVar("T")


class LineFile:
    """A file of lines that one process appends to; it is locked from here until it is closed.

    Opening changes nothing in the file: read it, decide whether it is one's own, then `cut`.

    Args:
        path: The file; made if it is absent. Its folder exists.

    Raises:
        InUse: If another process, or this one, has it open.
        OSError: If it cannot be opened or locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)

    def read(self) -> bytes:
        """Returns the whole lines; an unfinished last one is left out."""
        self._file.seek(0)
        return _whole(self._file.read())

    def cut(self) -> None:
        """Cuts an unfinished last line off, and removes what a killed `rewrite` left behind."""
        self._file.truncate(len(self.read()))
        remove_temporary(self.path.parent, self.path.name)

    def append(self, line: bytes) -> None:
        """Appends a line, all of it or nothing.

        Args:
            line: The line with its newline; or several.

        Raises:
            OSError: If it cannot be written; the file is then as it was.
        """
        _append(self._file, line)

    def rewrite(self, content: bytes) -> None:
        """Replaces all lines at once; the new file is locked before it takes the old one's name.

        Args:
            content: The lines.

        Raises:
            OSError: If it cannot be written; the file is then as it was.
        """
        file = put(self.path, content, before=lambda fresh: hold(fresh, self.path))
        self._file.close()
        self._file = file

    def close(self) -> None:
        """Waits until the lines are on the disk, and releases the lock.

        Raises:
            OSError: If the disk reports an error; the lock is released nevertheless.
        """
        with self._file:
            os.fsync(self._file.fileno())


def append(path: Path, data: bytes) -> None:
    """Appends to a file that is not kept open, all of it or nothing.

    Args:
        path: The file; made if it is absent. The caller has a lock on its folder.
        data: What to append.

    Raises:
        OSError: If it cannot be written; the file is then as it was.
    """
    with open_plain(path, "ab") as file:
        _append(file, data)


def lines_of(
    content: bytes, adapter: TypeAdapter[T], *, what: str, file: Path, kind: type[Exception]
) -> Iterator[T]:
    """Reads one value a line, strictly; an unfinished last line is left out.

    Args:
        content: The file's content.
        adapter: Of the values.
        what: What a line is meant to be, for the error.
        file: The file, for the error.
        kind: The error.

    Yields:
        The values, in order.

    Raises:
        kind: If a line is no such value; it names file, line and place.
    """
    for number, line in enumerate(io.BytesIO(_whole(content)), 1):
        try:
            yield adapter.validate_json(line, strict=True)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"]) or "JSON"
            text = f"{file}, line {number} is no {what}: {place}: {fault['msg']}"
            raise kind(text) from error
        except (OverflowError, TypeError) as error:  # of a number that the values cannot have
            raise kind(f"{file}, line {number} is no {what}: {error}") from error


def _opened(path: Path) -> IO[bytes]:
    while True:
        file = open_plain(path, "ab+")
        try:
            hold(file, path)
            # Between opening and locking, `rewrite` may have put another file in its place.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _append(file: IO[bytes], data: bytes) -> None:
    end = os.fstat(file.fileno()).st_size
    try:
        write_all(file, data)
    except BaseException:
        file.truncate(end)
        raise


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
