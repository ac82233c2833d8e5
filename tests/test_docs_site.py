"""The documentation site: its hooks against small inputs, and the whole of it built without a warning."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepzero_apps.cli.verbs import COMMANDS
from docs.hooks.command_line import reference
from docs.hooks.docstrings import to_markdown
from docs.hooks.formulas import mathml
from docs.hooks.notebooks import read_tutorial

ROOT = Path(__file__).parents[1]


def test_a_formula_becomes_elements_and_its_tag_a_number_beside_it() -> None:
    element = mathml(r"\frac{a}{b} \tag{3}", display=True)

    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in element
    assert 'display="block"' in element
    assert element.endswith('</math><span class="number">(3)</span>')


@pytest.mark.parametrize("formula", ["2 |S|", r"2 \lvert S\rvert"])
def test_bars_know_which_of_them_opens(formula: str) -> None:
    element = mathml(formula, display=False)

    assert re.findall(r'form="(\w+)"', element) == ["prefix", "postfix"]


@pytest.mark.parametrize("formula", ["P(a|b)", r"l\big|_s + m\big|_s"])
def test_single_bars_stay_single(formula: str) -> None:
    assert "fence" not in mathml(formula, display=False)


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(ValueError, match=r"known commands, got \\nonsense"):
        mathml(r"a \nonsense b", display=False)


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("step :math:`\\mu >\n0` of", "step \\(\\mu > 0\\) of"),
        ("see :func:`ask` and :class:`~a.B`", "see `ask` and `a.B`"),
        ("Is\n\n.. math::\n    a\n\n    b\n\nand", "Is\n\n\n$$\na\nb\n$$\n\nand"),
        (
            "- one:\n\n  .. math::\n      a\n\n  two",
            "- one:\n\n\n    $$\n    a\n    $$\n\n    two",
        ),
        ("- one\n\n.. math::\n    a\n\n  two", "- one\n\n\n$$\na\n$$\n\n  two"),
        ("| A (B, 2020)\n| https://a.b/c", "- A (B, 2020), <https://a.b/c>"),
        ("No section.\n\n    | A\n    | b", "No section.\n\n- A, b"),
        ("References:\n    | A\n    | b\n\n    | C", "References:\n    - A, b\n\n    - C"),
        ("    | what | :class:`Who`", "- what: `Who`"),
        ("    | a | b  | c", "- a: b; c"),
        ("In C::\n\n    x;", "In C:\n\n    x;"),
        ("Example:\n    >>> 1", "Examples:\n    >>> 1"),
        ("Plain `code` and *words*.\n\n1. a\n2. b", "Plain `code` and *words*.\n\n1. a\n2. b"),
    ],
)
def test_a_docstring_becomes_markdown(docstring: str, markdown: str) -> None:
    assert to_markdown(docstring) == markdown


def test_a_table_keeps_its_cells_and_joins_what_goes_on() -> None:
    table = (
        "==== =======\nname cost\n==== =======\n`a`  \\|S\\|\n`b`  long\n     words\n==== ======="
    )

    rows = [line for line in to_markdown(table).splitlines() if line]

    assert rows == ["| name | cost |", "| --- | --- |", r"| `a` | \|S\| |", "| `b` | long words |"]


def test_a_notebook_shows_its_text_its_code_and_what_it_printed(tmp_path: Path) -> None:
    picture = base64.b64encode(b"PNG").decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n"]},
        {"output_type": "stream", "name": "stdout", "text": ["two\n"]},
        {"output_type": "display_data", "data": {"image/png": picture, "text/plain": "figure"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": outputs},
    ]
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps({"cells": cells}))

    tutorial = read_tutorial(path)

    figure = "![Figure 1 of this page](lesson-1.png)"
    code = "```python\nprint(1)\n```\n\n```text\none\ntwo\n```"
    assert tutorial.text == f"# Title\n\n{code}\n\n{figure}\n"
    assert tutorial.images == {"lesson-1.png": b"PNG"}


def test_an_output_that_no_page_can_show_is_refused(tmp_path: Path) -> None:
    output = {"output_type": "display_data", "data": {"application/widget": "x"}}
    path = tmp_path / "lesson.ipynb"
    path.write_text(
        json.dumps({"cells": [{"cell_type": "code", "source": "x", "outputs": [output]}]})
    )

    with pytest.raises(ValueError, match=r"must be text or PNG, got \['application/widget'\]"):
        read_tutorial(path)


def test_the_reference_of_the_command_line_has_every_command_and_every_flag() -> None:
    text = reference()

    assert re.findall(r"^## deepzero-apps (.*)$", text, re.MULTILINE) == list(COMMANDS)
    rows = [line for line in text.splitlines() if line.startswith(("| `--", "| `"))]
    assert [row for row in rows if row.rstrip(" |").endswith("|")] == []  # all have help
    row = next(row for row in rows if row.startswith("| `--alpha`"))
    assert row.startswith("| `--alpha` | NUMBER | `0.001` | ")
    assert "| `FOLDERS` | PATH ... | `runs` |" in text
    assert text.count("| `--json` |") == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_a_reader_needs_no_network_and_sees_every_formula(site: Path) -> None:
    pages = {path.relative_to(site): path.read_text() for path in site.rglob("*.html")}

    loaded = r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"|<link[^>]*stylesheet[^>]*(https?:)'
    assert {str(page): re.findall(loaded, text) for page, text in pages.items()} == {
        str(page): [] for page in pages
    }
    left = r"arithmatex|:math:|\.\. math::|:class:|:func:|=====|<code>- |\$\$"
    assert {
        str(p): re.findall(left, text) for p, text in pages.items() if re.search(left, text)
    } == {}
    assert sum(text.count("<math ") for text in pages.values()) > 400


@pytest.mark.slow
def test_the_public_surface_is_on_the_site(site: Path) -> None:
    from tests.test_public_surface import SURFACE

    text = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    missing = [
        f"{package}.{name}"
        for package, names in SURFACE.items()
        for name in names
        if package.count(".") and package != "deepzero_apps.cli"
        if not re.search(rf'id="{re.escape(package)}[\w.]*\.{re.escape(name)}"', text)
    ]

    assert missing == []


@pytest.mark.slow
def test_measurements_and_tutorials_are_pages(site: Path) -> None:
    for path in (ROOT / "benchmarks/results").glob("*.md"):
        assert (site / "results" / f"{path.stem}.html").exists()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert "<img " in (site / "tutorials" / f"{path.stem}.html").read_text()
