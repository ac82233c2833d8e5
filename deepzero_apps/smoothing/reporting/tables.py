r"""Certificates as a table and as pictures.

Certified accuracy against radius is drawn as the exact step function of the certificates, with
the band of ``page_figures``.
"""

__all__ = ["Row", "plot_certified_accuracy", "plot_images", "statement", "summarize", "table"]

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from deepzero_apps.foreign import printable
from deepzero_apps.smoothing.certificates import (
    Certificate,
    average_certified_radius,
    bootstrap_interval,
    certified_accuracy,
    correct_radii,
    population_bound,
)
from deepzero_apps.smoothing.reporting.page_figures import accuracy_band

# Okabe and Ito's colors, told apart by color-blind readers; styles tell them apart in gray.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")


class Row(TypedDict):
    """One method of a comparison; intervals are 95 % bootstrap intervals over images."""

    method: str
    acr: float
    acr_interval: tuple[float, float]
    certified_accuracy: dict[str, float]
    certified_accuracy_interval: dict[str, tuple[float, float]]
    images: int
    queries: int
    seconds: float


def summarize(
    method: str,
    certificates: Sequence[Certificate],
    *,
    radii: Sequence[float],
    queries: int,
    seconds: float,
) -> Row:
    """Gathers one row of a comparison.

    Args:
        method: The method's name.
        certificates: Its certificates, at least one.
        radii: Radii of the certified accuracy, at least 0, in the images' units.
        queries: What the method asked of the classifier before certification.
        seconds: What the method took before certification.

    Returns:
        The row; radii are keys such as ``"0.25"``.

    Raises:
        ValueError: If there is no certificate or a radius is negative.
    """
    reached = correct_radii(certificates)
    names = [str(float(r)) for r in radii]
    return Row(
        method=method,
        acr=average_certified_radius(certificates),
        acr_interval=bootstrap_interval(np.maximum(reached, 0)),
        certified_accuracy=dict(zip(names, certified_accuracy(certificates, radii), strict=True)),
        certified_accuracy_interval={
            name: bootstrap_interval(reached >= r) for name, r in zip(names, radii, strict=True)
        },
        images=len(certificates),
        queries=queries,
        seconds=seconds,
    )


def statement(certificates: Sequence[Certificate], radii: Sequence[float]) -> str:
    """Says in words what certificates tell about the population of their images.

    Args:
        certificates: The certificates, at least one.
        radii: Radii, at least 0, in the images' units.

    Returns:
        Two sentences: the bound of `population_bound` at each radius, with confidence 95 %, and
        how many false certificates are to be expected.

    Raises:
        ValueError: If there is no certificate or a radius is negative.
    """
    bounds = ", ".join(f"{100 * population_bound(certificates, r):.1f} % at {r:g}" for r in radii)
    expected = sum(c.settings.alpha for c in certificates)
    return (
        f"If the images are a random sample, certified accuracy on their population is at least "
        f"{bounds} (each with confidence 95 %). Of {len(certificates)} certificates at most "
        f"{expected:.2g} are expected to be false."
    )


def table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """Lays out a comparison: certified accuracy in percent, radius with its interval.

    Args:
        rows: The rows, of the same radii, at least one.
        title: What stands above.

    Returns:
        A table to be printed by a rich console.

    Raises:
        ValueError: If there is no row, or their radii differ.
    """
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row, got none")
    radii = list(rows[0]["certified_accuracy"])
    result = Table(
        title=escape(printable(title or "")), box=SIMPLE, collapse_padding=True, pad_edge=False
    )
    result.add_column("method", no_wrap=True)
    for name in (
        *(f"r={float(r):g}" for r in radii),
        "ACR",
        "95 %",
        "training queries",
        "seconds",
    ):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if list(row["certified_accuracy"]) != radii:
            raise ValueError(
                f"rows must have the radii {radii}, got {list(row['certified_accuracy'])} "
                f"for {row['method']}"
            )
        shares = [f"{100 * share:.1f}" for share in row["certified_accuracy"].values()]
        low, high = row["acr_interval"]
        result.add_row(
            escape(printable(row["method"])),
            *shares,
            f"{row['acr']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['queries']:,}",
            f"{row['seconds']:.0f}",
        )
    return result


