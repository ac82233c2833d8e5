r"""A TorchScript archive looked through before torch opens it.

``torch.jit.load`` runs no Python, but the code in the archive calls any operator of torch. Two of
them reach files: ``torch.save`` writes one, and ``torch.from_file`` maps one, which may then be
overwritten; a method ``__setstate__`` runs as early as the file is loaded. A program that has a
word for either is refused, as are operators from elsewhere than torch's own arithmetic.

Its parsers are written in C++ for files that torch wrote. An expression of ten thousand levels
overflows the stack and ends the process; a text of four gigabytes that is announced and does not
come is allocated. Both are counted here first.

What is opened in the end is a copy of what was looked at, each part once: two readers of zip files may
disagree on a strange one.
"""

__all__ = ["SPACES", "checked_script"]

import io
import pickletools
import re
import zipfile
from collections.abc import Iterable

SPACES = "aten|prims?|quantized|quantized_decomposed|torchvision"
"""Where operators may come from, as a part of a regular expression."""

_FILES = re.compile(r"\b(save|from_file)\b")
_FOREIGN = re.compile(rf"(?<![.\w])ops\s*\.\s*(?!({SPACES})\b)")
_ESCAPED = re.compile(r"\\[xuUN0-7]")  # by which `getattr` could spell a word without its letters

_LEVEL = re.compile(r"[(\[{]|[)\]}]|\n[ \t]*|[-+~*/%.<>=]|\b(?:if|else|not|and|or)\b")
_MOST_LEVELS = 2000
"""Signs that may nest in one expression: 10,000 overflow a stack of 8 MiB."""

_WIDEST = 200
"""Blanks that a line may begin with: four for each loop inside of another."""

_MOST_WRAPS = 100
"""Values of a pickle that may stand around each other."""


def checked_script(archive: zipfile.ZipFile, entries: Iterable[str], name: str) -> bytes:
    """Copies a TorchScript archive.

    Args:
        archive: The archive.
        entries: The names of its parts, each once.
        name: What to call the file in messages.

    Returns:
        The copy, as a zip archive. Positions in the source, for messages alone, are left out.

    Raises:
        ValueError: If code could reach a file, or a part could end the process.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as written:
        for entry in entries:
            if entry.rpartition("/")[2] == "model.json":
                raise ValueError(f"{name} must be of a form newer than PyTorch 1.4; save it anew")
            part = archive.read(entry)
            if entry.endswith(".debug_pkl"):
                continue
            if entry.endswith(".py"):
                _check_code(part.decode("utf-8", errors="replace"), name)
            if entry.endswith(".pkl"):
                _check_values(part, f"{name}: {entry!r}")
            written.writestr(entry, part)
    return copy.getvalue()


def _check_code(code: str, name: str) -> None:
    for pattern in (_FILES, _FOREIGN):
        if found := pattern.search(code):
            line = code[: found.start()].count("\n")
            raise ValueError(
                f"{name} must be made of torch's own arithmetic and reach no file, got "
                f"{code.split(chr(10))[line].strip()[:60]!r}"
            )
    if "getattr" in code and _ESCAPED.search(code):
        raise ValueError(f"{name} must spell out its names, got an escape in a text")
    _check_levels(code, name)


def _check_levels(code: str, name: str) -> None:
    """Refuses expressions that might nest too deeply; a line ends one where no bracket is open."""
    open_brackets = levels = 0
    for match in _LEVEL.finditer(code):
        sign = match[0]
        if sign[0] == "\n":
            if open_brackets <= 0:
                open_brackets = levels = 0
            if len(sign) > _WIDEST:
                raise ValueError(f"{name} must not have lines of more than {_WIDEST} blanks")
            continue
        open_brackets += (sign in "([{") - (sign in ")]}")
        levels += 1
        if levels > _MOST_LEVELS:
            raise ValueError(
                f"{name} must not have expressions of more than {_MOST_LEVELS} signs, got one"
            )


def _check_values(values: bytes, name: str) -> None:
    """Refuses a pickle, which torch's own parser will read, that announces more than it has.

    Nothing is unpickled: the codes are looked at one by one.
    """
    count = wraps = 0
    try:
        for code, argument, _ in pickletools.genops(values):
            count += 1
            if code.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise ValueError(f"it puts down more than it has, {argument} after {count}")
            wraps = wraps + 1 if code.name in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE") else 0
            if wraps > _MOST_WRAPS:
                raise ValueError(f"more than {_MOST_WRAPS} values stand around each other")
    except Exception as error:  # pickletools raises what its parts raise
        raise ValueError(f"{name} must hold the values of a program: {error}") from error
