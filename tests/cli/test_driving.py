"""A training run in its folder: checkpoints, the best of them, who watches, how it goes on."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deepzero_apps.cli import main, settings
from deepzero_apps.cli.certify import CertifySettings
from deepzero_apps.cli.correct import CorrectSettings
from deepzero_apps.cli.defend import DefendSettings
from deepzero_apps.cli.settings import UNRECORDED, CommonSettings
from deepzero_apps.cli.train import TrainSettings
from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.tensorfile import save_file
from deepzero_apps.runs.trees import Tree
from tests.cli import processes

TINY = ["--depth", "1", "--width", "2", "--batch", "100", "--estimator", "fo"]  # 10 steps an epoch


def train(out: Path | str, *flags: str) -> int:
    return main(["train", "--out", str(out), *TINY, *flags])


@pytest.mark.parametrize("every", ["0", "1e9"])
def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path: Path, every: str) -> None:
    flags = ["--epochs", "4", "--lr", "0.05", "--keep-checkpoints", "3"]

    assert train(tmp_path, *flags, "--checkpoint-every", every) == 0

    run = RunFolder(tmp_path)
    scores = {r["step"]: r["validation_accuracy"] for r in run.metrics() if "epoch" in r}
    best = run.load_best()
    assert best is not None
    assert best.score == max(scores.values())
    assert best.step == min(step for step, score in scores.items() if score == best.score)
    names = sorted(path.stem for path in (tmp_path / "checkpoints").glob("step-*"))
    # each step has a checkpoint, or only the end of each of the four epochs
    last = (38, 39, 40) if every == "0" else (20, 30, 40)
    assert names == [f"step-{step:012d}" for step in last]


@pytest.mark.parametrize(
    "kind", [TrainSettings, DefendSettings, CorrectSettings, CertifySettings], ids=str
)
def test_what_does_not_define_a_result_is_not_recorded(kind: type[CommonSettings]) -> None:
    watched = {"checkpoint_every": 3, "keep_checkpoints": 7, "track": ("tensorboard",)}
    watched = {name: value for name, value in watched.items() if name in kind.model_fields}
    one = kind(out=Path("a"), log_level="debug", resume=True, **watched)
    other = kind(out=Path("b"))

    assert one.record() == other.record()
    assert not one.record().keys() & UNRECORDED
    # all else is: what is left out by mistake lets another run continue this one
    left_out = kind.model_fields.keys() - one.record().keys() - UNRECORDED
    assert left_out <= {"budget", "canaries", "price"}


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_events(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    out = tmp_path / "run"
    flags = [*TINY, "--epochs", "30", "--checkpoint-every", "0.2", "--track", "tensorboard"]
    command = ["train", "--out", str(out), *flags]
    code, _ = processes.stopped(out / "metrics.jsonl", *command, lines=25, by=signal.SIGKILL)
    assert code == -signal.SIGKILL

    assert main([*command, "--resume"]) == 0

    events = event_accumulator.EventAccumulator(
        str(out / "tensorboard"), purge_orphaned_data=False
    )
    events.Reload()
    rows = RunFolder(out).metrics()
    assert [row["step"] for row in rows] == list(range(1, 301))
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == list(range(1, 301))
    assert [event.value for event in shown] == pytest.approx([r["loss"] for r in rows], rel=1e-6)
    result = json.loads((out / "result.json").read_text())
    (accuracy,) = events.Scalars("result/test_accuracy")
    assert accuracy.value == pytest.approx(result["test_accuracy"], rel=1e-6)
    assert "training" in events.Tags()["images"]


def test_watching_changes_no_bit_and_may_change_on_the_way(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert train(tmp_path / "plain", "--epochs", "1") == 0
    assert train(tmp_path / "watched", "--epochs", "1", "--track", "tensorboard") == 0
    one, other = (tmp_path / name / "weights.safetensors" for name in ("plain", "watched"))
    assert one.read_bytes() == other.read_bytes()

    assert train(tmp_path / "watched", "--epochs", "1", "--resume", "--log-level", "info") == 0


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_told_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda _: None)

    assert train(tmp_path / "run", "--track", name) == 2

    assert f"pip install deepzero-apps[{name}]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--track", "wandb") == 2
    assert "wandb" in "".join(capsys.readouterr())
    assert not (tmp_path / "run").exists()


def test_what_happens_is_told_at_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--epochs", "1", "--log-level", "info") == 0
    said = capsys.readouterr().err
    assert "run begins" in said
    assert "run has a checkpoint of step 10" in said
    assert "took" not in said

    (tmp_path / "run" / "result.json").unlink()
    assert train(tmp_path / "run", "--epochs", "1", "--resume", "--log-level", "debug") == 0
    said = capsys.readouterr().err
    assert "run continues after step 10" in said
    assert "the checkpoint of step 10 took" in said

    assert train(tmp_path / "quiet", "--epochs", "1") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (["--out", "here"], "--resume with --out here and the same flags"),
        ([], "the newest in runs"),
    ],
)
def test_an_interruption_says_how_to_go_on(
    out: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepzero_apps.cli.defend.run", interrupted)
    assert main(["defend", *out]) == 130
    assert words in capsys.readouterr().err

    monkeypatch.setattr("deepzero_apps.cli.plan.run", interrupted)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_function_that_leaves_the_program_is_told_of(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = own_module("def scores(images):\n    raise SystemExit('no more licenses')\n")

    code = main(["defend", "--classifier", f"{name}:scores", "--out", "run", "--steps", "1"])

    assert code == 1
    assert "left the program (SystemExit: no more licenses)" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"step": 3}, [1, 2], "wider"])
def test_a_whole_checkpoint_of_something_else_is_refused_in_one_line(
    other: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "a", "--epochs", "1") == 0
    checkpoint = tmp_path / "a" / "checkpoints" / "step-000000000010.safetensors"
    if other == "wider":
        assert train(tmp_path / "b", "--epochs", "1", "--width", "3") == 0
        shutil.copy(tmp_path / "b" / "checkpoints" / checkpoint.name, checkpoint)
    else:
        save_file(checkpoint, other)
    (tmp_path / "a" / "result.json").unlink()

    assert train(tmp_path / "a", "--epochs", "1", "--resume") == 1

    told = capsys.readouterr().err
    assert "that of step 10" in told
    assert "remove it" in told
    assert told.count("\n") == 1