def plot_certified_accuracy(curves: Mapping[str, Sequence[Certificate]], path: Path | str) -> None:
    """Draws certified accuracy against radius, one curve a method, with 95 % bands.

    Args:
        curves: Certificates by the method's name, each at least one.
        path: The picture to write; its suffix says the format.

    Raises:
        ValueError: If there is no curve, or one without a certificate.
    """
    if len(curves) == 0:
        raise ValueError("curves must hold at least one curve, got none")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    looks = zip(cycle(_COLORS), cycle(_STYLES), strict=False)
    for (name, certificates), (color, style) in zip(curves.items(), looks, strict=False):
        radii, shares, low, high = _curve(certificates)
        label = f"{name}   (ACR {average_certified_radius(certificates):.3f})"
        axes.step(radii, shares, color=color, linestyle=style, linewidth=1.8, label=label)
        axes.fill_between(radii, low, high, step="pre", color=color, alpha=0.1, linewidth=0)
    _dress(axes, [c for certificates in curves.values() for c in certificates])
    figure.savefig(path, dpi=160)


def plot_images(
    rows: Mapping[str, Tensor],
    path: Path | str,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Draws a grid of images: a row a kind, such as clean, noisy and denoised.

    Args:
        rows: Images of shape ``(n, channel, height, width)``, one or three channels, by the
            row's name; every row of the same n. Values are clipped to [0, 1].
        path: The picture to write; its suffix says the format.
        captions: Texts under the images, such as predictions, by the row's name; n a row.

    Raises:
        ValueError: If there is no row, rows are of different n or no images, or captions do
            not fit them.
    """
    captions = captions or {}
    columns = _columns(rows, captions)
    figure = Figure(
        figsize=(1.0 * columns + 0.9, (1.0 + 0.2 * bool(captions)) * len(rows) + 0.1),
        layout="constrained",
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for (name, images), places in zip(rows.items(), grid, strict=True):
        pictures = images.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        texts = captions.get(name, [""] * columns)
        for axes, picture, text in zip(places, pictures, texts, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(text, fontsize=8, labelpad=2)
            axes.spines[:].set_color("0.8")
        places[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    figure.savefig(path, dpi=160)


def _curve(
    certificates: Sequence[Certificate],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The steps: accuracy and band that hold up to and with each radius, then the drop."""
    reached = correct_radii(certificates)
    radii = np.unique(np.append(reached[reached > 0], 0.0))
    bands = np.array([accuracy_band(certificates, r) for r in radii.tolist()])
    shares, low, high = (np.append(values, 0.0) for values in bands.T)
    return np.append(radii, radii[-1]), shares, low, high


def _dress(axes: Axes, certificates: Sequence[Certificate]) -> None:
    sigmas = sorted({c.settings.sigma for c in certificates})
    longest = max(c.radius for c in certificates)
    axes.set(
        xlabel="l2 radius",
        ylabel="certified accuracy (%)",
        xlim=(0, 1.02 * longest if longest > 0 else 1),
        ylim=(0, 1),
        title="sigma = " + ", ".join(f"{sigma:g}" for sigma in sigmas),
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, handlelength=2.8)


def _columns(rows: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]]) -> int:
    """Checks rows and captions; gives the number of images a row."""
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row of images, got none")
    columns = len(next(iter(rows.values())))
    for name, images in rows.items():
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[0] != columns or columns == 0 or shape[1] not in (1, 3):
            raise ValueError(
                f"rows must be of shape ({columns or 'n'}, 1 or 3, height, width), "
                f"got {shape} for {name}"
            )
    for name, texts in captions.items():
        if name not in rows or len(texts) != columns:
            raise ValueError(
                f"captions must name a row and hold {columns} texts, got {len(texts)} for {name}"
            )
    return columns
