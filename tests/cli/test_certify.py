"""``deepzero-apps certify``: what it writes, what it asks, what it refuses."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deepzero_apps.cli import main
from deepzero_apps.cli.certify import CertifySettings
from deepzero_apps.cli.scenes import held
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.sequences import lower_bound_anytime
from deepzero_apps.smoothing.vote_log import read_votes
from tests.cli import processes
from tests.cli.conftest import CENTROIDS

VOTES = ["--images", "4", "--n", "60", "--n0", "10"]
TRAIN = ["--steps", "3", "--width", "2", "--batch", "16"]


def certify(*flags: str) -> int:
    return main(["certify", *VOTES, *flags])


def certificates(folder: Path | str) -> list[dict[str, Any]]:
    text = (Path(folder) / "certificates.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def timeless(folder: Path | str) -> dict[int, dict[str, Any]]:
    return {c["index"]: {**c, "seconds": 0} for c in certificates(folder)}


def test_the_bare_classifier_gets_certificates_in_the_field_s_columns(
    centroids: str, asked: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", "run", "--classifier", centroids, "--sigma", "0.25", "--json", "rows.json"]

    assert certify(*flags) == 0

    # 4 canaries are asked 4 times, and every black box is shown one image first
    assert asked() == 4 * (60 + 10) + 4 * 4 + 1
    head, *rows = Path("run/certificates.tsv").read_text().splitlines()
    assert head.split("\t") == ["idx", "label", "predict", "radius", "correct", "time"]
    found = certificates("run")
    for row, one in zip(rows, found, strict=True):
        index, label, predicted, radius, correct, _ = row.split("\t")
        assert (int(index), int(label)) == (one["index"], one["label"])
        assert (int(predicted), float(radius)) == (one["predicted"], one["radius"])
        assert bool(int(correct)) is one["correct"]
    assert {one["settings"]["sigma"] for one in found} == {0.25}
    document = json.loads(Path("rows.json").read_text())
    (summary,) = document["rows"]
    assert document["settings"]["sigma"] == 0.25
    assert summary["certified_accuracy"]["0.0"] == sum(bool(c["correct"]) for c in found) / 4
    assert Path("run/certified_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "4 test images of digits, sigma 0.25, N 60" in capsys.readouterr().out


def test_a_defend_run_brings_its_settings_along(centroids: str) -> None:
    trained = ["--method", "zo-ds", "--classifier", centroids, "--budget", "1400"]
    assert main(["defend", "--out", "run", *TRAIN, *trained, "--sigma", "0.25"]) == 0

    assert certify("--run", "run", "--json", "rows.json", "--classifier", centroids) == 0

    document = json.loads(Path("rows.json").read_text())
    assert document["rows"][0]["queries"] == 1400
    assert document["rows"][0]["method"] == "zo-ds"
    settings = document["settings"]
    assert (settings["sigma"], settings["classifier"], settings["width"]) == (0.25, centroids, 2)
    assert {c["settings"]["sigma"] for c in certificates("run/certificates")} == {0.25}


def test_a_wish_that_contradicts_the_run_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TRAIN, "--method", "mse", "--classifier", centroids, "--sigma", "0.25"]
    assert main(["defend", "--out", "run", *flags]) == 0

    assert certify("--run", "run", "--sigma", "0.12", "--classifier", centroids) == 2

    said = capsys.readouterr().err
    assert "--sigma must be that of --run, 0.25, or left out, got 0.12" in said
    assert not Path("run/certificates").exists()
    assert certify("--run", "run", "--sigma", "0.25", "--classifier", centroids) == 0


def test_votes_do_not_depend_on_rows_or_resumption(
    centroids: str, asked: Callable[[], int]
) -> None:
    assert certify("--out", "whole", "--classifier", centroids) == 0
    assert certify("--out", "run", "--classifier", centroids, "--rows", "7") == 0
    journal = Path("run/certificates.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # as a kill may leave it
    queries = asked()

    assert certify("--out", "run", "--classifier", centroids, "--resume") == 0

    # votes are kept: only the probe, and 4 canaries at the start and at the end
    assert asked() - queries == 1 + 4 + 4
    one, other = certificates("whole"), certificates("run")
    assert [c["votes"] for c in one] == [c["votes"] for c in other]
    assert certify("--out", "run", "--classifier", centroids, "--resume") == 0
    assert asked() - queries == 1 + 4 + 4 + 1  # a finished run is only shown one image


def test_a_changed_classifier_is_refused(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import torch\ntorch.manual_seed({})\n"
        "network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    name = own_module(text.format(0)) + ":network"
    trained = ["--method", "mse", "--classifier", name, *TRAIN]
    assert main(["defend", "--out", "run", *trained]) == 0
    assert certify("--run", "run", "--classifier", name) == 0
    assert certify("--out", "bare", "--classifier", name) == 0
    before = Path("bare/certificates.jsonl").read_bytes()
    own_module(text.format(1))
    capsys.readouterr()

    assert certify("--run", "run", "--classifier", name, "--resume") == 2
    assert "--run must meet the classifier that it was trained with" in capsys.readouterr().err
    assert certify("--out", "bare", "--classifier", name, "--resume") == 1
    assert re.search(r"^error: .*has classifier", capsys.readouterr().err)
    assert Path("bare/certificates.jsonl").read_bytes() == before


def test_radii_are_decided_with_few_votes(centroids: str, asked: Callable[[], int]) -> None:
    flags = ["--classifier", centroids, "--sigma", "0.25", "--n", "5000", "--out", "run"]
    flags += ["--procedure", "decide", "--radii", "0.1", "0.3"]
    assert main(["certify", "--images", "6", *flags]) == 0

    found = certificates("run")
    assert {c["stop"] for c in found} <= {"decided", "futile", "limit"}
    assert asked() == sum(c["asked"] for c in found) + 4 * 6 + 1
    assert asked() < 6 * 5_100 / 2
    for c in found:
        p = lower_bound_anytime(c["votes"], c["votes"] + c["other_votes"], 0.001)
        assert c["p_lower"] == (p if c["votes"] else 0)


def test_a_budget_is_hard_and_can_be_raised(
    centroids: str, asked: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--classifier", centroids, "--out", "run", "--procedure", "anytime", "--n", "300"]
    wanted = ["certify", "--images", "5", "--n0", "10", "--canaries", "2", *flags]
    assert main([*wanted, "--budget", "1001"]) == 0

    assert asked() == 1001  # the image that opens it among them
    assert {c["stop"] for c in certificates("run")} <= {"budget", "futile"}
    assert len(certificates("run")) == 5
    assert "1,001 queries, 200 an image" in capsys.readouterr().out
    before = {c["index"]: c["asked"] for c in certificates("run")}

    assert main([*wanted, "--budget", "100000", "--resume"]) == 0

    after = certificates("run")
    assert {c["stop"] for c in after} <= {"limit", "futile"}
    assert all(c["asked"] >= before[c["index"]] for c in after)
    assert (
        main(["certify", "--images", "5", "--n0", "10", *flags[:2], *flags[4:], "--out", "x"]) == 0
    )
    unhurried = {c["index"]: (c["votes"], c["radius"]) for c in certificates("x")}
    for c in after:  # looks at the budget's end may only add to what is known
        assert c["radius"] >= unhurried[c["index"]][1]


def test_a_budget_too_small_for_an_image_is_one_message(
    centroids: str, asked: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify("--classifier", centroids, "--out", "run", "--budget", "69") == 2

    assert asked() == 69
    assert "--budget must pay for the votes of one image at least, got 69" in (
        capsys.readouterr().err
    )
    assert certify("--classifier", centroids, "--out", "run", "--budget", "69", "--resume") == 2
    assert "--budget must be above the 69 queries spent, got 69" in capsys.readouterr().err
    assert certify("--classifier", centroids, "--out", "run", "--budget", "130", "--resume") == 0
    assert asked() == 130
    assert "the budget ended after 1 of 4 images" in capsys.readouterr().out


def test_shards_are_disjoint_and_complete(centroids: str) -> None:
    for part in ("1/2", "2/2"):
        out = f"part-{part[0]}"
        assert certify("--classifier", centroids, "--out", out, "--shard", part) == 0

    assert [c["index"] for c in certificates("part-1")] == [0, 2]
    assert [c["index"] for c in certificates("part-2")] == [1, 3]


def test_a_black_box_that_changes_is_told_and_written_down(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
import numpy as np
calls = 0
def labels(images):
    global calls
    calls += 1
    return np.full(len(images), 3 if calls < 8 else 4)
"""
    name = own_module(text) + ":labels"

    assert certify("--classifier", name, "--out", "run", "--rows", "70") == 0

    assert "FINDING change: canaries got other answers" in capsys.readouterr().out
    for c in certificates("run"):
        assert c["findings"][0].startswith("change: canaries got other answers")


