"""``deepzero-apps demo``: the first thing a stranger runs."""

import json
from dataclasses import replace
from pathlib import Path

import joblib
import pytest

from deepzero_apps.cli import main
from deepzero_apps.cli.defences import TUNED


@pytest.mark.slow
def test_the_demo_prints_its_table_and_draws_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TUNED, "mse", replace(TUNED["mse"], steps=20))

    flags = ["--budget", "3000", "--images", "2", "--out", "run", "--json", "rows.json"]

    with joblib.parallel_config("sequential"):  # other processes would not see the fewer steps
        code = main(["demo", *flags])

    assert code == 0
    said = capsys.readouterr().out
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["none", "mse", "zo-cv"]
    for row in rows:
        assert f"{row['acr']:.3f}" in said
    assert rows[-1]["queries"] <= 3000
    assert "r=0.25" in said
    assert "run/certified_accuracy.png" in said
    assert Path("run/certified_accuracy.png").exists()
    assert Path("run/zo-cv/denoised.png").exists()


def test_a_wish_it_cannot_grant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--budget", "900", "--out", "run"]) == 2
    assert "--budget must cover one step of" in capsys.readouterr().err
    assert main(["demo", "--resume"]) == 2
    assert "--resume must come with --out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
