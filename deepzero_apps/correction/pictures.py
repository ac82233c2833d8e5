"""Fields side by side, at chosen times or moving: vorticity of reference, coarse and corrected.

All panels share one symmetric color scale, blue for negative and red for positive values, so that
equal colors are equal numbers. It ends at the 99.5th percentile of the first row's magnitudes (the
reference, by custom): a few cells at a corner of the solid would leave the rest pale. Solid cells
are gray, cells without a finite value yellow. Row 0 of a field is drawn at the bottom.
"""

__all__ = ["animate_fields", "plot_fields"]

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from deepzero_apps.correction.simulator import Array

_SATURATION = 99.5
_DOTS_PER_INCH = 160
_ANIMATED_DOTS_PER_INCH = 80
_COLORS = 96


def plot_fields(
    rows: Mapping[str, Array],
    path: Path | str,
    *,
    times: Sequence[float] | Array,
    solid: NDArray[np.bool_] | None = None,
    extent: tuple[float, float] | None = None,
    title: str = "",
    label: str = "vorticity",
) -> None:
    """Draws a grid of fields: a row a simulator, a column a time.

    Args:
        rows: The fields, ``(times, rows, columns)``, by what made them, the reference first.
            Grids may differ between rows.
        path: The picture to write; its suffix says the format.
        times: The time of each column.
        solid: The cells that are no fluid, ``(rows, columns)`` of any grid on the same domain.
        extent: The domain's height and width; the cells of the first row by default.
        title: What stands above.
        label: What the colors mean, with its unit.

    Raises:
        ValueError: If there is no row, or one does not fit the times.
    """
    columns = _checked(rows, len(times))
    height, width = _extent(rows, extent)
    figure = Figure(
        figsize=(2.6 * columns + 1.6, 2.6 * height / width * len(rows) + 0.9), layout="compressed"
    )
    places = figure.subplots(len(rows), columns, squeeze=False)
    limit = _limit(rows)
    for line, (name, fields) in zip(places, rows.items(), strict=True):
        for axes, field in zip(line, fields, strict=True):
            image = _panel(axes, field, limit, box=(0, width, 0, height), solid=solid)
            if not np.isfinite(field).any():
                axes.text(0.97, 0.05, "not finite", transform=axes.transAxes, ha="right")
        line[0].set_ylabel(name)
    for axes, time in zip(places[0], times, strict=True):
        axes.set_title(f"t = {time:g}", fontsize=10)
    figure.colorbar(
        image, ax=places, label=label, extend="both", fraction=0.04, pad=0.02, aspect=25
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def animate_fields(
    rows: Mapping[str, Array],
    path: Path | str,
    *,
    times: Sequence[float] | Array,
    solid: NDArray[np.bool_] | None = None,
    extent: tuple[float, float] | None = None,
    title: str = "",
    label: str = "vorticity",
    seconds: float = 0.1,
) -> None:
    """Writes a GIF of fields below each other, one frame a time, repeated without end.

    Args:
        rows: The fields, ``(times, rows, columns)``, by what made them, the reference first.
            Grids may differ between rows.
        path: The GIF file.
        times: The time of each frame.
        solid: The cells that are no fluid, ``(rows, columns)`` of any grid on the same domain.
        extent: The domain's height and width; the cells of the first row by default.
        title: What stands above, before the time.
        label: What the colors mean, with its unit.
        seconds: How long a frame is shown.

    Raises:
        ValueError: If there is no row, one does not fit the times, or ``seconds`` is not positive.
    """
    count = _checked(rows, len(times))
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    height, width = _extent(rows, extent)
    figure = Figure(
        figsize=(4.8, (3.6 * height / width + 0.25) * len(rows) + 0.35),
        layout="compressed",
    )
    places = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    limit = _limit(rows)
    images = [
        _panel(axes, fields[0], limit, box=(0, width, 0, height), solid=solid)
        for axes, fields in zip(places, rows.values(), strict=True)
    ]
    for axes, name in zip(places, rows, strict=True):
        axes.set_title(name, fontsize=9, loc="left", pad=3)
    figure.colorbar(
        images[0], ax=places, label=label, extend="both", fraction=0.04, pad=0.02, aspect=25
    )
    clock = figure.suptitle("", fontsize=10, family="monospace")
    digits = max(len(f"{time:.1f}") for time in times)
    frames: list[Image.Image] = []
    for k in range(count):
        for image, fields in zip(images, rows.values(), strict=True):
            image.set_data(_masked(fields[k]))
        clock.set_text(f"{title}  t = {times[k]:{digits}.1f}".strip())
        frames.append(_indexed(figure, frames))
    frames[0].save(
        path, format="GIF", save_all=True, append_images=frames[1:], loop=0, optimize=False,
        duration=round(1000 * seconds),
    )  # fmt: skip


def _indexed(figure: Figure, earlier: Sequence[Image.Image]) -> Image.Image:
    """Draws a frame in the palette of the first, so that still parts stay equal."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_ANIMATED_DOTS_PER_INCH)
    # What was laid out for the first frame stays where it is.
    figure.set_layout_engine("none")
    picture = Image.open(stream).convert("RGB")
    if not earlier:
        return picture.quantize(_COLORS, dither=Image.Dither.NONE)
    return picture.quantize(palette=earlier[0], dither=Image.Dither.NONE)


def _panel(
    axes: Axes,
    field: Array,
    limit: float,
    *,
    box: tuple[float, float, float, float],
    solid: NDArray[np.bool_] | None,
) -> AxesImage:
    colors = colormaps["RdBu_r"].with_extremes(bad="#F0E442")
    look: dict[str, Any] = {"origin": "lower", "extent": box, "interpolation": "nearest"}
    image = axes.imshow(_masked(field), cmap=colors, vmin=-limit, vmax=limit, **look)
    if solid is not None:
        covered = np.ma.masked_where(~solid, np.ones(solid.shape))
        axes.imshow(covered, cmap=ListedColormap(["0.45"]), **look)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.8")
    return image


def _masked(field: Array) -> Any:  # noqa: ANN401
    return np.ma.masked_invalid(field)


def _limit(rows: Mapping[str, Array]) -> float:
    first = next(iter(rows.values()))
    magnitudes = np.abs(first[np.isfinite(first)])
    limit = float(np.percentile(magnitudes, _SATURATION)) if magnitudes.size else 0.0
    return limit if limit > 0 else 1.0


def _extent(rows: Mapping[str, Array], extent: tuple[float, float] | None) -> tuple[float, float]:
    height, width = extent if extent is not None else next(iter(rows.values())).shape[1:]
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ValueError(f"extent must be a positive height and width, got {extent}")
    return float(height), float(width)


def _checked(rows: Mapping[str, Array], columns: int) -> int:
    """Checks the fields; gives the number of times."""
    if len(rows) == 0:
        raise ValueError("rows must hold at least one row of fields, got none")
    for name, fields in rows.items():
        shape = np.shape(fields)
        if len(shape) != 3 or shape[0] != columns or 0 in shape:
            raise ValueError(
                f"rows must be of shape ({columns or 'times'}, rows, columns), "
                f"got {shape} for {name}"
            )
    return columns
