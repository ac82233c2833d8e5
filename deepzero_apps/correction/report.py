"""A comparison of correction methods as a table, curves, pictures of flow and animations.

Every method has a color and a dash of its own, the same in all figures. Bands are 95 % Student
intervals over seeds, pointwise; a single seed has none.
"""

__all__ = [
    "Row",
    "plot_crossover",
    "plot_errors",
    "plot_spectra",
    "summarize",
    "table",
]

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from deepzero_apps.correction.evaluation import Scores
from deepzero_apps.correction.metrics import Interval, interval
from deepzero_apps.correction.simulator import Array
from deepzero_apps.foreign import printable

# Okabe and Ito's colors, told apart by color-blind readers; dashes tell them apart in gray.
_LOOKS: dict[str, tuple[str, Any]] = {
    "reference": ("#000000", "-"),
    "src": ("#7F7F7F", (0, (1, 1))),
    "non": ("#CC79A7", (0, (4, 1, 1, 1, 1, 1))),
    "nog": ("#E69F00", (0, (6, 2))),
    "zo-weights": ("#56B4E9", (0, (3, 1))),
    "zo-weights-rge": ("#8C564B", (0, (2, 1))),
    "zo-field": ("#D55E00", "-"),
    "zo-hybrid": ("#009E73", (0, (5, 1, 1, 1))),
    "fo": ("#0072B2", (0, (8, 2))),
}
_OTHERS = (("#9467BD", (0, (3, 1))), ("#7F7F00", (0, (1, 1))), ("#333333", (0, (5, 1, 1, 1))))
_DOTS_PER_INCH = 160


class Row(TypedDict):
    """One method of a comparison; means over seeds, ``interval`` the half width of 95 %."""

    method: str
    seeds: int
    mae: float
    mae_std: float | None
    mae_interval: float | None
    relative_l2: float
    correlation_time: float
    spectrum_error: float
    divergence: float | None
    blow_ups: float
    simulator_steps: int
    seconds: float


def summarize(
    method: str, scores: Sequence[Scores], *, simulator_steps: int, seconds: float
) -> Row:
    """Gathers one row of a comparison.

    Args:
        method: The method's name.
        scores: Its scores, one for each seed.
        simulator_steps: The state-steps that training by one seed took.
        seconds: How long training by one seed took.

    Returns:
        The row. ``mae`` and ``relative_l2`` are means over frames, ``blow_ups`` a mean number of
        rollouts; spreads of a single seed are None.

    Raises:
        ValueError: If there is no score.
    """
    if len(scores) == 0:
        raise ValueError("scores must hold at least one seed, got none")
    errors = [float(s.mae.mean()) for s in scores]
    mean, half_width = interval(errors)
    known = [s.divergence for s in scores if s.divergence is not None]
    return Row(
        method=method,
        seeds=len(scores),
        mae=mean,
        mae_std=float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        mae_interval=half_width if len(errors) > 1 else None,
        relative_l2=float(np.mean([s.relative_l2.mean() for s in scores])),
        correlation_time=float(np.mean([s.correlation_time for s in scores])),
        spectrum_error=float(np.mean([s.spectrum_error for s in scores])),
        divergence=float(np.mean(known)) if known else None,
        blow_ups=float(np.mean([s.blow_ups for s in scores])),
        simulator_steps=simulator_steps,
        seconds=seconds,
    )


def table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """Lays out a comparison.

    Args:
        rows: The rows, at least one.
        title: What stands above.

    Returns:
        A table to be printed by a rich console.

    Raises:
        ValueError: If there is no row.
    """
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row, got none")
    result = Table(
        title=escape(printable(title or "")), box=SIMPLE, collapse_padding=True, pad_edge=False
    )
    result.add_column("method", no_wrap=True)
    for name in ("MAE", "±95 %", "rel. L2", "corr. time", "spectrum", "diverg.", "blow-ups",
                 "sim. steps", "seconds"):  # fmt: skip
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        spread, divergence = row["mae_interval"], row["divergence"]
        result.add_row(
            escape(printable(row["method"])),
            f"{row['mae']:.4f}",
            "" if spread is None else f"{spread:.4f}",
            f"{row['relative_l2']:.3f}",
            f"{row['correlation_time']:.1f}",
            f"{row['spectrum_error']:.2f}",
            "" if divergence is None else f"{divergence:.0e}",
            f"{row['blow_ups']:.1f}",
            f"{row['simulator_steps']:,}",
            f"{row['seconds']:.0f}",
        )
    return result


