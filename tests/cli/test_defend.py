"""``deepzero-apps defend``: what it leaves and asks, how it resumes, what it refuses."""

import json
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deepzero_apps.cli import main
from deepzero_apps.cli.black_boxes import BlackBox
from deepzero_apps.cli.defences import METHODS, TUNED, tuned
from deepzero_apps.cli.defend import DefendSettings
from deepzero_apps.cli.defend import defend as train
from deepzero_apps.cli.scenes import Scene
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.vision import load
from tests.cli import processes
from tests.smoothing.polling_places import LocalPool

SMALL = ["--steps", "3", "--width", "2", "--batch", "16"]
ANSWERS = 1000  # training images of the digits, one clean answer each


def defend(out: Path | str, *flags: str) -> int:
    return main(["defend", "--out", str(out), *SMALL, *flags])


def result(folder: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_every_method_leaves_weights_picture_result_and_metrics(
    tmp_path: Path, cnn_weights: Path, method: str
) -> None:
    flags = ["--classifier", "cnn", "--weights", str(cnn_weights), "--budget", "1500"]
    flags += ["--latent", "4"]
    if method in ("zo-ds", "deepzero", "zo-cv"):
        flags += ["--q", "4"]

    assert defend(tmp_path, "--method", method, *flags) == 0

    found = result(tmp_path)
    # zo-ae-ds: four latent numbers and the base; q = 4 directions (or weights) and the base
    steps = 3 if method in ("mse", "fo-ds") else (1500 - ANSWERS) // (16 * 5)
    queries = 0 if method in ("mse", "fo-ds") else ANSWERS + steps * 16 * 5
    assert (found["method"], found["steps"], found["queries"]) == (method, steps, queries)
    assert (tmp_path / "denoised.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert rows[-1]["queries"] == queries
    start = tmp_path / "start" / "metrics.jsonl"
    if method == "mse":
        assert not start.exists()
    else:
        assert start.read_bytes().count(b"\n") == 3
    assert all(v.isfinite().all() for v in load_file(tmp_path / "denoiser.safetensors").values())
    latest = RunFolder(tmp_path).load_latest()
    assert latest is not None
    learns = bool(latest[1]["companion"])  # what was checked, or a surrogate
    assert learns == (method in ("deepzero", "zo-cv"))


@pytest.mark.parametrize(
    ("flags", "each", "answers"),
    [
        (["--method", "zo-ds", "--q", "2"], 3, ANSWERS),
        (["--method", "zo-cv", "--q", "1", "--objective", "classification"], 2, 0),
        (["--method", "deepzero", "--q", "7"], 8, ANSWERS),
        (["--method", "zo-ae-ds", "--latent", "8"], 9, ANSWERS),
        (["--method", "mse"], 0, 0),
    ],
)
def test_the_classifier_is_asked_as_stated_and_never_beyond_the_budget(
    *, centroids: str, asked: Callable[[], int], flags: list[str], each: int, answers: int
) -> None:
    budget = 1400

    assert defend("run", "--classifier", centroids, "--budget", str(budget), *flags) == 0

    steps = (budget - answers) // (16 * each) if each else 3
    assert result("run")["steps"] == steps
    assert result("run")["queries"] == answers + steps * 16 * each <= budget
    assert asked() == result("run")["queries"] + 1  # the image that every black box is shown


class Flaky(Adapter):
    """Loses every fifth image after one repetition, which it charges, as a service does."""

    classes, name, may_lose, fingerprint = 10, "flaky", True, "f" * 64

    def __init__(self, *, scores: bool) -> None:
        self.scores = scores
        self.sent = 0

    def _answer(self, images: Tensor) -> Tensor:
        lost = torch.arange(len(images)) % 5 == 0
        self.sent += len(images)
        if self.meter is not None:
            self.meter.charge(int(lost.sum()))
            self.sent += int(lost.sum())
        scores = images.flatten(1)[:, 20:30]
        if self.scores:
            return scores.masked_fill(lost[:, None], torch.nan)
        return scores.argmax(1).masked_fill(lost, -1)


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize("method", ["zo-ds", "zo-ae-ds", "deepzero", "zo-cv"])
def test_lost_answers_are_paid_for_and_stop_nothing(
    tmp_path: Path, method: str, scores: bool
) -> None:
    classifier = Flaky(scores=scores)
    settings = DefendSettings(
        method=method, steps=3, width=2, batch=16, latent=4, budget=2000, checkpoint_every=0
    )
    view = Scene(load("digits"), BlackBox(classifier, None, scores=scores))

    found = train(settings, tmp_path / "run", view)

    asked = load_file(tmp_path / "run" / "clean_answers.safetensors")
    assert found["queries"] == classifier.sent <= 2000
    assert found["steps"] > 3
    assert int((next(iter(asked.values())) == -1).sum()) == 200
    assert classifier.meter is None  # certification pays from another budget
    weights = load_file(tmp_path / "run" / "denoiser.safetensors")
    assert all(v.isfinite().all() for v in weights.values())


class Brightest(Adapter):
    """Scores each class by one pixel."""

    classes, name, fingerprint = 10, "brightest", "f" * 64

    def _answer(self, images: Tensor) -> Tensor:
        return 5 * images.flatten(1)[:, 20:30]


@pytest.mark.parametrize("method", ["deepzero", "zo-cv"])
def test_workers_that_answer_in_any_order_and_die_change_no_weight(
    tmp_path: Path, method: str
) -> None:
    settings = DefendSettings(method=method, steps=3, width=2, batch=16, latent=4, budget=2000)
    here, weights, queries = Brightest(), [], set()
    asking = {
        "none": here,
        "one": Spread(here, LocalPool(1)),
        "two": Spread(here, LocalPool(2, seed=1, deaths=5)),
        "four": Spread(here, LocalPool(4, seed=2)),
    }
    for workers, classifier in asking.items():
        found = train(
            settings, tmp_path / workers, Scene(load("digits"), BlackBox(classifier, None))
        )
        weights.append((tmp_path / workers / "denoiser.safetensors").read_bytes())
        queries.add(found["queries"])

    assert weights == 4 * weights[:1]
    assert len(queries) == 1


def test_workers_answer_for_a_module_of_the_user_s(
    centroids: str, asked: Callable[[], int]
) -> None:
    flags = ["--classifier", centroids, "--budget", "1400", "--method", "zo-cv"]
    assert defend("alone", *flags) == 0
    queries = asked()

    assert defend("run", *flags, "--workers", "2") == 0

    assert asked() == 2 * queries
    one, other = (Path(run, "denoiser.safetensors") for run in ("alone", "run"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("method", ["mse", "fo-ds"])
@pytest.mark.parametrize("flag", [("--workers", "2"), ("--cluster", "auto")])
def test_workers_of_a_method_that_asks_nothing_are_refused(
    method: str, flag: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert defend("run", "--method", method, *flag) == 2

    assert f"must be left out for {method}, which asks nothing" in capsys.readouterr().err
    assert not Path("run").exists()


def test_labels_and_levels_widen_the_tuned_step_and_no_other() -> None:
    for method, plain in TUNED.items():
        assert tuned(method) == plain
        assert tuned(method, labels=True).mu >= plain.mu
    assert tuned("zo-cv", bits=8).mu == TUNED["zo-cv"].mu  # .01 is 2.6 levels
    assert tuned("zo-cv", bits=4).mu == 2 / 15
    assert tuned("deepzero", bits=4) == TUNED["deepzero"]


@pytest.mark.parametrize("method", ["zo-ds", "zo-cv"])
def test_a_step_below_two_levels_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    flags = ["--classifier", centroids, "--method", method, "--quantize", "8", "--mu", "0.005"]
    assert defend("run", *flags) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--mu must be at least 0.007843, two levels of --quantize 8" in said
    assert not Path("run").exists()


def test_fo_ds_needs_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert defend(tmp_path / "run", "--method", "fo-ds", "--classifier", "svc") == 2
    assert "--method fo-ds must have a classifier with gradients" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_run_s_folder_is_refused_and_left_alone(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "mse", "--classifier", centroids]
    assert defend("run", *flags) == 0
    before = contents(Path("run"))

    assert defend("run", *flags, "--sigma", "0.25", "--resume") == 1
    assert "run with other settings (sigma: 0.5 in the folder, 0.25" in capsys.readouterr().err
    assert defend("run", *flags) == 1
    assert "holds a run already; pass --resume" in capsys.readouterr().err
    assert contents(Path("run")) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("years")

    assert defend("run", "--method", "mse", "--classifier", centroids) == 1

    assert "must be empty or hold a run, got 'thesis.tex'" in capsys.readouterr().err
    assert contents(Path("run")) == {"thesis.tex": b"years"}


def test_a_finished_run_asks_nothing_again(centroids: str, asked: Callable[[], int]) -> None:
    flags = ["--classifier", centroids, "--budget", "1400"]
    assert defend("run", *flags) == 0
    before, queries = contents(Path("run")), asked()

    assert defend("run", *flags, "--resume", "--json", "result.json") == 0

    assert asked() == queries + 1
    assert contents(Path("run")) == before
    assert json.loads(Path("result.json").read_text())["result"] == result("run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["zo-cv", "deepzero"])
def test_a_killed_run_resumes_to_the_same_bits(
    centroids: str, asked: Callable[[], int], method: str
) -> None:
    flags = ["--method", method, "--classifier", centroids, "--budget", "2000", "--q", "4"]
    flags += ["--checkpoint-every", "0"]
    assert defend("whole", *flags) == 0
    Path("asked.txt").unlink()
    command = ["defend", "--out", "killed", *SMALL, *flags]
    metrics = Path("killed/metrics.jsonl")

    code, _ = processes.stopped(metrics, *command, lines=4, by=signal.SIGKILL)

    assert code == -signal.SIGKILL
    assert not Path("killed/result.json").exists()
    assert defend("killed", *flags, "--resume") == 0
    one, other = (Path(run, "denoiser.safetensors") for run in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert result("killed")["queries"] == result("whole")["queries"]
    # Clean answers are not asked twice: lost are the steps after the last checkpoint, and the
    # two images shown first.
    assert asked() <= result("whole")["queries"] + 2 * 16 * 5 + 2


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_resumes(centroids: str) -> None:
    flags = ["--method", "zo-ds", "--classifier", centroids, "--budget", "40000"]
    assert defend("whole", *flags) == 0
    command = ["defend", "--out", "run", *SMALL, *flags]

    code, said = processes.stopped(Path("run/metrics.jsonl"), *command, lines=2, by=signal.SIGINT)

    assert code == 130
    assert said.startswith("interrupted; --resume with --out")
    assert "Traceback" not in said
    assert defend("run", *flags, "--resume") == 0
    one, other = (Path(run, "denoiser.safetensors") for run in ("whole", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "zo-ds", "--classifier", centroids, "--budget", "1400"]
    assert defend("run", *flags, "--checkpoint-every", "0") == 0
    weights = Path("run/denoiser.safetensors").read_bytes()
    Path("run/result.json").unlink()
    newest = max(Path("run/checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert defend("run", *flags, "--resume") == 0

    assert re.search(r"warning: fell back to the checkpoint of step 4", capsys.readouterr().err)
    assert Path("run/denoiser.safetensors").read_bytes() == weights


def test_clean_answers_are_paid_for_once_and_always_counted(
    centroids: str, asked: Callable[[], int]
) -> None:
    flags = ["--method", "zo-ds", "--q", "4", "--classifier", centroids, "--budget", "1160"]
    assert defend("run", *flags) == 0
    queries = asked()
    Path("run/result.json").unlink()  # as if killed before the first checkpoint
    for checkpoint in Path("run/checkpoints").iterdir():
        checkpoint.unlink()

    assert defend("run", *flags, "--resume") == 0

    assert asked() == queries + 2 * 16 * 5 + 1
    assert result("run")["queries"] == 1160


def test_without_a_whole_checkpoint_the_run_is_left_alone(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "mse", "--classifier", centroids]
    assert defend("run", *flags) == 0
    Path("run/result.json").unlink()
    for checkpoint in Path("run/checkpoints").iterdir():
        checkpoint.write_bytes(b"")
    before = contents(Path("run"))

    assert defend("run", *flags, "--resume") == 1

    assert "no checkpoint can be read" in capsys.readouterr().err
    assert contents(Path("run")) == before


def test_two_runs_do_not_share_a_folder(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepzero_apps.runs.files import lock

    Path("run").mkdir()
    with lock(Path("run/lock")):
        assert defend("run", "--method", "mse", "--classifier", centroids) == 1
    assert "run is in use by another run (process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_one_message(centroids: str) -> None:
    flags = ["--method", "zo-ds", "--classifier", centroids, "--budget", "1400", "--width", "16"]
    preamble = processes.LIMITED.format(20_000)  # less than a checkpoint

    process = processes.start("defend", "--out", "run", *SMALL, *flags, preamble=preamble)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert re.fullmatch(r"error: .*(File too large|free some space).*\n", said)
    assert defend("run", *flags, "--resume") == 0  # with space again
    assert result("run")["queries"] == 1400
