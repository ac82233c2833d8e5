"""``deepzero-apps demo``: the first thing a stranger runs."""

import json
from dataclasses import replace
from pathlib import Path

import joblib
import pytest

from deepzero_apps.cli import main
from deepzero_apps.cli.corrections import TUNED as TUNED_CORRECTIONS
from deepzero_apps.cli.defences import TUNED


@pytest.mark.slow
def test_the_demo_prints_its_tables_and_draws_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TUNED, "mse", replace(TUNED["mse"], steps=20))
    flags = ["--budget", "3000", "--images", "2", "--steps", "250", "--out", "run"]

    with joblib.parallel_config("sequential"):  # other processes would not see the fewer steps
        code = main(["demo", *flags, "--json", "rows.json"])
        said = capsys.readouterr().out
        document = json.loads(Path("rows.json").read_text())
        again = main(["demo", *flags, "--resume", "--json", "again.json"])

    assert (code, again) == (0, 0)
    assert json.loads(Path("again.json").read_text()) == document
    assert set(document) == {"settings", "defence", "correction"}
    assert [row["method"] for row in document["defence"]] == ["none", "mse", "zo-cv"]
    for row in document["defence"]:
        assert f"{row['acr']:.3f}" in said
    assert document["defence"][-1]["queries"] <= 3000
    assert "r=0.25" in said
    src, field = document["correction"]
    assert (src["method"], field["method"]) == ("src", "zo-field")
    update = 3 * 4 * (TUNED_CORRECTIONS["zo-field"].q + 1)  # pieces, steps, directions
    assert field["simulator_steps"] == 250 // update * update
    for row in (src, field):
        assert f"{row['mae']:.4f}" in said
    for path in (
        "run/defence/certified_accuracy.png",
        "run/defence/zo-cv/denoised.png",
        "run/correction/rollout.gif",
        "run/correction/fields.png",
        "run/correction/errors.png",
    ):
        assert path in said
        assert Path(path).stat().st_size > 1_000


def test_a_wish_it_cannot_grant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, words in (
        (["--budget", "900", "--out", "run"], "--budget must cover one step of"),
        (["--steps", "11", "--out", "run"], "--steps must cover one update of 3 pieces with"),
        (["--only", "both"], "both"),
        (["--resume"], "--resume must come with --out"),
    ):
        assert main(["demo", *flags]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("thesis.tex", ["--resume"], "--out must be empty or hold a demo, got 'thesis.tex'"),
        ("thesis.tex", [], "--out must be empty or hold a demo, got 'thesis.tex'"),
        ("defence", [], "--out holds a demo already, got run; pass --resume"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run", name).mkdir(parents=True)
    assert main(["demo", "--out", "run", *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert [str(path) for path in Path().rglob("*")] == ["run", f"run/{name}"]
