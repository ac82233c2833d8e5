"""Notebooks as pages: their text, their code, and the outputs that were committed with them.

Nothing is executed: a test runs the notebooks, and this shows what they gave.
"""

__all__ = ["Tutorial", "read_tutorial"]

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tutorial:
    """A notebook as a page.

    Attributes:
        text: The page, as Markdown.
        images: Its figures, PNG by file name.
    """

    text: str
    images: Mapping[str, bytes]


def read_tutorial(path: Path) -> Tutorial:
    """Reads a notebook.

    Args:
        path: The notebook's file, with outputs.

    Returns:
        Its page.

    Raises:
        ValueError: If an output is of a kind that no page can show.
    """
    images: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += _shown(_joined(cell["outputs"]), path.stem, images)
    return Tutorial("\n\n".join(parts) + "\n", images)


def _joined(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joins what was printed in several moments."""
    printed = ""
    for output in outputs:
        if output["output_type"] == "stream":
            printed += "".join(output["text"])
            continue
        if printed:
            yield {"text": printed}
        printed = ""
        yield output
    if printed:
        yield {"text": printed}


def _shown(
    outputs: Iterator[dict[str, Any]], stem: str, images: dict[str, bytes]
) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}-{len(images) + 1}.png"
            images[name] = base64.b64decode("".join(data["image/png"]))
            yield f"![Figure {len(images)} of this page]({name})"
            continue
        text = output.get("text") or "".join(data.get("text/plain", ""))
        if not text:
            raise ValueError(f"outputs of {stem} must be text or PNG, got {sorted(data)}")
        yield f"```text\n{text.rstrip()}\n```"
