"""``deepzero-apps compare correction``: the table, equal budgets, resumption, processes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepzero_apps.cli import compare_correction as verb
from deepzero_apps.cli import main
from deepzero_apps.cli.corrections import METHODS, TUNED
from tests.cli.conftest import DECAY

SMALL = ["--width", "2", "--batch", "2", "--unrolled", "3", "--rollout-steps", "5"]
LINE = ["--problem", "burgers-1d", "--grid", "1x16", "--reference", "1x32"]
KEYS = {
    "method", "seeds", "mae", "mae_std", "mae_interval", "relative_l2", "correlation_time",
    "spectrum_error", "divergence", "blow_ups", "simulator_steps", "seconds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second that figures take, where no test looks at them."""
    if "picture" not in request.node.name:
        for name in ("draw", "animate", "plot_spectra"):
            monkeypatch.setattr(verb, name, lambda *_, **__: None)


def compare(out: str, *flags: str) -> int:
    common = ["--out", out, "--json", f"{out}.json", "--workers", "1", *SMALL]
    return main(["compare", "correction", *common, *flags])


def rows(out: str) -> list[dict[str, Any]]:
    """The rows of the JSON file, without what depends on the clock."""
    document: dict[str, Any] = json.loads(
        Path(f"{out}.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


def test_all_methods_stand_in_the_table_and_in_pictures_at_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert compare("run", *LINE, "--budget", "600", "--seeds", "2") == 0

    document = json.loads(Path("run.json").read_text())
    assert set(document) == {"settings", "rows"}
    assert document["settings"]["budget"] == 600
    assert [row["method"] for row in document["rows"]] == list(METHODS)
    # What an update costs: pieces * (steps * (1 + what is moved) or, by colors, 3 + 2 * 4 * 2).
    costs = {"non": 2, "nog": 6, "zo-field": 2 * (3 + 2 * 4 * 2), "fo": 6}
    costs["zo-weights"] = 6 * (TUNED["zo-weights"].q + 1)
    costs["zo-weights-rge"] = 6 * (2 * TUNED["zo-weights-rge"].q + 1)
    for row in document["rows"]:
        assert row.keys() == KEYS
        method = row["method"]
        spent = 600 // costs[method] * costs[method] if method != "src" else 0
        assert row["simulator_steps"] == spent
        assert row["seeds"] == (1 if method == "src" else 2)
        if method == "src":
            assert row["mae_std"] is None
        elif method == "nog":  # for all others by the same lines
            maes = _maes(row["method"])
            np.testing.assert_allclose(row["mae"], np.mean(maes), rtol=1e-12)
            np.testing.assert_allclose(row["mae_std"], np.std(maes, ddof=1), rtol=1e-9)
        assert row["divergence"] is None
    said = capsys.readouterr().out
    assert all(f" {method} " in said for method in METHODS)
    for picture in ("errors.png", "fields.png", "spectra.png"):
        assert Path("run", picture).read_bytes().startswith(b"\x89PNG")
    with Image.open("run/rollout.gif") as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]


def _maes(method: str) -> list[float]:
    """The errors of a method's runs on the test simulations, by the command that shows one."""
    errors = []
    for seed in ("0", "1"):
        out = f"{method}-{seed}"
        flags = ["--run", f"run/{method}/{seed}", "--steps", "5", "--out", out]
        assert main(["rollout", *flags, "--json", f"{out}.json"]) == 0
        errors.append(json.loads(Path(f"{out}.json").read_text())["rows"][1]["mae"])
    return errors


def test_the_gap_that_is_closed_is_a_share_of_that_from_src_to_fo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--methods", "src", "non", "nog", "fo", "--seeds", "1", "--updates", "200"]

    assert compare("run", *LINE, *flags) == 0

    mae = {row["method"]: row["mae"] for row in rows("run")}
    said = capsys.readouterr().out
    for start in ("src", "non"):
        line = re.search(
            rf"^share of the gap in MAE from {start} to fo .*: (.*)$", said, re.MULTILINE
        )
        assert (line is not None) == (mae["fo"] < mae[start])
        if line is not None:
            gap = mae[start] - mae["fo"]
            others = [m for m in ("non", "nog") if m != start]
            shares = [f"{m} {100 * (mae[start] - mae[m]) / gap:.0f} %" for m in others]
            assert line[1] == ", ".join(shares)
    assert mae["fo"] < mae["src"]


def test_methods_that_do_not_fit_are_left_out_and_said(
    decay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("run", "--problem", decay, "--inside", "--seeds", "1", "--updates", "1") == 0
    kept = [row["method"] for row in rows("run")]
    assert kept == ["src", "zo-weights", "zo-weights-rge", "zo-field"]
    said = capsys.readouterr().out
    assert f"fo is left out: {decay} has no differentiable twin" in said
    assert "nog is left out: its gradient stops at the simulator" in said


def test_a_comparison_resumes_and_pays_for_nothing_twice(
    decay: str, asked: Callable[[], int]
) -> None:
    flags = ["--problem", decay, "--methods", "src", "nog", "zo-field", "--updates", "2"]
    flags += ["--seeds", "2"]
    assert compare("run", *flags) == 0
    first, weights = rows("run"), _weights("run")
    Path("run/result.json").unlink()
    for name in ("result.json", "corrector.safetensors"):
        Path("run/nog/1", name).unlink()
    before = asked()

    assert compare("run", *flags, "--resume") == 0

    assert rows("run") == first
    assert _weights("run") == weights
    resumed = asked() - before
    data = "runs/trajectories/box_of_the_user-problem-6x8-6x8-seed0"
    assert compare("new", *flags, "--data", data) == 0
    assert rows("new") == first
    # Saved are two updates of two pieces, of 3 steps (nog) or 3 * (q + 1) (zo-field), by each
    # seed; and for three runs, all but that without its result, the validation: two starts,
    # five steps, bare and corrected.
    saved = 2 * 2 * 2 * (3 + 3 * (TUNED["zo-field"].q + 1)) + 3 * 2 * 5 * 2
    assert asked() - before - resumed - resumed == saved


def _weights(out: str) -> dict[str, bytes]:
    files = Path(out).rglob("corrector.safetensors")
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_the_number_of_processes_decides_nothing(decay: str) -> None:
    flags = ["--problem", decay, "--methods", "nog", "zo-field", "--updates", "2", "--seeds", "1"]
    assert compare("one", *flags) == 0
    assert compare("two", *flags, "--workers", "2") == 0
    assert rows("one") == rows("two")
    assert _weights("one") == _weights("two")


def test_a_training_that_fails_counts_as_blown_up(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Two states at a time are pieces in training: it fails in the fourth update of three steps.
    count = "Path('asked.txt').read_text().split().count('2')"
    fails = f"{{}}['mesh'] if self.noted and len(fields) == 2 and {count} > 9 else 1"
    text = DECAY.replace("mean = fields", f"mean = ({fails}) * fields")
    flags = ["--problem", f"{own_module(text)}:problem", "--methods", "src", "nog"]

    assert compare("run", *flags, "--seeds", "1", "--updates", "30") == 0

    said = capsys.readouterr().out
    assert "nog, seed 0: training failed, counted as blown up from the start: the coarse" in said
    assert "KeyError: 'mesh'" in said
    src, nog = rows("run")
    assert (src["blow_ups"], nog["blow_ups"]) == (0, 4)  # two simulations, two starts
    assert nog["mae"] > src["mae"]
    assert nog["simulator_steps"] == 3 * 2 * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "fo"], "--methods must name one that fits"),
        (["--methods", "nog", "nog"], "--methods must name each method once"),
        (["--methods", "magic"], "magic"),
        (["--budget", "5"], "--budget must cover one update"),
        (["--seeds", "0"], "--seeds: "),
        (["--workers", "0"], "--workers: "),
        (["--output", "none"], "--output must be one of free"),
        (["--json", "absent/file"], "--json: json must name a file in a folder that exists"),
        (["--resume"], None),
    ],
)
def test_misuse_is_refused_and_nothing_is_written(
    decay: str, flags: list[str], words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", "run"] if words else []
    words = words or "--resume must come with --out"

    assert main(["compare", "correction", "--problem", decay, *out, *flags]) == 2

    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("run").exists()
    assert not Path("runs").exists()
