"""Tables and pictures: the numbers in them, and that pixels are where they belong."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor

from deepzero_apps.smoothing.certificates import bootstrap_interval
from deepzero_apps.smoothing.reporting.tables import (
    plot_certified_accuracy,
    plot_images,
    summarize,
    table,
)
from tests.smoothing.certificate_examples import certificate

FOUR = [
    certificate(0, radius=0.5),
    certificate(1, radius=0.25),
    certificate(2, radius=0.9, label=2),
    certificate(3, radius=0.0, predicted=-1),
]


def printed(text: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(text)
    return stream.getvalue()


def test_a_row_holds_the_summary() -> None:
    row = summarize("mse", FOUR, radii=[0, 0.25, 0.5, 0.75], queries=7, seconds=1.5)

    assert row["certified_accuracy"] == {"0.0": 0.5, "0.25": 0.5, "0.5": 0.25, "0.75": 0.0}
    assert row["acr"] == pytest.approx(0.75 / 4)
    assert row["acr_interval"] == bootstrap_interval([0.5, 0.25, 0, 0])
    assert row["certified_accuracy_interval"]["0.5"] == bootstrap_interval([1, 0, 0, 0])
    assert (row["method"], row["images"], row["queries"], row["seconds"]) == ("mse", 4, 7, 1.5)


def test_the_table_prints_percent_radius_and_cost() -> None:
    row = summarize("mse", FOUR, radii=[0, 0.5], queries=12_345, seconds=1.25)
    low, high = row["acr_interval"]

    text = printed(table([row, {**row, "method": "none"}], title="digits"))

    cells = [line.split() for line in text.splitlines() if "12,345" in line]
    expected = ["50.0", "25.0", "0.188", f"{low:.3f}-{high:.3f}", "12,345", "1"]
    assert cells == [["mse", *expected], ["none", *expected]]
    assert "r=0 " in text
    assert "r=0.5 " in text
    assert "digits" in text


def test_rows_of_other_radii_are_refused() -> None:
    rows = [summarize("a", FOUR, radii=r, queries=0, seconds=0) for r in ([0.0], [0.5])]
    with pytest.raises(ValueError, match=r"radii \['0.0'\], got \['0.5'\] for a"):
        table(rows)
    with pytest.raises(ValueError, match="at least one row, got none"):
        table([])


def test_the_curve_is_a_picture_with_each_method_s_color(tmp_path: Path) -> None:
    plot_certified_accuracy({"a": FOUR, "b": FOUR[:2], "wrong": FOUR[2:]}, tmp_path / "c.png")

    picture = imread(tmp_path / "c.png")[..., :3]
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        near = np.abs(picture - np.array(color) / 255).max(-1) < 0.02
        assert near.sum() > 100


def test_steps_and_band_are_certified_accuracy_and_its_bootstrap_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[np.ndarray]] = {}
    monkeypatch.setattr(Axes, "step", lambda _, *values, **__: drawn.update(step=list(values)))
    monkeypatch.setattr(
        Axes, "fill_between", lambda _, *values, **__: drawn.update(band=list(values))
    )
    radii = np.round(np.random.default_rng(0).random(60), 4)
    right = [certificate(i, radius=r) for i, r in enumerate(radii)]
    with pytest.warns(UserWarning, match="No artists with labels"):
        plot_certified_accuracy({"a": right}, tmp_path / "c.png")

    x, y = drawn["step"]
    assert x.tolist() == [0, *sorted(radii), max(radii)]
    np.testing.assert_allclose(y, [*np.mean(radii >= x[:-1, None], axis=1), 0])
    for k in (0, 20, 50):
        # resampled here, quantiles of a binomial there: they may differ by one count of 60
        expected = bootstrap_interval(radii >= x[k], resamples=5_000)
        found = (drawn["band"][1][k], drawn["band"][2][k])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1 / 60 + 1e-12)


def test_a_curve_of_nothing_but_abstentions_is_drawn(tmp_path: Path) -> None:
    plot_certified_accuracy({"none": FOUR[3:]}, tmp_path / "c.png")

    assert imread(tmp_path / "c.png").std() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_shows_every_pixel_value_clipped(tmp_path: Path, channels: int) -> None:
    images = torch.tensor([-0.5, 0.4, 1.5]).reshape(3, 1, 1, 1).expand(3, channels, 4, 4)
    plot_images(
        {"clean": images, "noisy": images},
        tmp_path / "g.png",
        captions={"noisy": ["1", "2", "3 (wrong)"]},
    )

    picture = imread(tmp_path / "g.png")[..., :3]
    height, width = picture.shape[:2]
    middle = picture[height // 4]
    # 8-bit gray: .4 is shown within half a level
    assert (np.abs(middle - 0.4).max(-1) < 0.5 / 255 + 1e-3).sum() > width / 10
    assert (middle.max(-1) == 0).sum() > width / 10


GRAY = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("rows", "captions", "message"),
    [
        ({}, {}, "at least one row of images, got none"),
        ({"a": GRAY, "b": GRAY[:1]}, {}, r"shape \(2, 1 or 3.*got \(1, 1, 4, 4\) for b"),
        ({"a": GRAY[0]}, {}, r"got \(1, 4, 4\) for a"),
        ({"a": GRAY.repeat(1, 2, 1, 1)}, {}, r"got \(2, 2, 4, 4\) for a"),
        ({"a": GRAY}, {"a": ["x"]}, "hold 2 texts, got 1 for a"),
        ({"a": GRAY}, {"b": ["x", "y"]}, "must name a row .* for b"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, rows: dict[str, Tensor], captions: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot_images(rows, tmp_path / "g.png", captions=captions)
    assert not (tmp_path / "g.png").exists()


def test_no_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one curve, got none"):
        plot_certified_accuracy({}, tmp_path / "c.png")
    with pytest.raises(ValueError, match="at least one certificate, got none"):
        plot_certified_accuracy({"a": []}, tmp_path / "c.png")
