"""The documents against the program: code on every page runs, its commands parse or run."""

import contextlib
import importlib
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from deepzero_apps.cli import main
from deepzero_apps.cli.verbs import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT / "docs")) for path in PAGES]

# What begins with this in a block's title is read here and not run; the reader sees it.
MARK = "Not run in CI"
# How many such blocks a page may have. Whoever adds one adds it here, and says why in its title.
NOT_RUN = {
    "how-to/machines.md": 1,
    "index.md": 1,
    "reproduction.md": 3,
}
SHELLS = ("console", "bash")
# Commands of others, which are shown and not run.
OTHERS = ("cd", "git", "make", "mkdocs", "pip", "python", "ray", "tensorboard", "mlflow", "export")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands after the fence.
        title: Its title, shown to readers: a file's name, or why it is not run.
        text: What it holds.
        line: Where it begins.
    """

    language: str
    title: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        """Whether it is run here."""
        return not self.title.startswith(MARK)

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        return self.title if re.fullmatch(r"[\w-]+\.\w+", self.title) else None

    def commands(self) -> list[str]:
        """Its lines, joined where they go on."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        return [line for line in joined.splitlines() if line and not line.startswith("#")]


def blocks(path: Path) -> list[Block]:
    """Reads the fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(
        r"^```(?P<kind>\w+)(?P<rest>[^\n]*)\n(?P<text>.*?)^```$", text, re.DOTALL | re.MULTILINE
    )
    return [
        Block(
            m["kind"],
            "".join(re.findall(r'title="([^"]*)"', m["rest"])),
            m["text"],
            text.count("\n", 0, m.start()) + 1,
        )
        for m in found
    ]


def told(wanted: str, got: str) -> bool:
    """Whether a text says what a page promises; ``...`` stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in wanted.split("...")]
    return re.fullmatch(r"\s*" + r".*?".join(parts) + r"\s*", " ".join(got.split())) is not None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a page's own, from which its modules are imported, and torch's own dtype."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.set_default_dtype(torch.float32)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and str(tmp_path) in file:
            del sys.modules[name]


def ran(block: Block, names: dict[str, Any], page: str) -> str:
    """Runs a block and returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.language == "python":
            code = "\n" * block.line + block.text
            exec(compile(code, page, "exec"), names)  # noqa: S102 - what the page shows
        else:
            for command in own(block):
                assert main(shlex.split(command, comments=True)[1:]) == 0, f"{page}: {command}"
    return printed.getvalue()


def own(block: Block) -> list[str]:
    """The commands of this package; others must be known."""
    words = [(command, command.split()[0]) for command in block.commands()]
    assert [command for command, word in words if word not in (*OTHERS, "deepzero-apps")] == []
    return [command for command, word in words if word == "deepzero-apps"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_what_a_page_shows_runs_and_prints_what_it_promises(path: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    said: str | None = None
    for block in blocks(path):
        if block.file is not None:
            (place / block.file).write_text(block.text, encoding="utf-8")
            importlib.invalidate_caches()
        elif block.language in ("python", *SHELLS):
            said = ran(block, names, path.name) if block.runs else None
        elif block.language == "text" and said is not None:
            assert told(block.text, said), f"{path.name}:{block.line}: {said}"
            said = None


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_are_understood(path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    understood: list[object] = []
    for command in COMMANDS.values():
        module = import_module(f"deepzero_apps.cli.{command.module}")
        monkeypatch.setattr(module, "run", lambda settings: understood.append(settings) or 0)
    page = blocks(path)
    for block in page:
        if block.file is not None:
            (place / block.file).write_text(block.text, encoding="utf-8")
    shell = [block for block in page if block.file is None and block.language in SHELLS]
    commands = [line for block in shell for line in own(block)]

    codes = {}
    for command in commands:
        for folder in re.findall(r"--run (\S+)", command):
            (place / folder).mkdir(parents=True, exist_ok=True)
        codes[command] = main(shlex.split(command, comments=True)[1:])

    assert {command: code for command, code in codes.items() if code != 0} == {}
    assert len(understood) == len(codes)


def test_python_that_is_not_run_is_python() -> None:
    for path in PAGES:
        for block in blocks(path):
            if block.language == "python" and not block.runs:
                compile(block.text, path.name, "exec")


def test_blocks_that_are_not_run_are_few_and_known() -> None:
    found = Counter(
        name
        for name, path in zip(NAMES, PAGES, strict=True)
        for block in blocks(path)
        if not block.runs
    )

    assert dict(found) == NOT_RUN


def test_every_fence_is_one_that_is_read() -> None:
    # A fence that is indented or has no language would be neither run nor counted.
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(path)), path.name
        assert [b.line for b in blocks(path) if not b.runs and b.title == MARK] == [], path.name
