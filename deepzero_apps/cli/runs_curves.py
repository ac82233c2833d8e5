"""Curves of runs over each other: losses, validation accuracies, certified accuracies."""

__all__ = ["draw_runs"]

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepzero_apps.cli.found_runs import FoundRun, certificates_of, metrics_of
from deepzero_apps.foreign.text import printable
from deepzero_apps.runs.files import explained, replace
from deepzero_apps.runs.tracking import numbers
from deepzero_apps.smoothing.certificates import correct_radii
from deepzero_apps.smoothing.journal import JournalError

# Okabe and Ito's colors, told apart by color-blind readers; styles tell them apart in gray.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MANY = 200  # rows from which a curve is drawn as its running mean, pale behind it the rows
_WIDTH, _HEIGHT = 4.4, 3.3
_LINE = 0.24  # height of a line of the legend, inches


@dataclass(frozen=True)
class _Curve:
    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class _Panel:
    title: str
    x: str
    y: str
    curves: tuple[_Curve, ...]
    logarithmic: bool = False
    steps: bool = False


def draw_runs(runs: Mapping[str, FoundRun], path: Path) -> bool:
    """Draws the curves that runs have, a panel for each kind of curve.

    Args:
        runs: The runs, by the names that the legend gives them.
        path: The picture to write; its suffix says the format.

    Returns:
        Whether there was anything to draw; nothing is written otherwise.

    Raises:
        RunFolderError: If the picture cannot be written.
    """
    panels = [panel for panel in _panels(runs) if panel.curves]
    if not panels:
        return False
    columns = min(3, len(panels))
    lines = math.ceil(len(runs) / _across(runs, columns))
    rows = math.ceil(len(panels) / columns)
    figure = Figure((_WIDTH * columns, _HEIGHT * rows + _LINE * lines), layout="constrained")
    FigureCanvasAgg(figure)
    looks = dict(zip(runs, _looks(), strict=False))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, looks)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    _name(figure, grid[0], looks, _across(runs, columns))
    _save(figure, path)
    return True


def _panels(runs: Mapping[str, FoundRun]) -> Iterable[_Panel]:
    rows = {
        name: [numbers(r) | {"step": r.get("step")} for r in metrics_of(run)]
        for name, run in runs.items()
    }
    for kind in dict.fromkeys(run.kind for run in runs.values()):
        own = {name: rows[name] for name, run in runs.items() if run.kind == kind}
        costs = ("step", "queries") if any(map(_costs, own.values())) else ("step",)
        for x, y in (*((cost, "loss") for cost in costs), (costs[-1], "validation_accuracy")):
            curves = tuple(_curves(own, x, y))
            positive = all((curve.y > 0).all() for curve in curves)
            yield _Panel(kind, x, _LABELS[y], curves, logarithmic=y == "loss" and positive)
    certified = tuple(_certified(runs))
    yield _Panel("certificates", "radius (l2)", "certified accuracy, %", certified, steps=True)


def _curves(rows: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str) -> Iterable[_Curve]:
    for name, own in rows.items():
        points = [
            (row[x], row[y]) for row in own if y in row and isinstance(row.get(x), int | float)
        ]
        if points and (x == "step" or points[-1][0] > 0):
            across, up = np.array(points, dtype=float).T
            yield _Curve(name, across, up)


def _costs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether queries say more than steps do."""
    asked = [(row.get("queries", 0), row.get("step")) for row in rows]
    return any(queries not in (0, step) for queries, step in asked)


def _certified(runs: Mapping[str, FoundRun]) -> Iterable[_Curve]:
    for name, run in runs.items():
        try:
            certificates = certificates_of(run)
        except JournalError:
            continue
        if certificates:
            reached = np.sort(correct_radii(certificates))
            radii = np.unique(np.concatenate([[0.0], reached[reached > 0]]))
            shares = [100 * float((reached >= radius).mean()) for radius in radii]
            # up to a radius, it included, the share is that of the images that reach it
            yield _Curve(name, np.append(radii, radii[-1]), np.append(shares, 0.0))


def _draw(axes: Axes, panel: _Panel, looks: Mapping[str, dict[str, Any]]) -> None:
    for curve in panel.curves:
        look = looks[curve.name]
        if panel.steps:
            axes.step(curve.x, curve.y, where="pre", **look)
            continue
        many = len(curve.x) >= _MANY
        if many:
            axes.plot(curve.x, curve.y, color=look["color"], linewidth=0.5, alpha=0.25)
        marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve.x) <= 20 else {}
        axes.plot(*(_mean(v) if many else v for v in (curve.x, curve.y)), **look, **marker)
    axes.set(title=_literal(panel.title), xlabel=panel.x, ylabel=panel.y)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_between)
    elif all((curve.y >= 0).all() for curve in panel.curves):
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def _between(value: float, _: object) -> str:
    """Names the ticks 2, 3 and 5 of a decade; all nine would meet."""
    return f"{value:g}" if f"{value:e}"[0] in "235" else ""


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running mean over a fiftieth of all values."""
    window = max(2, len(values) // 50)
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _name(figure: Figure, axes: Axes, looks: Mapping[str, dict[str, Any]], across: int) -> None:
    lines = [axes.plot([], [], **look, label=_literal(name))[0] for name, look in looks.items()]
    figure.legend(handles=lines, loc="outside upper left", ncols=across, frameon=False)


def _literal(name: str) -> str:
    """A name as it is: not as a formula, and not left out for its underscore."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _across(runs: Collection[str], columns: int) -> int:
    """How many names stand beside each other in the legend."""
    longest = max(map(len, runs))
    most = max(1, int(columns * _WIDTH / (0.8 + 0.085 * longest)))
    return math.ceil(len(runs) / math.ceil(len(runs) / most))


def _looks() -> Iterable[dict[str, Any]]:
    for style, color in zip(cycle(_STYLES), cycle(_COLORS), strict=False):
        yield {"color": color, "linestyle": style, "linewidth": 1.6}


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    with explained("made", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, buffer.getvalue())


_LABELS = {"loss": "training loss", "validation_accuracy": "validation accuracy, %"}