def plot_errors(
    times: Array,
    curves: Mapping[str, Array],
    path: Path | str,
    *,
    title: str = "",
    error: str = "mean absolute error",
    time: str = "time",
) -> None:
    """Draws the error against time, one curve a method, with bands over seeds.

    Args:
        times: The time of each frame, ``(frames,)``.
        curves: The error of each seed and frame, ``(seeds, frames)``, by the method's name.
        path: The picture to write; its suffix says the format.
        title: What stands above.
        error: The name of the error, with its unit.
        time: The name of the time, with its unit.

    Raises:
        ValueError: If there is no curve, or one does not fit the times or is not finite.
    """
    _check_curves(curves, len(times), "frames")
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, look in _looks(curves).items():
        _draw(axes, np.asarray(times), curves[name], name, look=look)
    _dress(axes, title=title, xlabel=time, ylabel=error, ylim=(0, None))
    figure.legend(loc="outside right center", frameon=False, handlelength=2.8)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def plot_spectra(
    spectra: Mapping[str, Array],
    path: Path | str,
    *,
    title: str = "",
    energy: str = "kinetic energy",
    cells: int | None = None,
) -> None:
    """Draws energy against wave number on logarithmic axes; the mean flow, bin 0, is left out.

    Args:
        spectra: The energies of each seed, ``(seeds, bins)``, by the method's name.
        path: The picture to write; its suffix says the format.
        title: What stands above.
        energy: The name of the energy, with its unit.
        cells: The cells of the grid's longest axis: bins beyond half of it are not drawn.

    Raises:
        ValueError: If there is no spectrum, they have different bins or one is not finite.
    """
    bins = np.shape(next(iter(spectra.values()), np.zeros((1, 0))))[-1]
    _check_curves(spectra, bins, "bins")
    last = bins if cells is None else min(bins, cells // 2 + 1)
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, look in _looks(spectra).items():
        _draw(axes, np.arange(1.0, last), spectra[name][:, 1:last], name, look=look)
    _dress(
        axes, title=title, xlabel="wave number (waves along the longest axis)", ylabel=energy,
        xscale="log", yscale="log",
        ylim=(_lowest(spectra, last), None),
    )  # fmt: skip
    figure.legend(loc="outside right center", frameon=False, handlelength=2.8)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def plot_crossover(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    path: Path | str,
    *,
    title: str = "",
    error: str = "mean absolute error",
) -> None:
    """Draws the error against what training may ask of the simulator, a panel a corrector.

    Args:
        panels: By the corrector's name, such as ``"1,024 weights"``, and the method's: the
            simulator steps of each budget, ``(budgets,)``, and the error of each seed,
            ``(seeds, budgets)``.
        path: The picture to write; its suffix says the format.
        title: What stands above.
        error: The name of the error, with its unit.

    Raises:
        ValueError: If there is no panel or no curve, or errors do not fit their budgets or are
            not finite.
    """
    if len(panels) == 0:
        raise ValueError("panels must hold at least one corrector, got none")
    for corrector, curves in panels.items():
        if len(curves) == 0:
            raise ValueError(
                f"panels must hold at least one method each, got none for {corrector}"
            )
        for name, (steps, errors) in curves.items():
            _check_curves({name: errors}, len(steps), "budgets")
    looks = _looks([name for curves in panels.values() for name in curves])
    figure = Figure(figsize=(3.4 * len(panels) + 1.2, 3.8), layout="constrained")
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (corrector, curves) in zip(places, panels.items(), strict=True):
        for name, (steps, errors) in curves.items():
            _draw(axes, np.asarray(steps), errors, name, look=looks[name], marker="o")
        _dress(axes, title=corrector, xlabel="simulator steps", ylabel="", xscale="log")
        budgets = np.unique(np.concatenate([steps for steps, _ in curves.values()]))
        axes.set_xticks(budgets, [f"{budget:,.0f}" for budget in budgets])
        axes.set_xticks([], minor=True)
    places[0].set_ylabel(error)
    handles = {h.get_label(): h for axes in places for h in axes.get_lines()}
    figure.legend(
        [handles[name] for name in looks], list(looks), loc="outside right center", frameon=False
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _looks(names: Sequence[str] | Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Gives known methods their own look, others one of the rest, in the order of the known."""
    unknown = [name for name in dict.fromkeys(names) if name not in _LOOKS]
    known = {name: look for name, look in _LOOKS.items() if name in names}
    return known | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(unknown)}


def _draw(
    axes: Axes, x: Array, values: Array, name: str, *, look: tuple[str, Any], marker: str = ""
) -> None:
    color, dashes = look
    # Wide below the others: a method on top of the reference leaves its rim.
    width = 3.6 if name == "reference" else 1.8
    spans = [interval(column) for column in np.asarray(values).T]
    means = np.array([span.mean for span in spans])
    axes.plot(
        x, means, color=color, linestyle=dashes, linewidth=width, label=name, marker=marker,
        markersize=4,
    )  # fmt: skip
    if all(math.isfinite(span.half_width) for span in spans):
        _band(axes, x, spans, color)


def _band(axes: Axes, x: Array, spans: Sequence[Interval], color: str) -> None:
    low, high = (np.array([s.mean + side * s.half_width for s in spans]) for side in (-1, 1))
    # Errors and energies are not negative, and a logarithmic axis has no place for zero.
    axes.fill_between(x, np.maximum(low, 1e-300), high, color=color, alpha=0.15, linewidth=0)


def _lowest(spectra: Mapping[str, Array], last: int) -> float | None:
    """A bottom of a logarithmic axis that lines stay above, though a band may not."""
    means = np.concatenate([values[:, 1:last].mean(0) for values in spectra.values()])
    return float(means[means > 0].min()) / 3 if (means > 0).any() else None


def _dress(axes: Axes, *, title: str, **settings: Any) -> None:  # noqa: ANN401
    axes.set(**settings)
    axes.set_title(title)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _check_curves(curves: Mapping[str, Array], columns: int, what: str) -> None:
    if len(curves) == 0:
        raise ValueError("curves must hold at least one method, got none")
    for name, values in curves.items():
        shape = np.shape(values)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != columns or columns == 0:
            raise ValueError(
                f"curves must be of shape (seeds, {columns or what}), got {shape} for {name}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"curves must be finite, got NaN or infinity for {name}")
