"""The report: its numbers, its figures, and that it needs and runs nothing else."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.reporting.page import page, write_page
from tests.smoothing.sound_certificates import sound

_VOID = {"meta", "br", "img", "link", "input", "hr"}
_ONE = sound(0)


def many(count: int) -> list[Certificate]:
    """Right ones with radii .01 apart from .1 on; every seventh wrong, every tenth abstained."""
    found = []
    for i in range(count):
        change: dict[str, Any] = {"index": i, "radius": round(0.1 + 0.01 * (i % 50), 4)}
        if i % 10 == 9:
            change |= {
                "predicted": -1,
                "correct": False,
                "radius": 0.0,
                "votes": 50,
                "other_votes": 50,
            }
        elif i % 7 == 6:
            change |= {"label": 0, "correct": False}
        found.append(replace(_ONE, **change))
    return found


class Page(HTMLParser):
    """Opens and closes in order; keeps text, attributes and rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def test_the_table_has_the_shares_of_the_certificates() -> None:
    certificates = many(100)

    rows = Page(page(certificates, radii=(0.0, 0.35, 9.0))).rows

    right = [c.radius for c in certificates if c.correct]
    for row, r in zip(rows[1:4], (0.0, 0.35, 9.0), strict=True):
        assert row[0] == f"{r:g}"
        assert row[1] == f"{100 * sum(x >= r for x in right) / 100:.1f} %"
    share = len(right) / 100
    chances = [math.comb(100, k) * share**k * (1 - share) ** (100 - k) for k in range(101)]
    ends = [next(k for k in range(101) if sum(chances[: k + 1]) >= q) for q in (0.025, 0.975)]
    assert rows[1][2] == f"{ends[0]:.1f} to {ends[1]:.1f}"


def test_radii_that_were_decided_are_those_of_the_table() -> None:
    settings = Settings(sigma=0.5, n0=10, n=100, procedure="decide", radii=(0.2, 0.3))

    rows = Page(page([replace(c, settings=settings) for c in many(9)])).rows

    assert [row[0] for row in rows[1:4]] == ["0", "0.2", "0.3"]


def test_key_numbers_and_expected_false_certificates_are_told() -> None:
    words = Page(page(many(40), price=0.01, queries=5000)).words

    assert "queries 5,000 125 an image" in words
    assert "cost 50.00 at 0.01 a query" in words
    assert "Of these 40, at most 0.04 are expected to be false" in words  # alpha .001
    assert "No radius can exceed 0.7502" in words
    assert "abstained 4 of 40 images" in words
    assert f"average radius {sum(c.radius for c in many(40) if c.correct) / 40:.3f}" in words


def test_it_loads_and_runs_nothing_and_is_small() -> None:
    images = torch.rand(3000, 3, 96, 96, dtype=torch.float32)

    text = page(many(3000), images=images)

    found = Page(text)
    assert len(text.encode()) < 1_000_000
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#hatch)", text)
    assert all(value.startswith("data:image/png;base64,") for value in found.values("img", "src"))
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert len(set(found.values("svg", "aria-labelledby"))) == 2


def test_names_and_findings_are_escaped() -> None:
    evil = '<img src=x onerror="alert(1)">&'
    certificates = [replace(c, findings=(evil,)) for c in many(5)]

    text = page(certificates, title=evil, images=torch.rand(5, 1, 4, 4), classes=[evil] * 3)

    found = Page(text)
    assert text.count("<img ") == 5
    assert not [name for _, name, _ in found.attributes if name == "onerror"]
    assert found.words.count(evil) >= 3


def test_findings_stand_out_and_are_told_once() -> None:
    certificates = [replace(c, findings=("drift: it changed",)) for c in many(5)]

    text = page(certificates)

    assert text.index("drift: it changed") < text.index('class="numbers"')
    assert text.count("drift: it changed") == 1
    assert 'role="alert"' not in page(many(5))


def test_pictures_hold_the_pixels_that_were_given() -> None:
    images = torch.rand(3, 3, 5, 4)

    found = Page(page(many(3), images=images, classes=("ape", "bee", "cow")))

    sources = found.values("img", "src")
    expected = {tuple((image * 255).round().byte().flatten().tolist()) for image in images}
    decoded = [base64.b64decode(source.split(",")[1]) for source in sources]
    arrays = [np.asarray(Image.open(io.BytesIO(data))) for data in decoded]
    assert {tuple(array.transpose(2, 0, 1).ravel().tolist()) for array in arrays} == expected
    assert found.values("img", "class") == ["coarse"] * 3
    assert found.words.count("✓ bee") == 3
    assert "0.1200" in found.words


def test_right_wrong_and_abstained_differ_without_color() -> None:
    found = Page(page(many(200), images=torch.rand(200, 1, 4, 4)))

    assert set(found.values("li", "class")) == {"right", "wrong", "abstained"}
    assert len(found.values("li", "class")) == 60
    assert found.values("li", "class").count("wrong") == 12
    assert {"✓", "✗", "–"} <= set(found.words)
    assert set(found.values("rect", "class")) == {"right", "wrong", "abstained"}


@pytest.mark.parametrize("kind", ["wrong", "abstained"])
def test_nothing_certified_rightly_is_still_a_page(kind: str) -> None:
    none = {"predicted": -1, "correct": False, "radius": 0.0}
    change = none if kind == "abstained" else {"label": 0, "correct": False}
    stopped = {"votes": 0, "other_votes": 0, "asked": 10} if kind == "abstained" else {}

    rows = Page(page([replace(_ONE, **change, **stopped)])).rows

    assert rows[1][1:] == ["0.0 %", "0.0 to 0.0", "0.0 %"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"certificates": []}, "at least one certificate"),
        ({"price": -1}, "price must be"),
        ({"price": float("nan")}, "price must be"),
        ({"images": torch.rand(5, 4, 4)}, "images must be of shape"),
        ({"images": torch.rand(2, 1, 4, 4)}, "images must hold image 2, got 2 images"),
        ({"radii": (-1.0,)}, "radii must be"),
        (
            {"certificates": [_ONE, sound(1, settings=Settings(sigma=1, n0=10, n=100))]},
            "one setting",
        ),
    ],
)
def test_what_makes_no_page_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(**{"certificates": many(3), **arguments})


def test_the_file_holds_the_page(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", many(3), title="✓")

    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(many(3), title="✓")


def test_a_run_that_is_not_over_says_nothing_of_a_population() -> None:
    whole, part = page(many(30)), page(many(30), complete=False)

    assert "random sample" in whole
    assert "This run is not over" not in whole
    assert "random sample" not in part
    assert "This run is not over" in part
    assert part.count(">open<") == 4
