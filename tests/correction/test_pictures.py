"""Pictures of fields: that colors are numbers, and pixels where they belong."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from deepzero_apps.correction.pictures import animate_fields, plot_fields
from deepzero_apps.correction.simulator import Array

YELLOW = np.array([0xF0, 0xE4, 0x42]) / 255
GRAY = np.array([0.45, 0.45, 0.45])


def color(value: float) -> Array:
    """The color of a value, of a scale from -1 to 1."""
    return np.array(colormaps["RdBu_r"]((value + 1) / 2)[:3])


def share(picture: Array, wanted: Array) -> float:
    """The share of pixels within two levels of a color: a map of 256 colors steps by less."""
    return float((np.abs(picture[..., :3] - wanted).max(-1) < 2.5 / 255).mean())


def reference(frames: int = 2) -> Array:
    """Left half -1, right half 1."""
    return np.where(np.arange(8) < 4, -1.0, 1.0) * np.ones((frames, 4, 1))


def test_equal_numbers_have_equal_colors_in_all_rows(tmp_path: Path) -> None:
    rows = {"reference": reference(), "coarse": np.full((2, 2, 4), 0.5), "more": 7 * reference()}
    plot_fields(rows, tmp_path / "f.png", times=[0, 2.5], title="wake", label="vorticity (1/s)")

    picture = imread(tmp_path / "f.png")
    panels = share(picture, color(0.5))
    # a panel is a third of all; its halves are also the ends of the rows three and one
    assert panels > 0.1
    for end in (-1, 1):
        assert share(picture, color(end)) == pytest.approx(panels, rel=0.15)


def test_row_0_is_at_the_bottom_and_solid_is_gray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    field = np.arange(32.0).reshape(1, 4, 8)
    solid = np.arange(16).reshape(2, 8) == 3
    plot_fields({"a": field}, tmp_path / "f.png", times=[1], solid=solid, extent=(100, 200))

    image, cover = figures[0].axes[0].get_images()
    assert image.origin == cover.origin == "lower"
    assert image.get_extent() == cover.get_extent() == [0, 200, 0, 100]
    assert image.get_array().tolist() == field[0].tolist()
    assert cover.get_array().mask.tolist() == (~solid).tolist()
    # 99.5th percentile of 0 ... 31: .995 * 31
    assert image.get_clim() == pytest.approx((-30.845, 30.845))
    assert tuple(cover.cmap(0)[:3]) == tuple(GRAY)


def test_what_is_not_finite_is_yellow(tmp_path: Path) -> None:
    rows = {"reference": reference(), "lost": np.full((2, 4, 8), math.nan)}
    plot_fields(rows, tmp_path / "f.png", times=[0, 1])
    plot_fields({"a": reference()}, tmp_path / "g.png", times=[0, 1])

    assert share(imread(tmp_path / "f.png"), YELLOW) > 0.2
    assert share(imread(tmp_path / "g.png"), YELLOW) == 0


def test_a_field_of_nothing_is_drawn_pale(tmp_path: Path) -> None:
    plot_fields({"a": np.zeros((1, 4, 8))}, tmp_path / "f.png", times=[0])
    plot_fields({"a": np.full((1, 4, 8), math.inf)}, tmp_path / "g.png", times=[0])

    assert share(imread(tmp_path / "f.png"), color(0)) > 0.3
    assert share(imread(tmp_path / "g.png"), YELLOW) > 0.3


def test_an_animation_shows_every_frame(tmp_path: Path) -> None:
    values = np.array([-1.0, 0.0, 1.0]).reshape(3, 1, 1)
    rows = {"reference": reference(3), "coarse": values * np.ones((3, 4, 8))}
    animate_fields(rows, tmp_path / "a.gif", times=[0, 1, 2], seconds=0.2)

    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 200
        assert film.info["loop"] == 0
        for k, value in enumerate((-1, 0, 1)):
            film.seek(k)
            picture = np.asarray(film.convert("RGB"))
            # half of all is white; a palette of 96 colors is off by a few levels
            near = np.abs(picture / 255 - color(value)).max(-1) < 8 / 255
            rows_of_panel = near[len(near) // 2 :].mean()
            assert rows_of_panel > 0.3


def test_sixty_frames_are_small_and_quick(tmp_path: Path) -> None:
    y, x = np.mgrid[:32, :64] / 32
    t = np.arange(60)[:, None, None] / 10
    flow = np.sin(6 * (x - t)) * np.exp(-4 * (y - 0.5) ** 2)
    start = time.process_time()
    animate_fields(
        {"reference": flow, "coarse": flow[:, ::2, ::2], "zo-field": flow[:, ::2, 1::2]},
        tmp_path / "a.gif", times=np.arange(60.0), solid=(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.01,
    )  # fmt: skip

    assert time.process_time() - start < 20
    assert (tmp_path / "a.gif").stat().st_size < 2_000_000


def test_fields_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.gif"
    for draw in (plot_fields, animate_fields):
        with pytest.raises(ValueError, match="at least one row of fields, got none"):
            draw({}, path, times=[0])
        with pytest.raises(ValueError, match=r"shape \(3, rows, columns\), got \(2, 4, 8\) for a"):
            draw({"a": reference()}, path, times=[0, 1, 2])
        with pytest.raises(ValueError, match=r"\(times, rows, columns\), got \(0, 4, 8\) for a"):
            draw({"a": reference(0)}, path, times=[])
        with pytest.raises(ValueError, match=r"extent must be a positive height and width"):
            draw({"a": reference()}, path, times=[0, 1], extent=(0, 1))
    with pytest.raises(ValueError, match="seconds must be positive and finite, got 0"):
        animate_fields({"a": reference()}, path, times=[0, 1], seconds=0)
    assert not path.exists()
