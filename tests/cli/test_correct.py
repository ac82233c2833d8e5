"""``deepzero-apps correct``: what it leaves and asks, how it resumes, what it refuses."""

import json
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepzero_apps.cli import correct as verb
from deepzero_apps.cli import main
from tests.cli import processes
from tests.cli.conftest import DECAY

SMALL = ["--width", "2", "--batch", "2", "--unrolled", "3", "--rollout-steps", "5"]
LINE = ["--problem", "burgers-1d", "--grid", "1x16", "--reference", "1x32"]

WEIGHTS = 2 * (2 * 25 + 1) + 2 * (2 * 25 + 1) + 2 * 25 + 1
"""Of the corrector of `decay`: 5x5 kernels, field and parameter in, two channels twice, one out."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the second that figures take, where no test looks at them."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(verb, "draw", lambda *_: None)


def correct(out: str, *flags: str) -> int:
    return main(["correct", "--out", out, *SMALL, *flags])


def result(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return found


def contents(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*.*")}


@pytest.mark.parametrize(
    ("method", "each", "flags"),
    [
        ("non", 1, []),
        ("nog", 3, []),
        ("zo-field", (4 + 1) * 3, ["--q", "4"]),
        ("zo-field", (4 + 1) * 3, ["--q", "4", "--inside"]),
        ("zo-weights", (5 + 1) * 3, ["--q", "5"]),
        ("zo-weights-rge", (2 * 3 + 1) * 3, ["--q", "3"]),
    ],
)
def test_the_simulator_is_asked_as_stated_and_never_beyond_the_budget(
    *, decay: str, asked: Callable[[], int], method: str, each: int, flags: list[str]
) -> None:
    # What is asked besides the budget does not depend on the updates: a run of one tells it.
    common = ["--problem", decay, "--method", method, *flags]
    assert correct("one", *common, "--updates", "1", "--json", "one.json") == 0
    free = asked() - 2 * each
    free -= 15 * 6  # the coarse trajectories, made once: 15 steps of 6 simulations
    before = asked()
    budget = 2 * each * 4 - 1  # short of four updates of two pieces

    assert correct("run", *common, "--budget", str(budget)) == 0

    found = result("run")
    assert (found["method"], found["updates"], found["queries"]) == (method, 3, 3 * 2 * each)
    assert asked() - before == free + found["queries"]
    assert (found["weights"], found["noise"], found["reach"]) == (WEIGHTS, 0.0, "global")
    assert [row["method"] for row in found["validation"]] == ["src", method]
    assert [row["simulator_steps"] for row in found["validation"]] == [0, found["queries"]]
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["queries"] == found["queries"]
    document = json.loads(Path("one.json").read_text())
    assert document["result"] == result("one")
    assert document["settings"]["method"] == method


@pytest.mark.parametrize("line", [True, False])
def test_a_run_leaves_pictures_of_lines_and_of_planes(decay: str, line: bool) -> None:
    assert correct("run", *(LINE if line else ["--problem", decay]), "--updates", "1") == 0
    for picture in ("errors.png", "fields.png"):
        assert Path("run", picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("place", [[], ["--inside"]])
def test_by_colors_the_bill_is_the_one_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Reach one on a periodic line of 16: cells 4 apart share a color. Forward and back for each,
    # at both later steps of three (corrections after), and for all forcings (inside).
    each = 3 + 2 * 4 * 2 + (2 * 4 * 3 if place else 0)

    assert correct("run", *LINE, *place, "--budget", str(2 * each * 2 + 1)) == 0

    found = result("run")
    assert (found["reach"], found["updates"], found["queries"]) == (1, 2, 2 * 2 * each)
    assert correct("none", *LINE, *place, "--budget", str(2 * each - 1)) == 2


def test_zo_field_by_colors_ends_where_fo_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for method in ("fo", "zo-field"):
        flags = ["--method", method, "--updates", "3", "--lr", "0.01", "--loss", "terminal"]
        assert correct(method, *LINE, *flags) == 0
    one, other = (load_file(Path(run, "corrector.safetensors")) for run in ("fo", "zo-field"))
    for name, weights in one.items():
        # Adam's first steps are lr times a sign, whatever the size of the gradient; so relative
        # errors of 1e-6 in a gradient end below 1e-4 of a step unless its sign is in doubt.
        torch.testing.assert_close(other[name], weights, rtol=0, atol=1e-4)
    assert any((weights != 0).any() for name, weights in one.items() if name.endswith("bias"))


def test_training_makes_the_simulator_better(decay: str) -> None:
    flags = ["--method", "zo-field", "--q", "8", "--updates", "40", "--loss", "terminal"]
    assert correct("run", "--problem", decay, *flags) == 0
    bare, corrected = (row["mae"] for row in result("run")["validation"])
    # A wrong sign or scale of the gradient leaves the error where it was or makes it larger.
    assert corrected < 0.7 * bare


def test_trajectories_are_made_once_and_shared(decay: str) -> None:
    assert correct("one", "--problem", decay, "--updates", "1") == 0
    folder = Path("runs/trajectories/box_of_the_user-problem-6x8-6x8-seed0")
    sets = {path.name for path in folder.iterdir()}
    assert sets == {"coarse", "reference"}
    with np.load(folder / "coarse" / "simulation_0001.npz", allow_pickle=False) as file:
        coarse = file["fields"][0]
    with np.load(folder / "reference" / "simulation_0001.npz", allow_pickle=False) as file:
        reference, parameter = file["fields"][0], file["parameters"].item()
    assert np.array_equal(coarse[0], reference[0])
    # By the module's definition the mean grows by a tenth of rate and parameter.
    for fields, rate in ((coarse, 0.05), (reference, 0.1)):
        growth = fields[-1].mean() / fields[0].mean()
        np.testing.assert_allclose(growth, (1 + 0.1 * rate * parameter) ** 15, rtol=1e-12)
    made = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}

    assert correct("two", "--problem", decay, "--updates", "1", "--method", "nog") == 0
    assert correct("six", "--problem", decay, "--updates", "1", "--data", str(folder)) == 0

    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")} == made


def test_a_making_that_was_killed_goes_on_with_what_is_missing(decay: str) -> None:
    assert correct("one", "--problem", decay, "--updates", "1") == 0
    folder = Path("runs/trajectories/box_of_the_user-problem-6x8-6x8-seed0/reference")
    before = contents(str(folder))
    kept = (folder / "simulation_0000.npz").stat().st_mtime_ns
    (folder / "simulation_0003.npz").unlink()

    assert correct("two", "--problem", decay, "--updates", "1") == 0

    assert contents(str(folder)) == before
    assert (folder / "simulation_0000.npz").stat().st_mtime_ns == kept


def test_seeds_of_training_may_share_trajectories(decay: str) -> None:
    flags = ["--problem", decay, "--updates", "2", "--data-seed", "0"]
    assert correct("one", *flags) == 0
    assert correct("two", *flags, "--seed", "1") == 0
    assert len(list(Path("runs/trajectories").iterdir())) == 1
    assert (
        Path("one/corrector.safetensors").read_bytes()
        != Path("two/corrector.safetensors").read_bytes()
    )


def test_a_corrector_may_be_started_from_another(decay: str) -> None:
    flags = ["--problem", decay, "--updates", "1"]
    assert correct("one", *flags) == 0
    start = str(Path("one/corrector.safetensors"))
    # A step this small moves no weight by more than itself.
    assert correct("two", *flags, "--start", start, "--lr", "1e-12") == 0
    one, two = (load_file(Path(run, "corrector.safetensors")) for run in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-6, atol=2e-12)


def test_a_corrector_that_does_not_fit_is_refused(
    decay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert correct("one", "--problem", decay, "--updates", "1") == 0
    start = ["--start", "one/corrector.safetensors"]
    assert correct("two", "--problem", decay, "--width", "3", *start) == 2
    assert "--start: path must hold the network's weights" in capsys.readouterr().err
    assert correct("two", *LINE, *start) == 2
    assert "of another shape" in capsys.readouterr().err
    assert correct("two", "--problem", decay, "--start", "absent") == 2
    assert "found none at" in capsys.readouterr().err
    save_file({"units": torch.zeros(4)}, "units.safetensors")
    assert correct("two", "--problem", decay, "--start", "units.safetensors") == 2
    assert "missing" in capsys.readouterr().err
    assert not Path("two").exists()


def test_a_finished_run_asks_nothing_of_the_budget_again(
    decay: str, asked: Callable[[], int]
) -> None:
    flags = ["--problem", decay, "--updates", "2", "--method", "zo-weights"]
    assert correct("run", *flags) == 0
    before, queries = contents("run"), asked()
    assert correct("run", *flags, "--resume") == 0
    assert contents("run") == before
    assert asked() - queries < 128  # units and the probe: 64 state-steps each at most, twice


def test_another_run_s_folder_is_refused_and_left_alone(
    decay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--problem", decay, "--updates", "1"]
    assert correct("run", *flags) == 0
    before = contents("run")
    assert correct("run", *flags, "--loss", "terminal", "--resume") == 1
    assert 'run with other settings (loss: "every" in the folder' in capsys.readouterr().err
    assert correct("run", *flags) == 1
    assert "holds a run already; pass --resume" in capsys.readouterr().err
    assert contents("run") == before


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(decay: str) -> None:
    # Windows of credit are measured at every eighth update, so the kill must come after two.
    flags = ["--problem", decay, "--method", "zo-field", "--q", "4", "--updates", "60"]
    flags += ["--checkpoint-every", "0"]
    assert correct("whole", *flags) == 0
    command = ["correct", "--out", "killed", *SMALL, *flags]
    metrics = Path("killed/metrics.jsonl")

    code, _ = processes.stopped(metrics, *command, lines=12, by=signal.SIGKILL)

    assert code == -signal.SIGKILL
    assert not Path("killed/result.json").exists()
    assert correct("killed", *flags, "--resume") == 0
    one, other = (Path(run, "corrector.safetensors") for run in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert result("killed")["queries"] == result("whole")["queries"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "src"], "--method must train something, got src"),
        (["--method", "adjoint"], "adjoint"),
        (["--method", "fo"], "--method fo must have a differentiable twin"),
        (["--method", "nog", "--inside"], "--method nog must correct after the step"),
        (["--method", "non", "--inside"], "--method non must correct after the step"),
        (["--q", "8", "--budget", "50"], "must cover one update of 2 pieces with 27 simulator steps each, 54 in"),
        (["--q", "1"], "--q must be at least 2"),
        (["--method", "zo-weights", "--q", "9999"], f"--q must be at most the {WEIGHTS}"),
        (["--output", "potential"], "--output must be one of free for"),
        (["--loss", "every-k", "--every", "4"], "--every must be at most --unrolled, 3, got 4"),
        (["--grid", "20by40"], "--grid: must be ROWSxCOLUMNS, such as 20x40, got 20by40"),
        (["--grid", "0x40"], "--grid: must be ROWSxCOLUMNS"),
        (["--grid", "4x4"], "--grid and --reference must be left out"),
        (["--rollout-steps", "1"], "--rollout-steps: "),
        (["--device", "cuda"], "--device: device must be cpu, got cuda"),
        (["--unrolled", "0"], "--unrolled: "),
        (["--lr", "nan"], "--lr: "),
        (["--resume"], None),
    ],
)  # fmt: skip
def test_misuse_is_refused_and_nothing_is_written(
    decay: str, flags: list[str], words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", "run"] if words else []
    before = sorted(Path().iterdir())

    assert main(["correct", "--problem", decay, *out, *SMALL, *flags]) == 2

    words = words or "--resume must come with --out"
    assert words in " ".join(capsys.readouterr().err.split())
    assert [p for p in sorted(Path().iterdir()) if p.name != "__pycache__"] == before


def test_pieces_and_rollouts_longer_than_the_data_are_refused(
    decay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert correct("run", "--problem", decay, "--rollout-steps", "15") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--rollout-steps must lie in [2, 14] for 2 starts in the 16 frames" in said
    assert correct("run", "--problem", decay, "--unrolled", "16") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--unrolled must be less than the 16 frames" in said
    assert not Path("run").exists()


def test_trajectories_of_another_problem_are_refused(
    decay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert correct("one", "--problem", decay, "--updates", "1", "--data", "data") == 0
    assert correct("two", *LINE, "--data", "data") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f'holds other trajectories (problem: "{decay}" there, "burgers-1d" asked for' in said
    assert correct("two", "--problem", decay, "--data", "data", "--seed", "1") == 1
    assert "seed: 0 there, 1 asked for" in capsys.readouterr().err
    for kind in ("coarse", "reference"):
        file = Path("data", kind, "simulation_0002.npz")
        file.write_bytes(file.read_bytes()[:-7] + b"garbage")
        assert correct("two", "--problem", decay, "--data", "data") == 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"{kind}/simulation_0002.npz is damaged: its checksum is not" in said
    assert not Path("two").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("reference=Decay(0.1)", "reference=Decay(float('nan'))",
         "the reference simulator must answer finite"),
        ("reference=Decay(0.1)", "reference=Decay(1e300)", "must answer finite"),
        ("return one.repeat", "return 1 / 0 + one.repeat", "start of .*: ZeroDivisionError"),
        ("reference=Decay(0.1)", "reference=Decay(0.05)", "there is nothing to correct"),
        ("start=start", "start=lambda p, seed: (np.zeros((len(p), 1, 6, 8)), None)",
         "must change in time"),
        ("restrict=lambda fields: fields", "restrict=lambda fields: fields[..., ::2]",
         r"must hold fields of shape \(1, 6, 8\), .* got \(1, 6, 4\)"),
        ("mean = fields", "mean = {'air': fields}['mesh' if self.noted else 'air']",
         "the coarse simulator of .* failed at step 1: KeyError: 'mesh'"),
        ("frames=16", "frames=0", "frames must be at least 1, got 0"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_simulators_that_fail_are_named(  # noqa: PLR0917
    own_module: Callable[[str], str],
    old: str,
    new: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = own_module(DECAY.replace(old, new))
    assert correct("run", "--problem", f"{name}:problem", "--updates", "2") == 1
    assert re.search(words, " ".join(capsys.readouterr().err.split()))


def test_data_must_be_named_without_a_reference_simulator(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{own_module(DECAY)}:problem"
    assert correct("one", "--problem", name, "--updates", "1", "--data", "data") == 0
    own_module(DECAY.replace("reference=Decay(0.1),", ""))
    assert correct("two", "--problem", name, "--updates", "1") == 2
    assert "--data must name the folder of trajectories" in capsys.readouterr().err
    assert correct("two", "--problem", name, "--updates", "1", "--data", "data") == 0
    assert (
        Path("one/corrector.safetensors").read_bytes()
        == Path("two/corrector.safetensors").read_bytes()
    )


def test_a_simulator_that_does_not_repeat_itself_is_told(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    noise = "after = 1e-3 * np.random.default_rng().standard_normal(fields.shape) * self.noted"
    text = DECAY.replace("        after = fields", f"        {noise} + fields")
    assert correct("run", "--problem", f"{own_module(text)}:problem", "--updates", "2") == 0
    assert "is not deterministic: repeated steps differ by" in capsys.readouterr().out
    found = result("run")
    # The difference of two steps with noise of 1e-3 has sqrt(2) of it, within 20 % for the
    # 4 * 48 numbers compared (one standard error is 5 %, more as they share one of the two).
    assert 0.8 < found["noise"] / (2**0.5 * 1e-3) < 1.2
    assert found["mu"] >= (2 * found["noise"] * 0.01) ** 0.5


def test_a_coarse_flow_that_is_too_fast_is_warned_of(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = DECAY.replace(
        "start=start", "start=start, cfl=lambda fields: 2.5 + 0 * fields[:, 0, 0, 0]"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert correct("run", "--problem", f"{own_module(text)}:problem", "--updates", "1") == 0
    assert "crosses 2.5 cells in a coarse step (CFL number" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_blow_up_in_training_is_one_message(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = DECAY.replace("after = fields", "after = fields / (np.abs(fields).max() < 20)")
    flags = ["--problem", f"{own_module(text)}:problem", "--lr", "1e3", "--updates", "50"]
    assert correct("run", *flags, "--method", "nog") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the coarse simulator of box_of_the_user:problem must answer" in said
    assert "it may have blown up" in said
