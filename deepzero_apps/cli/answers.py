"""Where a command's result goes as JSON: a file, or standard output with nothing else on it."""

__all__ = ["json_apart", "write_json"]

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from deepzero_apps.cli.settings import STANDARD_OUTPUT

_OUTPUT: ContextVar[TextIO | None] = ContextVar("standard output", default=None)


@contextmanager
def json_apart(path: Path | None) -> Iterator[None]:
    """Keeps standard output for the JSON, if it is to go there; what else is printed goes beside.

    Args:
        path: Where the result is to go.
    """
    if path != STANDARD_OUTPUT:
        yield
        return
    token = _OUTPUT.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _OUTPUT.reset(token)


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Writes a result as JSON, if it is wanted; a file that was there stays if that fails.

    Args:
        path: The file, or ``-`` for standard output.
        document: The result, of JSON's types.
    """
    if path is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if path == STANDARD_OUTPUT:
        output = _OUTPUT.get() or sys.stdout
        output.write(text)
        output.flush()
    elif path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe or a terminal cannot be replaced
    else:
        from deepzero_apps.runs.files import replace

        replace(path, text.encode())
