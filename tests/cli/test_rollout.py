"""``deepzero-apps rollout``: what it shows of a run, of a bare simulator, and what it refuses."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deepzero_apps.cli import correct, main
from deepzero_apps.cli import rollout as verb
from tests.cli.conftest import DECAY

SMALL = ["--width", "2", "--batch", "2", "--unrolled", "3", "--rollout-steps", "5"]


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second that figures take, where no test looks at them."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(verb, "draw", lambda *_: None)
        monkeypatch.setattr(verb, "animate", lambda *_: None)
        monkeypatch.setattr(correct, "draw", lambda *_: None)


@pytest.fixture
def trained(decay: str) -> str:
    """The problem of a finished run in the folder ``run``."""
    flags = ["--problem", decay, "--updates", "2", "--method", "nog"]
    assert main(["correct", "--out", "run", *SMALL, *flags]) == 0
    return decay


def rollout(out: str, *flags: str) -> int:
    return main(["rollout", "--out", out, "--json", f"{out}.json", *flags])


def document(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        Path(f"{out}.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    return found


def states(out: str) -> dict[str, Any]:
    with np.load(Path(out, "rollout.npz"), allow_pickle=False) as file:
        return dict(file)


def test_a_run_is_shown_in_pictures_beside_the_bare_simulator_and_the_reference(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        rollout("shown", "--run", "run", "--problem", trained, "--steps", "6", "--starts", "3")
        == 0
    )

    found = document("shown")
    assert (found["settings"]["problem"], found["settings"]["split"]) == (trained, "test")
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["src", "nog"]
    assert (rows["src"]["simulator_steps"], rows["nog"]["simulator_steps"]) == (0, 2 * 2 * 3)
    made = states("shown")
    # Two test simulations, three starts each, six steps of .1.
    assert {
        name: made[name].shape for name in ("reference", "coarse", "corrected")
    } == dict.fromkeys(("reference", "coarse", "corrected"), (6, 6, 1, 6, 8))
    np.testing.assert_allclose(made["times"], 0.1 * np.arange(1, 7))
    assert made["parameters"].tolist() == [1.25] * 3 + [2.5] * 3
    for name, row in (("coarse", rows["src"]), ("corrected", rows["nog"])):
        error = np.abs(made[name] - made["reference"]).mean()
        np.testing.assert_allclose(row["mae"], error, rtol=1e-5)  # the file is in single precision
        assert f"{row['mae']:.4f}" in capsys.readouterr().out or name == "corrected"
    for picture in ("errors.png", "fields.png"):
        assert Path("shown", picture).read_bytes().startswith(b"\x89PNG")
    with Image.open("shown/rollout.gif") as gif:
        assert gif.n_frames == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("inside", [[], ["--inside"]])
def test_what_is_rolled_out_is_the_corrector_of_the_run(decay: str, inside: list[str]) -> None:
    flags = ["--problem", decay, "--updates", "1", "--method", "zo-field", *inside]
    assert main(["correct", "--out", "run", *SMALL, *flags]) == 0
    # With no weights but the last bias the control is that constant: a correction of scale times it.
    path = Path("run/corrector.safetensors")
    weights = load_file(path)
    last = max(name for name in weights if name.endswith("bias"))
    constant = {k: v if k == "units" else torch.zeros_like(v) for k, v in weights.items()}
    constant[last] = torch.full_like(weights[last], 0.5)
    save_file(constant, path)

    assert (
        rollout("shown", "--run", "run", "--problem", decay, "--steps", "2", "--starts", "1") == 0
    )

    made = states("shown")
    push = 0.5 * float(weights["units"][3])
    # By the module's definition a forcing f adds .1 f, and a correction c inside is c / dt; means
    # grow by a tenth of rate and parameter in a step.
    growth = 1 + 0.1 * 0.05 * 1.25
    first = made["coarse"][0, 0].mean() + push
    np.testing.assert_allclose(made["corrected"][0, 0].mean(), first, rtol=1e-5)
    second = growth * first + push
    np.testing.assert_allclose(made["corrected"][0, 1].mean(), second, rtol=1e-5)


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("validation", 1), ("test", 2)])
def test_a_bare_simulator_needs_no_run(decay: str, split: str, count: int) -> None:
    assert rollout("bare", "--problem", decay, "--split", split, "--starts", "1") == 0
    assert [row["method"] for row in document("bare")["rows"]] == ["src"]
    made = states("bare")
    assert "corrected" not in made
    assert made["coarse"].shape == (count, 15, 1, 6, 8)  # 16 frames allow 15 steps


def test_without_a_folder_it_goes_into_the_run_s(trained: str) -> None:
    assert main(["rollout", "--run", "run", "--problem", trained]) == 0
    (folder,) = Path("run").glob("rollout-*")
    assert (folder / "rollout.npz").exists()


def test_a_folder_is_used_twice_only_if_asked(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--run", "run", "--problem", trained]
    assert rollout("shown", *own) == 0
    first = document("shown")
    assert rollout("shown", *own) == 1
    assert "holds a run already; pass --resume" in capsys.readouterr().err
    assert rollout("shown", *own, "--resume") == 0
    assert document("shown") == first


def test_a_blow_up_is_shown_in_pictures_and_strict_json(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{own_module(DECAY.replace('Decay(0.05', 'Decay(1e4'))}:problem"
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert rollout("bare", "--problem", name) == 0
    said = capsys.readouterr().err
    assert "the coarse simulator blows up by itself at parameter 2.5, after 0 steps" in said
    (row,) = document("bare")["rows"]
    assert row["blow_ups"] == 4  # two simulations, two starts
    # From its blow-up on, at once here, a rollout counts as -3 times the reference.
    reference = states("bare")["reference"]
    np.testing.assert_allclose(row["mae"], 4 * np.abs(reference).mean(), rtol=1e-5)
    assert np.isnan(states("bare")["coarse"][:, -1]).all()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--run", "absent"], 1, "holds no run"),
        (["--run", "run", "--problem", "burgers"], 2, "--problem must be that of --run"),
        (["--run", "run", "--problem", "wake"], 2, "--problem must be that of --run"),
        (["--run", "run", "--grid", "8x8"], 2, "--grid must be that of --run, None, or left out"),
        (["--run", "run", "--steps", "15"], 2, "error: --steps must lie in [2, 14] for 2 starts"),
        (["--run", "run", "--steps", "1"], 2, "--steps: "),
        (["--run", "run", "--starts", "15"], 2, "must leave 2 of the 16 frames"),
        (["--run", "run", "--split", "all"], 2, "all"),
        (["--run", "other"], 2, "--run must name a folder of correct"),
        (["--run", "unfinished"], 2, "--run must name a finished run"),
        (["--run", "smaller"], 1, "path must hold the network's weights"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    *,
    trained: str,
    flags: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [] if "--problem" in flags else ["--problem", trained]
    config = json.loads(Path("run/config.json").read_text())
    folders = {
        "other": {"method": "zo-ds"},
        "unfinished": config,
        "smaller": {**config, "width": 1},
    }
    for name, fields in folders.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(fields))
    for file in ("result.json", "corrector.safetensors"):
        Path("smaller", file).write_bytes(Path("run", file).read_bytes())

    assert rollout("shown", *flags, *own) == code

    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("shown").exists()


def test_without_a_run_and_a_problem_it_is_the_wake() -> None:
    trained, resolved, result = verb._trained(verb.RolloutSettings())
    assert (trained, resolved.problem, result) == (None, "wake", {})
