r"""Formulas of a page as MathML, made when the site is built, so that readers need no script.

The Markdown extension `arithmatex` marks what stands in ``$...$``, ``$$...$$`` and ``\(...\)``;
this hook puts MathML there, which browsers draw by themselves. A ``\tag{1}`` becomes the number at
the right of its formula.
"""

__all__ = ["mathml", "on_page_content"]

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<formula>.*?)</(?P=tag)>', re.DOTALL
)
_TAG = re.compile(r"\\tag\{(.*?)\}")
_LEFT = re.compile(r"(?<!left)\\(?=l[vV]ert)")
_RIGHT = re.compile(r"(?<!right)\\(?=r[vV]ert)")
_BARS = re.compile(r"\|(?P<inner>[^|]*)\|")
_SIZED = re.compile(r"(?:\\|[Bb]igg?|left|right)\|")
_OPERATORS = re.compile(r"\\(arg|sinh|cosh)(?![a-z])")


def mathml(formula: str, *, display: bool) -> str:
    r"""Turns LaTeX into MathML.

    Args:
        formula: LaTeX without delimiters; may hold a ``\tag``.
        display: Whether it stands in a line of its own.

    Returns:
        The ``math`` element, and after it the number of a tagged formula.

    Raises:
        ValueError: If a command of the formula is unknown.
    """
    numbers = _TAG.findall(formula)
    bare = _OPERATORS.sub(r"\\operatorname{\1}", _TAG.sub("", formula)).strip()
    element = convert(_with_paired_bars(bare), display="block" if display else "inline")
    unknown = re.findall(r"\\[a-zA-Z]+", element)
    if unknown:
        raise ValueError(f"formula must use known commands, got {unknown[0]} in {formula!r}")
    return element + "".join(f'<span class="number">({number})</span>' for number in numbers)


def _with_paired_bars(formula: str) -> str:
    """Says which bar opens and which closes: else both get the space of an operator."""
    if formula.count("|") % 2 == 0 and not _SIZED.search(formula):
        formula = _BARS.sub(r"\\lvert \g<inner>\\rvert ", formula)
    return _RIGHT.sub(r"\\right\\", _LEFT.sub(r"\\left\\", formula))


def on_page_content(content: str, *, page: Page, **_: object) -> str:
    """Replaces every marked formula of a finished page."""

    def replaced(found: re.Match[str]) -> str:
        display = found["tag"] == "div"
        formula = html.unescape(found["formula"]).strip()[2:-2]  # without the delimiters
        try:
            element = mathml(formula, display=display)
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: {formula}: {error}") from error
        kind = "formula" if display else "inline-formula"
        return f'<{found["tag"]} class="{kind}">{element}</{found["tag"]}>'

    return _MARKED.sub(replaced, content)
