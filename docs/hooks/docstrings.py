r"""Docstrings as Markdown: their formulas, tables, roles and references are reStructuredText.

============================ ===========================================
in a docstring               on a page
============================ ===========================================
``.. math::`` and a block    a formula in a line of its own
``:math:`x```                a formula in the text
``:func:`name``` and others  the name, as code
a table between ``====``     a table
lines that begin with ``|``  an item of a list, addresses as links
``| this | that``            an item of a list, this: that
``::`` at the end of a line  a colon before an indented block of code
``Example:``                 ``Examples:``, the section that is known
============================ ===========================================
"""

__all__ = ["Markdown", "to_markdown"]

import re
from collections import deque
from collections.abc import Iterator
from itertools import groupby

import griffe

_FORMULA = re.compile(r"^( *)\.\. math::[ ]*$")
_ITEM = re.compile(r"^(?:- |\d+\. )")
_MATH = re.compile(r":math:`([^`]*)`")
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]*)`")
_RULE = re.compile(r"^ *=+( +=+)+ *$")
_ROW = re.compile(r"^ *\| ([^|\n]+\|[^\n]*[^|\n])$", re.MULTILINE)
_SECTION = re.compile(r"^[A-Z]\w+:$")
_REFERENCE = re.compile(r"^ *\| .*(?<!\|)$")
_LITERAL = re.compile(r"(?<=[^:\s])::$", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_ADDRESS = re.compile(r"(?<![<(\"])(https?://\S+?)(?=[,;.]?(?:\s|$))")


class Markdown(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrites one."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Turns a docstring of this package into Markdown.

    Args:
        text: A docstring without its indentation.

    Returns:
        The same as Markdown; what is Markdown already stays as it is.
    """
    for convert in (_with_tables, _with_wide_items, _with_formulas):
        text = "\n".join(convert(text.splitlines()))
    text = _MATH.sub(lambda m: rf"\({' '.join(m[1].split())}\)", text)
    text = _ROLE.sub(r"`\1`", text)
    text = _LITERAL.sub(":", text)
    text = _EXAMPLE.sub("Examples:", text)
    text = _ROW.sub(_item, text)
    return "\n".join(_with_references(text.splitlines()))


def _item(row: re.Match[str]) -> str:
    name, *others = (cell.strip() for cell in row[1].split("|"))
    return f"- {name}: {'; '.join(others)}"


def _with_formulas(lines: list[str]) -> Iterator[str]:
    rest = deque(lines)
    while rest:
        line = rest.popleft()
        if found := _FORMULA.match(line):
            block = ("$$", *_block(rest), "$$")
            yield from ("", *(found[1] + part for part in block), "")
        else:
            yield line


def _block(rest: deque[str]) -> list[str]:
    """Takes the lines that are indented as far as the first one, or further."""
    while rest and not rest[0].strip():
        rest.popleft()
    depth = _depth(rest[0]) if rest else 0
    taken = []
    while rest and (not rest[0].strip() or _depth(rest[0]) >= depth):
        taken.append(rest.popleft().strip())
    return [line for line in taken if line]


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _with_wide_items(lines: list[str]) -> Iterator[str]:
    """Lists whose items go on four columns in, as Markdown wants it, and not two or three."""
    width = 0
    for line in lines:
        if found := _ITEM.match(line):
            width = len(found[0])
        elif line[:1].strip():
            width = 0
        yield " " * 4 + line[width:] if width and line.startswith(" " * width) else line


def _with_tables(lines: list[str]) -> Iterator[str]:
    for blank, run in groupby(lines, key=lambda line: not line.strip()):
        block = list(run)
        rules = [i for i, line in enumerate(block) if _RULE.match(line)]
        yield from block if blank or len(rules) < 2 else _table(block, rules)


def _table(block: list[str], rules: list[int]) -> Iterator[str]:
    """A table between its first and its last rule; what is between the first two is its head."""
    top, bottom = rules[0], rules[-1]
    spans = [match.span() for match in re.finditer("=+", block[top])]
    middle = rules[1] if len(rules) > 2 else top
    head = _rows(spans, block[top + 1 : middle]) or [[""] * len(spans)]
    titles = [" ".join(words).strip() for words in zip(*head, strict=True)]
    yield from (*block[:top], "")
    for cells in (titles, ["---"] * len(spans), *_rows(spans, block[middle + 1 : bottom])):
        yield f"{' ' * spans[0][0]}| {' | '.join(cells)} |"
    yield from ("", *block[bottom + 1 :])


def _rows(spans: list[tuple[int, int]], lines: list[str]) -> list[list[str]]:
    """The cells of each row; a line whose first cell is empty goes on with the row before."""
    ends = [start for start, _ in spans[1:]] + [None]
    rows: list[list[str]] = []
    for line in lines:
        cells = [line[start:end].strip() for (start, _), end in zip(spans, ends, strict=True)]
        cells = [re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells]
        if rows and not cells[0]:
            rows[-1:] = [[f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]]
        else:
            rows.append(cells)
    return rows


def _with_references(lines: list[str]) -> Iterator[str]:
    in_section = False
    for is_reference, run in groupby(lines, key=lambda line: bool(_REFERENCE.match(line))):
        found = list(run)
        if not is_reference:
            heads = [line for line in found if line[:1].strip()]
            in_section = bool(_SECTION.match(heads[-1])) if heads else in_section
            yield from found
            continue
        parts = [line.strip().removeprefix("| ").rstrip(",") for line in found]
        item = _ADDRESS.sub(r"<\1>", ", ".join(parts).replace(", (", " ("))
        yield f"{' ' * _depth(found[0]) * in_section}- {item}"
