"""Figures as numbers: where steps, bars and ticks stand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from deepzero_apps.smoothing.reporting.page_figures import accuracy_band, curve, histogram
from tests.smoothing.sound_certificates import sound

RADII = (0.1, 0.1, 0.25, 0.4)


def certificates() -> list[object]:
    return [replace(sound(i), radius=r) for i, r in enumerate(RADII)]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


def test_the_line_falls_behind_each_radius() -> None:
    drawn = curve(certificates())  # type: ignore[arg-type]

    frame, longest = drawn.frame, 0.4 * 1.04
    corners = [
        ((x - frame.left) / (frame.right - frame.left) * longest,
         (frame.bottom - y) / (frame.bottom - frame.top))
        for x, y in points(drawn.line)
    ]  # fmt: skip
    expected = [
        (0, 1), (0, 1), (0, 1), (0.1, 1), (0.1, 0.5), (0.25, 0.5), (0.25, 0.25), (0.4, 0.25), (0.4, 0),
    ]  # fmt: skip
    # coordinates have two decimals, of 340 and 200 units for the two axes
    assert np.allclose(corners, expected, atol=1e-4)


def test_the_band_has_the_quantiles_of_the_binomial() -> None:
    share, low, high = accuracy_band(certificates(), 0.2)  # type: ignore[arg-type]

    tails = [binom.cdf(k, 4, 0.5) for k in range(5)]
    assert share == 0.5
    assert low == next(k for k in range(5) if tails[k] >= 0.025) / 4
    assert high == next(k for k in range(5) if tails[k] >= 0.975) / 4


def test_bars_stack_and_count_every_value() -> None:
    values = {"a": [0.02, 0.03, 0.52], "b": [0.04, 1.0]}

    drawn = histogram(values, 0.0, 1.0, unit="things")

    height = drawn.frame.bottom - drawn.frame.top
    unit = height / 3  # three values share the highest bar
    assert [(bar.kind, round(bar.height / unit)) for bar in drawn.bars] == [
        ("a", 2), ("a", 1), ("b", 1), ("b", 1),
    ]  # fmt: skip
    first, _, above, last = drawn.bars
    assert above.x == first.x
    assert math.isclose(above.y + above.height, first.y, abs_tol=0.02)
    assert last.words == "1 b: 0.95 to 1 things"


@pytest.mark.parametrize("end", [1e-4, 0.3, 1.0, 7.0, 103.0, 12_345.0])
def test_ticks_are_few_and_inside(end: float) -> None:
    drawn = histogram({"a": [end / 2]}, 0.0, end, unit="things")

    places = [tick.at for tick in drawn.x_ticks]
    assert 3 <= len(places) <= 7
    assert places[0] == drawn.frame.left
    assert max(places) <= drawn.frame.right
    assert len({tick.label for tick in drawn.x_ticks}) == len(places)
    assert {tick.label for tick in drawn.y_ticks} <= {"0", "1"}
