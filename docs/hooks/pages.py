"""What the site shows from outside of ``docs``, and links that hold here and in the repository.

The changelog, the measurements and the notebooks stay where they are and become pages. A page's links
are those of the repository, where its source is read too; here they are turned to the pages
that show the same.
"""

__all__ = ["on_files", "on_page_markdown"]

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from command_line import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from notebooks import read_tutorial

_ROOT = Path(__file__).parents[2]
_TAKEN = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_MEASURED = Path("benchmarks/results")
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
_COMMANDS = "<!-- commands -->"
_MADE = re.compile(r"<!-- (surface|modules) of (\S+) -->")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are not below ``docs``."""
    for source, page in _places().items():
        path = _ROOT / source
        if path.suffix != ".ipynb":
            files.append(File.generated(config, page, abs_src_path=str(path)))
            continue
        tutorial = read_tutorial(path)
        files.append(File.generated(config, page, content=tutorial.text))
        for name, image in tutorial.images.items():
            files.append(File.generated(config, f"tutorials/{name}", content=image))
    return files


def on_page_markdown(text: str, *, page: Page, **_: object) -> str:
    """Turns links to pages, and fills in what is made from the program."""
    if _COMMANDS in text:
        text = text.replace(_COMMANDS, reference())
    made = {"surface": _surface, "modules": _modules}
    text = _MADE.sub(lambda found: "\n".join(made[found[1]](found[2], text)), text)
    places = _places()
    here = page.file.src_uri
    source = {place: name for name, place in places.items()}.get(here, f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        link = found[1]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        place = places.get(target, "index.md" if target == "README.md" else None)
        if "://" in link or place is None:
            return link
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return _LINK.sub(turned, text)


def _places() -> dict[str, str]:
    """From files of the repository to the pages that show them."""
    measured = (path for path in (_ROOT / _MEASURED).iterdir() if path.is_file())
    lessons = (_ROOT / "notebooks").glob("*.ipynb")
    return {
        **_TAKEN,
        **{f"{_MEASURED}/{path.name}": f"results/{path.name}" for path in sorted(measured)},
        **{f"notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in sorted(lessons)},
    }


def _surface(package: str, _: str) -> Iterator[str]:
    """A package's docstring, then every name that it exports, from where it is defined.

    By path, since a function may bear the name of its module.
    """
    tree = ast.parse((_folder(package) / "__init__.py").read_text(encoding="utf-8"))
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    yield _block(package, members=False, show_root_heading=False, show_root_toc_entry=False)
    for name in sorted(origins, key=str.lower):
        yield _block(origins[name], show_root_full_path=False)


def _modules(package: str, page: str) -> Iterator[str]:
    """The docstring of every module that is not whole on the page: its mathematics."""
    for path in sorted(_folder(package).rglob("*.py")):
        name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        if path.name != "__init__.py" and f"::: {name}\n" not in page:
            yield _block(name, members=False, heading_level=3)


def _folder(package: str) -> Path:
    return _ROOT / package.replace(".", "/")


def _block(name: str, **options: bool | int) -> str:
    """What mkdocstrings replaces by an object's documentation."""
    lines = [f"      {key}: {str(value).lower()}" for key, value in options.items()]
    return "\n".join([f"::: {name}", "    options:", *lines, ""] if lines else [f"::: {name}", ""])
