"""``deepzero-apps plan``: numbers that a run then keeps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deepzero_apps.cli import main


def planned(*flags: str) -> dict[str, object]:
    assert main(["plan", *flags, "--json", "plan.json"]) == 0
    found: dict[str, object] = json.loads(Path("plan.json").read_text())["forecast"]
    return found


def test_time_and_money_follow_from_queries(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--procedure", "fixed", "--n", "1000", "--images", "36", "--price", "0.01"]

    found = planned(*flags, "--rate", "11", "--budget", "5000")

    assert found["queries"] == 36 * 1_100
    assert found["money"] == pytest.approx(396.0)
    assert found["seconds"] == pytest.approx(3_600)
    assert found["images_within_budget"] == 4
    said = capsys.readouterr().out
    assert "largest radius within reach: 1.2316" in said
    assert "1 h 00 min" in said
    assert "396.00" in said


def test_a_pilot_s_forecast_is_what_a_run_takes(centroids: str, asked: Callable[[], int]) -> None:
    flags = ["--classifier", centroids, "--n0", "50", "--canaries", "0"]
    pilot = ["--procedure", "anytime", "--n", "500", "--images", "60", "--out", "pilot"]
    assert main(["certify", *flags, *pilot]) == 0
    found = planned("--pilot", "pilot", "--n0", "50", "--n", "5000", "--images", "60")
    before = asked()

    decide = ["--procedure", "decide", "--n", "5000", "--images", "60", "--out", "run"]
    assert main(["certify", *flags, *decide]) == 0

    # of the same 60 images; their probabilities are known to .02, and 5 of them decide half of it
    assert asked() - before == pytest.approx(found["queries"], rel=0.5)


def test_a_budget_is_shared_among_the_images_of_anytime() -> None:
    found = planned("--procedure", "anytime", "--budget", "50000", "--images", "50")

    assert found["queries"] <= 50_000  # type: ignore[operator]
    assert found["queries_an_image"] == pytest.approx(1_000, rel=0.2)  # some are given up


def test_misuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--images", "0"]) == 2
    assert "--images must be at least 1" in capsys.readouterr().err
    assert main(["plan", "--procedure", "anytime", "--budget", "100", "--images", "50"]) == 2
    assert "--budget, --images: n must be at least" in capsys.readouterr().err
    assert main(["plan", "--radii", "5"]) == 2
    assert "radii must be at most" in capsys.readouterr().err
    assert main(["plan", "--pilot", "absent"]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_pilot_under_other_noise_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pilot = ["--classifier", centroids, "--images", "2", "--n", "60", "--out", "pilot"]
    assert main(["certify", *pilot, "--sigma", "0.25"]) == 0

    assert main(["plan", "--pilot", "pilot", "--sigma", "0.5"]) == 2

    assert "--sigma must be that of --pilot, 0.25" in capsys.readouterr().err
