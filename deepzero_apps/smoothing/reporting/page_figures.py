r"""Figures of the report as numbers: steps, bars and ticks in the coordinates of an SVG.

Certified accuracy is the exact step function of the certificates. Its band is the percentile
bootstrap over images, pointwise: resampling :math:`m` zeros and ones of mean :math:`A` gives a
binomial count of :math:`(m, A)`, and the ends are that distribution's quantiles.
"""

__all__ = ["Bar", "Curve", "Frame", "Histogram", "Tick", "accuracy_band", "curve", "histogram"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from deepzero_apps.smoothing.certificates import Certificate, correct_radii

_BAND = (0.025, 0.975)
_BINS = 20


@dataclass(frozen=True)
class Frame:
    """The drawing's size and the edges of its axes, in the SVG's units."""

    width: int = 400
    height: int = 260
    left: int = 46
    right: int = 386
    top: int = 14
    bottom: int = 214

    def x(self, share: float) -> float:
        """Gives the place of a share of the horizontal axis."""
        return round(self.left + share * (self.right - self.left), 2)

    def y(self, share: float) -> float:
        """Gives the place of a share of the vertical axis; 0 is at the bottom."""
        return round(self.bottom - share * (self.bottom - self.top), 2)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A step curve with its band, as SVG paths."""

    frame: Frame
    line: str
    band: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Bar:
    """A bar: its kind, its rectangle, and what it says in words."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    words: str


@dataclass(frozen=True)
class Histogram:
    """Stacked bars."""

    frame: Frame
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def accuracy_band(certificates: Sequence[Certificate], r: float) -> tuple[float, float, float]:
    """Gives certified accuracy at a radius and its 95 % interval.

    Args:
        certificates: The certificates, at least one.
        r: The radius, at least 0.

    Returns:
        The share, and the lower and upper end of its interval.
    """
    reached = correct_radii(certificates)
    share = float((reached >= r).mean())
    low, high = (float(binom.ppf(q, reached.size, share)) / reached.size for q in _BAND)
    return share, low, high


def curve(certificates: Sequence[Certificate]) -> Curve:
    """Draws certified accuracy against radius.

    Args:
        certificates: The certificates, at least one.

    Returns:
        The curve, over radii from 0 to a little past the largest one that counts.
    """
    reached = correct_radii(certificates)
    frame = Frame()
    steps = np.unique(np.append(reached[reached > 0], 0.0))
    longest = float(steps[-1]) * 1.04 or 1.0
    ticks = _round_numbers(longest)
    rows = [(float(r), *accuracy_band(certificates, float(r))) for r in steps]
    shares, lows, highs = ([(row[0], row[i]) for row in rows] for i in (1, 2, 3))
    x_ticks = tuple(Tick(frame.x(value / longest), f"{value:g}") for value in ticks)
    y_ticks = tuple(Tick(frame.y(v / 4), f"{25 * v}") for v in range(5))
    upper, lower = (_stairs(frame, ends, longest) for ends in (highs, lows))
    band = "M" + " L".join([*upper, *reversed(lower)]) + " Z"
    return Curve(frame, "M" + " L".join(_stairs(frame, shares, longest)), band, x_ticks, y_ticks)


def histogram(
    values: Mapping[str, Sequence[float]], low: float, high: float, *, unit: str
) -> Histogram:
    """Draws how often values fall into bins, kinds stacked.

    Args:
        values: Values by kind, all in ``low ... high``.
        low: Where the axis starts.
        high: Where it ends, above ``low``.
        unit: What is counted along it, in words.

    Returns:
        The histogram of 20 bins.
    """
    frame = Frame()
    edges = np.linspace(low, high, _BINS + 1)
    counts = {kind: np.histogram(found, edges)[0] for kind, found in values.items()}
    total = np.sum(list(counts.values()), axis=0)
    most = max(int(total.max()), 1)
    ticks = [t for t in _round_numbers(most) if t == int(t)]
    top = max(most, ticks[-1])
    bars, base = [], np.zeros(_BINS)
    for kind, found in counts.items():
        for place in np.flatnonzero(found):
            x, end = frame.x(place / _BINS), frame.x((place + 1) / _BINS)
            y, height = frame.y((base[place] + found[place]) / top), found[place] / top
            words = f"{found[place]} {kind}: {edges[place]:g} to {edges[place + 1]:g} {unit}"
            tall = round(height * (frame.bottom - frame.top), 2)
            bars.append(Bar(kind, round(x + 0.75, 2), y, round(end - x - 1.5, 2), tall, words))
        base += found
    marks = [low + t for t in _round_numbers(high - low)]
    x_ticks = tuple(Tick(frame.x((m - low) / (high - low)), f"{m:,.6g}") for m in marks)
    y_ticks = tuple(Tick(frame.y(t / top), f"{int(t):,}") for t in ticks)
    return Histogram(frame, tuple(bars), x_ticks, y_ticks)


def _stairs(frame: Frame, ends: Sequence[tuple[float, float]], longest: float) -> list[str]:
    """Corners of a step function, each share holding up to and with its radius."""
    corners, before = [], 0.0
    for r, share in ends:
        y = frame.y(share)
        corners += [f"{frame.x(before / longest)},{y}", f"{frame.x(r / longest)},{y}"]
        before = r
    return [*corners, f"{frame.x(before / longest)},{frame.y(0)}"]


def _round_numbers(end: float) -> list[float]:
    """Four to eight round numbers from 0 to ``end``."""
    step = 10.0 ** math.floor(math.log10(end / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if end / (m * step) < 6)
    return [round(i * step, 10) for i in range(int(end / step + 1e-9) + 1)]
