"""Tables and curves: the numbers in them, and that each method looks the same everywhere."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from deepzero_apps.correction.evaluation import Scores
from deepzero_apps.correction.metrics import interval
from deepzero_apps.correction.report import (
    plot_crossover,
    plot_errors,
    plot_spectra,
    summarize,
    table,
)

TIMES = np.array([2.0, 4.0, 6.0])
RANDOM = np.random.default_rng(0)
CURVES = {name: RANDOM.random((5, 3)) + 1 for name in ("zo-field", "src", "mine", "fo")}


def scores(mae: float, *, divergence: float | None = 1e-13) -> Scores:
    errors = np.array([0.5, 1.5]) * mae
    return Scores(
        times=TIMES[:2],
        mae=errors,
        relative_l2=errors / 2,
        correlation=np.ones(2),
        correlation_time=100 * mae,
        spectrum_error=mae,
        divergence=divergence,
        blow_ups=1,
    )


def printed(text: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(text)
    return stream.getvalue()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    return figures


def test_a_row_holds_means_over_seeds_and_their_spread() -> None:
    row = summarize("nog", [scores(0.2), scores(0.3), scores(0.4)], simulator_steps=9, seconds=1.5)

    assert row["mae"] == pytest.approx(0.3)
    assert row["mae_std"] == pytest.approx(0.1)
    # t at 97.5 % with two degrees of freedom: 4.302653 (any table)
    assert row["mae_interval"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert row["relative_l2"] == pytest.approx(0.15)
    assert row["correlation_time"] == pytest.approx(30)
    assert row["spectrum_error"] == pytest.approx(0.3)
    assert row["divergence"] == pytest.approx(1e-13)
    expected = {"method": "nog", "seeds": 3, "blow_ups": 1, "simulator_steps": 9, "seconds": 1.5}
    assert {key: value for key, value in row.items() if key in expected} == expected


def test_a_single_seed_has_no_spread() -> None:
    row = summarize("src", [scores(0.2, divergence=None)], simulator_steps=0, seconds=0)

    assert (row["mae_std"], row["mae_interval"], row["divergence"]) == (None, None, None)
    assert printed(table([row])).splitlines()[-2].split() == [
        "src", "0.2000", "0.100", "20.0", "0.20", "1.0", "0", "0"
    ]  # fmt: skip


def test_the_table_prints_every_number() -> None:
    row = summarize("fo", [scores(0.2), scores(0.2)], simulator_steps=57_600, seconds=61.6)

    text = printed(table([row, {**row, "method": "non"}], title="wake, terminal loss"))

    cells = [line.split() for line in text.splitlines() if "57,600" in line]
    expected = ["0.2000", "0.0000", "0.100", "20.0", "0.20", "1e-13", "1.0", "57,600", "62"]
    assert cells == [["fo", *expected], ["non", *expected]]
    assert "wake, terminal loss" in text
    assert "±95 %" in text


def test_curves_are_means_and_bands_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_errors(TIMES, CURVES, tmp_path / "e.png", title="wake", time="time (s)")

    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["src", "zo-field", "fo", "mine"]
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    for (name, line), band in zip(lines.items(), bands, strict=True):
        assert line.get_xdata().tolist() == TIMES.tolist()
        np.testing.assert_allclose(line.get_ydata(), CURVES[name].mean(0), rtol=1e-14)
        corners = band.get_paths()[0].vertices
        for k, time in enumerate(TIMES):
            mean, half = interval(CURVES[name][:, k])
            heights = corners[corners[:, 0] == time, 1]
            np.testing.assert_allclose(heights.min(), max(mean - half, 0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(heights.max(), mean + half, rtol=1e-12)
    assert (axes.get_title(), axes.get_xlabel()) == ("wake", "time (s)")
    assert axes.get_ylabel() == "mean absolute error"


def test_a_method_has_one_color_in_all_figures(tmp_path: Path, drawn: list[Figure]) -> None:
    one_seed = {name: values[:1] for name, values in CURVES.items()}
    plot_errors(TIMES, one_seed, tmp_path / "e.png")
    plot_errors(TIMES, {"fo": CURVES["fo"]}, tmp_path / "f.png")
    plot_spectra(CURVES, tmp_path / "s.png")
    plot_crossover({"1k": {"fo": (TIMES, CURVES["fo"])}}, tmp_path / "c.png")

    colors = [
        {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
        for figure in drawn
    ]
    assert {each["fo"] for each in colors} == {"#0072B2"}
    assert len(set(colors[0].values())) == 4
    # a single seed has no band
    assert not drawn[0].axes[0].collections
    picture = imread(tmp_path / "f.png")[..., :3]
    assert (np.abs(picture - np.array([0x00, 0x72, 0xB2]) / 255).max(-1) < 0.02).sum() > 100


def test_spectra_leave_out_the_mean_flow_and_the_corners(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    energies = {"reference": np.exp(-np.arange(12.0))[None]}
    plot_spectra(energies, tmp_path / "s.png", cells=16)

    (line,) = drawn[0].axes[0].get_lines()
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(line.get_ydata(), np.exp(-np.arange(1.0, 9)), rtol=1e-14)
    assert drawn[0].axes[0].get_xscale() == drawn[0].axes[0].get_yscale() == "log"


def test_a_band_that_reaches_zero_does_not_stretch_the_axis(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot_spectra({"fo": np.array([[1.0, 2, 2], [1, 8, 8]])}, tmp_path / "s.png")

    assert drawn[0].axes[0].get_ylim()[0] == pytest.approx(5 / 3)


def test_the_crossover_has_a_panel_a_corrector(tmp_path: Path, drawn: list[Figure]) -> None:
    steps = np.array([1e3, 1e4, 1e5])
    first = {"zo-field": (steps, CURVES["zo-field"]), "fo": (steps[:2], CURVES["fo"][:, :2])}
    second = {"zo-weights": (steps, CURVES["src"])}
    plot_crossover({"1,024 weights": first, "57k weights": second}, tmp_path / "c.png")

    left, right = drawn[0].axes
    assert [axes.get_title() for axes in (left, right)] == ["1,024 weights", "57k weights"]
    assert [line.get_label() for line in left.get_lines()] == ["zo-field", "fo"]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), CURVES["src"].mean(0))
    assert left.get_xscale() == "log"
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["zo-weights", "zo-field", "fo"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="at least one method, got none"):
        plot_errors(TIMES, {}, path)
    with pytest.raises(ValueError, match="at least one method, got none"):
        plot_spectra({}, path)
    with pytest.raises(ValueError, match="at least one corrector, got none"):
        plot_crossover({}, path)
    with pytest.raises(ValueError, match="at least one method each, got none for 1k"):
        plot_crossover({"1k": {}}, path)
    with pytest.raises(ValueError, match=r"shape \(seeds, 3\), got \(3,\) for a"):
        plot_errors(TIMES, {"a": TIMES}, path)
    with pytest.raises(ValueError, match=r"shape \(seeds, 3\), got \(1, 2\) for a"):
        plot_crossover({"1k": {"a": (TIMES, np.ones((1, 2)))}}, path)
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity for a"):
        plot_errors(TIMES, {"a": np.full((1, 3), math.nan)}, path)
    with pytest.raises(ValueError, match="scores must hold at least one seed, got none"):
        summarize("a", [], simulator_steps=0, seconds=0)
    with pytest.raises(ValueError, match="rows must hold at least one row, got none"):
        table([])
    assert not path.exists()
