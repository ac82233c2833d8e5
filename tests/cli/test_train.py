"""``deepzero-apps train``: what it leaves, how it resumes, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepzero_apps.cli import main
from deepzero_apps.vision import adjustable_cnn, load_weights

TINY = ["--depth", "1", "--width", "2", "--batch", "100"]  # 54 weights, 10 steps an epoch


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)  # as in a process of its own


def train(out: Path, *flags: str) -> int:
    return main(["train", "--out", str(out), *TINY, *flags])


def test_a_run_leaves_weights_result_metrics_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "result.json"

    assert train(out, "--epochs", "2", "--json", str(file)) == 0

    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["parameters"], result["queries"]) == (20, 54, 20 * 55)
    assert json.loads(file.read_text())["result"] == result
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["queries"] for row in rows] == [55 * step for step in range(1, 21)]
    validated = {row["step"]: row["validation_accuracy"] for row in rows if "epoch" in row}
    assert set(validated) == {10, 20}
    assert validated[20] == result["validation_accuracy"]
    network = adjustable_cnn(1, width=2, channels=1)
    load_weights(network, out / "weights.safetensors")
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert f"test accuracy {result['test_accuracy']:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "queries"),
    [
        (["--estimator", "fo"], 10),
        (["--estimator", "rge", "--q", "3", "--mu", "1e-4"], 10 * 4),
        (["--estimator", "rge", "--q", "3", "--directions", "sphere", "--central"], 10 * 7),
        # Of 54 weights 14 are kept; six layers, eight directions each and the base score them.
        (["--sparsity", "0.75", "--interval-unit", "epochs"], 10 * 15 + 49),
        (["--sparsity", "0.75", "--allocation", "uniform", "--hold-unselected"], 10 * 15),
        (["--sparsity", "0.75", "--stale-decay", "0.9", "--order", "cyclic"], 10 * 15 + 49),
        # Two batch norm weights and biases, a convolution of 20 weights, ten logits, the loss twice.
        (["--estimator", "outputs"], 10 * (4 + 20 + 10 + 2)),
        (["--estimator", "outputs", "--sparsity", "0.5"], 10 * (4 + 10 + 5 + 2)),
        (["--budget", "200"], 3 * 55),
    ],
)
def test_queries_are_as_stated(tmp_path: Path, flags: list[str], queries: int) -> None:
    assert train(tmp_path, "--epochs", "1", *flags) == 0
    assert json.loads((tmp_path / "result.json").read_text())["queries"] == queries


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    flags = ["--epochs", "8", "--sparsity", "0.5", "--checkpoint-every", "0", "--clip", "1"]
    flags += ["--stale-decay", "0.8", "--interval", "3", "--reset-momentum"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, *flags) == 0
    command = [sys.executable, "-c", "from deepzero_apps.cli import main; main()", "train"]
    started = subprocess.Popen(
        [*command, "--out", str(killed), *TINY, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        _wait_for_rows(killed / "metrics.jsonl", rows=5, process=started)
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
    assert not (killed / "result.json").exists()

    assert train(killed, *flags, "--resume") == 0

    expected = load_file(whole / "weights.safetensors")
    for name, value in load_file(killed / "weights.safetensors").items():
        assert value.equal(expected[name]), name
    ends = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    assert ends[0]["queries"] == ends[1]["queries"]
    steps = [
        json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 81))


def _wait_for_rows(path: Path, *, rows: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.002)


def test_a_finished_run_is_reported_again_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--epochs", "1", "--estimator", "fo") == 0
    said = capsys.readouterr().out
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.*")}

    assert train(tmp_path, "--epochs", "1", "--estimator", "fo", "--resume") == 0

    assert capsys.readouterr().out == said
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.*")} == before


def test_a_file_sets_fields_and_flags_override_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("estimator: fo\nepochs: 3\nlr: 0.02\n")
    out = tmp_path / "run"

    assert train(out, "--config", str(file), "--epochs", "1") == 0

    config = json.loads((out / "config.json").read_text())
    assert (config["estimator"], config["epochs"], config["lr"]) == ("fo", 1, 0.02)


def test_the_settings_of_a_run_start_an_equal_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(first, "--epochs", "1", "--estimator", "fo", "--seed", "3") == 0

    assert main(["train", "--out", str(second), "--config", str(first / "config.json")]) == 0

    one, other = ((run / "weights.safetensors").read_bytes() for run in (first, second))
    assert one == other


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "--config must hold fields of this command, got epoch"),
        ("epochs: many", "--config: field epochs: .* got 'many'"),
        ("epochs: 0", "--epochs: Input should be greater than or equal to 1, got 0"),
        ("- 3", r"--config must name a readable .* must hold a mapping of fields, got list"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)

    assert train(tmp_path / "run", "--config", str(file)) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sparsity", "1"], "--sparsity"),
        (["--sparsity", "-0.1"], "--sparsity"),
        (["--mu", "0"], "--mu"),
        (["--estimator", "rge", "--q", "0"], "--q"),
        (["--q", "5"], "--q must be left out for cge, got 5"),
        (["--stale-decay", "1.5", "--sparsity", "0.5"], "--stale-decay"),
        (["--stale-decay", "0.5"], "--stale-decay must be left out unless weights are moved"),
        (["--reset-momentum"], "--reset-momentum must be left out unless weights are moved"),
        (
            ["--estimator", "outputs", "--sparsity", "0.5", "--stale-decay", "0.5"],
            "--stale-decay must be left out unless weights are moved",
        ),
        (["--estimator", "outputs", "--central"], "--central must be left out for outputs"),
        (["--estimator", "outputs", "--mu-outputs", "0"], "--mu-outputs"),
        (["--estimator", "rge", "--sparsity", "0.5"], "--sparsity must be 0 for rge"),
        (["--depth", "4"], "--depth must be at most 3 for images of 8x8"),
        (["--batch", "1001"], "--batch must be at most the 1000 training images, got 1001"),
        (["--warmup", "10", "--epochs", "1"], "--warmup must be fewer than the run's 10 steps"),
        (["--sparsity", "0.5", "--budget", "9"], "--budget must cover the scores of --allocation"),
        (["--root", "somewhere"], "--root: root must be left out"),
        (["--dataset", "cifar10", "--root", "/nowhere"], "pass --download"),
        (["--dataset", "npz"], "--root"),
        (["--dataset", "folder", "--root", "/nowhere"], "--root"),
        (["--network", "resnet21"], "--network"),
        (["--device", "cuda:99"], "--device"),
        (["--json", "/nowhere/file"], "--json: json must name a file in a folder that exists"),
    ],
)
def test_misuse_is_refused_by_flag_and_nothing_is_written(
    tmp_path: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--epochs", "1", "--estimator", "fo") == 0
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.*")}

    assert train(tmp_path, "--epochs", "1", "--estimator", "fo", "--lr", "0.5", "--resume") == 1

    assert "holds a run with other settings (lr: 0.03 in the folder" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.*")} == before


@pytest.mark.slow
def test_workers_and_resumption_without_them_end_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    flags = ["--dataset", "digits", "--width", "4", "--epochs", "1", "--batch", "600"]
    flags += ["--sparsity", "0.5", "--stale-decay", "0.5"]

    assert main(["train", "--out", str(tmp_path / "alone"), *flags]) == 0
    assert main(["train", "--out", str(tmp_path / "two"), *flags, "--workers", "2"]) == 0

    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("alone", "two")]
    assert files[0] == files[1]
    assert main(["train", "--out", str(tmp_path / "two"), *flags, "--resume"]) == 0


def test_workers_for_what_has_no_pieces_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "--out", str(tmp_path / "x"), "--estimator", "fo", "--workers", "2"])

    assert code == 2
    assert "--workers must be left out for fo, got 2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()
