"""Figures of training runs: curves against queries, accuracies side by side."""

__all__ = ["accuracy_bars", "training_curves"]

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepzero_apps.runs.files import replace

Row = Mapping[str, Any]

_DOTS_PER_INCH = 150


def training_curves(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Draws loss and validation accuracy against queries.

    Args:
        rows: Metrics with ``queries`` and ``loss``, some with ``validation_accuracy`` in percent.
        path: The PNG file.
        title: What was trained.
    """
    figure, (left, right) = _figure(columns=2)
    left.plot([row["queries"] for row in rows], [row["loss"] for row in rows], linewidth=0.8)
    left.set(xlabel="queries", ylabel="training loss", yscale="log")
    known = [row for row in rows if row.get("validation_accuracy") is not None]
    right.plot(
        [row["queries"] for row in known],
        [row["validation_accuracy"] for row in known],
        marker="o",
        markersize=3,
    )
    right.set(xlabel="queries", ylabel="validation accuracy, %", ylim=(0, 100))
    figure.suptitle(title)
    _save(figure, path)


def accuracy_bars(rows: Sequence[Row], labels: Mapping[str, str], path: Path) -> None:
    """Draws the accuracy of each estimator, a group of bars for each size of network.

    Args:
        rows: ``estimator``, ``parameters``, ``accuracy`` and ``accuracy_std`` in percent.
        labels: The estimators' names for the legend.
        path: The PNG file.
    """
    figure, (axes,) = _figure(columns=1)
    sizes = list(dict.fromkeys(row["parameters"] for row in rows))
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    width = 0.8 / len(estimators)
    for i, estimator in enumerate(estimators):
        own = [row for row in rows if row["estimator"] == estimator]
        axes.bar(
            [sizes.index(row["parameters"]) + (i + 0.5) * width - 0.4 for row in own],
            [row["accuracy"] for row in own],
            width,
            yerr=[row["accuracy_std"] or 0.0 for row in own],
            capsize=3,
            label=labels[estimator],
        )
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set(xlabel="weights", ylabel="test accuracy, %", ylim=(0, 100))
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(estimators), frameon=False
    )
    _save(figure, path)


def _figure(*, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib has no types
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    replace(path, buffer.getvalue())