def test_votes_of_a_changed_model_are_told_on_resumption(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import numpy as np\ndef labels(images):\n    return np.full(len(images), {})\n"
    name = own_module(text.format(3)) + ":labels"
    assert certify("--classifier", name, "--out", "run", "--budget", "150") == 0
    own_module(text.format(4))  # a function is known by its name alone

    assert certify("--classifier", name, "--out", "run", "--budget", "9999", "--resume") == 0

    assert "FINDING change" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_asks_nothing_twice_and_ends_in_the_same_certificates(
    centroids: str, asked: Callable[[], int]
) -> None:
    flags = ["--classifier", centroids, "--rows", "50", "--n", "400", "--images", "30"]
    flags += ["--n0", "20", "--canaries", "0"]
    assert main(["certify", *flags, "--out", "whole"]) == 0
    queries = asked()
    process = processes.start("certify", *flags, "--out", "run")
    deadline = time.monotonic() + 60
    while not (Path("run/votes.jsonl").exists() and asked() > queries + 2_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.communicate()

    assert main(["certify", *flags, "--out", "run", "--resume"]) == 0

    # each process is shown one image first; the call at work when it was killed is asked again
    again = asked() - queries - 2 - 30 * 420
    assert 0 <= again <= 50
    assert read_votes(Path("run")).unanswered == again or again == 0
    whole, run = ({c["index"]: c for c in certificates(f)} for f in ("whole", "run"))
    for c in (*whole.values(), *run.values()):
        del c["seconds"]
    assert run == whole


def settled(count: Callable[[], int], *, seconds: float = 4.0) -> int:
    """Waits until a count has not grown for a while."""
    before = -1
    while (now := count()) != before:
        before = now
        time.sleep(seconds)
    return now


def test_workers_ask_what_one_process_asks(centroids: str, asked: Callable[[], int]) -> None:
    flags = ["--classifier", centroids, "--n", "500", "--rows", "64"]
    assert certify("--out", "whole", *flags) == 0
    queries = asked()

    assert certify("--out", "run", *flags, "--workers", "2") == 0

    assert asked() == 2 * queries  # noted by the workers too, in the same working directory
    assert timeless("run") == timeless("whole")
    assert read_votes(Path("run")).spent == read_votes(Path("whole")).spent == queries
    assert "workers" not in json.loads(Path("run/config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_with_workers_is_stopped_and_continued_without(
    centroids: str, asked: Callable[[], int], by: signal.Signals
) -> None:
    flags = ["--classifier", centroids, "--rows", "50", "--n", "4000", "--images", "8"]
    flags += ["--n0", "20", "--canaries", "0"]
    log = Path("run/votes.jsonl")
    run = ["certify", *flags, "--out", "run"]

    workers = ["--workers", "2"]
    code, said = processes.stopped(log, *run, *workers, lines=60, by=by, patience=240)

    assert code == (130 if by is signal.SIGINT else -by)
    assert by is signal.SIGKILL or "--resume" in said
    sent = settled(asked)  # workers notice within moments that nobody asks them any more
    # at most two calls of 50 rows a worker are handed over; where the oldest takes longest, those
    # behind it are answered, up to the eight that may be under way, and wait for their turn
    assert 0 <= read_votes(log).spent - sent <= 4 * 50  # noted, and cut off before it was asked
    assert main([*run, "--resume"]) == 0
    assert read_votes(log).unanswered <= 8 * 50
    assert main(["certify", *flags, "--out", "whole"]) == 0
    assert timeless("run") == timeless("whole")
    assert main(["verify", "run"]) == 0


def test_a_gpu_of_a_worker_is_not_asked_for_by_number() -> None:
    settings = CertifySettings.model_construct(workers=2, cluster=None, device="cuda:1")

    with (
        pytest.raises(Misuse, match=r"--device must be cuda with workers.* got cuda:1"),
        held(settings, Forgotten()),
    ):
        pass


class Forgotten:
    """A classifier that nobody asks."""

    classes, fingerprint = 2, "f"

    def __call__(self, images: Tensor, /) -> Tensor:
        raise NotImplementedError


def test_all_images_are_certified_where_more_are_asked_for(centroids: str) -> None:
    flags = ["--classifier", centroids, "--split", "validation", "--n", "20", "--n0", "1"]
    assert certify("--out", "run", *flags, "--images", "100000") == 0
    assert len(certificates("run")) == 297


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--procedure", "decide", "--radii", "0.5", "0.25"],
            "radii must be positive, finite and",
        ),
        (["--procedure", "decide", "--radii", "3"], "radii must be at most .* got 3"),
        (["--radii", "0.5"], "radii must be .* empty for the others"),
        (["--shard", "3/2"], "--shard must be I/K with I in 1 ... K, got 3/2"),
        (["--shard", "0/0"], "--shard must be I/K"),
        (["--budget", "-1"], "--budget: .* got -1"),
        (["--n", "10"], "n must be at least 11 at alpha 0.001, got 10"),
        (["--n", "1"], "n must be at least 11 at alpha 0.001, got 1"),
        (["--n", "-1"], "--n: .* got -1"),
        (["--n0", "0"], "--n0: .* got 0"),
        (["--alpha", "0"], "--alpha: .* got 0"),
        (["--alpha", "0.6"], "--alpha: .* got 0.6"),
        (["--alpha", "nan"], "--alpha: .* got nan"),
        (["--images", "-1"], "--images: .* got -1"),
        (["--rows", "0"], "--rows: .* got 0"),
        (["--sigma", "0"], "--sigma: .* got 0"),
        (["--sigma", "nan"], "--sigma: .* got nan"),
        (["--sigma", "inf"], "--sigma: .* got inf"),
        (["--json", "absent/rows.json"], "--json: json must name a file in a folder"),
        (["--resume"], "--resume must come with --out"),
    ],
)
def test_misuse_is_refused_by_flag_and_nothing_is_written(
    centroids: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify("--classifier", centroids, *flags) == 2

    said = capsys.readouterr().err
    assert re.match(f"error: .*{words}", said)
    assert said.count("\n") == 1
    assert not Path("runs").exists()


def test_what_is_no_finished_defend_run_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify("--run", "absent") == 1
    assert "absent holds no run" in capsys.readouterr().err
    assert certify("--out", "bare", "--classifier", centroids) == 0
    capsys.readouterr()
    assert certify("--run", "bare") == 2
    assert "--run must name a folder of defend" in capsys.readouterr().err
    flags = [*TRAIN, "--method", "mse", "--classifier", centroids]
    assert main(["defend", "--out", "run", *flags]) == 0
    Path("run/result.json").unlink()
    capsys.readouterr()
    assert certify("--run", "run", "--classifier", centroids) == 2
    assert "--run must name a finished run" in capsys.readouterr().err


def test_a_damaged_denoiser_is_one_message(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TRAIN, "--method", "mse", "--classifier", centroids]
    assert main(["defend", "--out", "run", *flags]) == 0
    weights = Path("run/denoiser.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()

    assert certify("--run", "run", "--classifier", centroids) == 1

    assert re.fullmatch(r"error: .*truncated or damaged.*\n", capsys.readouterr().err)


def test_a_run_is_found_from_another_folder(
    own_module: Callable[[str], str],
    cnn_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_module(CENTROIDS)
    (tmp_path / "cnn.safetensors").write_bytes(cnn_weights.read_bytes())
    flags = [*TRAIN, "--classifier", "cnn", "--weights", "cnn.safetensors", "--method", "mse"]
    assert main(["defend", "--out", "run", *flags]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert certify("--run", "../run") == 0


@pytest.mark.slow
def test_a_full_disk_is_one_message(centroids: str) -> None:
    preamble = processes.LIMITED.format(2_500)  # a few certificates
    command = ["certify", *VOTES, "--out", "run", "--classifier", centroids]

    process = processes.start(*command, preamble=preamble)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert re.fullmatch(r"error: .*File too large.*\n", said)
    assert certify("--out", "run", "--classifier", centroids, "--resume") == 0
    assert len(certificates("run")) == 4


def test_a_run_killed_before_its_end_is_ended_by_resumption(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--classifier", centroids, "--out", "run"]
    assert certify(*flags) == 0
    spent = json.loads(Path("run/result.json").read_text())["queries"]
    Path("run/result.json").unlink()  # the process died after the last certificate
    capsys.readouterr()

    assert certify(*flags, "--resume") == 0

    # the 4 canaries are asked again at the start and at the end, and it was opened again
    assert json.loads(Path("run/result.json").read_text())["queries"] == spent + 2 * 4 + 1
    assert f"{spent + 9:,} queries" in capsys.readouterr().out


def test_a_shard_without_an_image_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify("--classifier", centroids, "--shard", "5/9", "--out", "run") == 2

    assert "--shard must hold an image, got 5/9 of 4 images" in capsys.readouterr().err
    assert not Path("run").exists()
