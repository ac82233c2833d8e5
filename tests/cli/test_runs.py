"""``deepzero-apps runs``: the table of runs, one run whole, several side by side with a figure."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepzero_apps.cli import main, runs_curves
from deepzero_apps.cli.found_runs import found_run
from deepzero_apps.cli.runs_curves import draw_runs
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.certificates import Certificate
from tests.smoothing.sound_certificates import sound, write

TINY = ["--depth", "1", "--width", "2", "--batch", "100", "--estimator", "fo", "--epochs", "1"]


def made(
    path: Path,
    config: dict[str, Any] | None = None,
    *,
    command: str = "train",
    losses: Sequence[float] = (2.0, 1.0),
    result: dict[str, Any] | None = None,
) -> Path:
    config = {"seed": 0} if config is None else config
    with RunFolder.create(path, config, resume=False, command=command) as run:
        for step, loss in enumerate(losses, start=1):
            run.log({"step": step, "loss": loss, "queries": 10 * step, "seconds": 0.5})
        if result is not None:
            run.finish(result)
    return path


def listed(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert main(["runs", "list", *flags, "--json", "-"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["runs"]
    return found


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made(Path("runs/a"), result={"test_accuracy": 97.25, "queries": 5, "seconds": 9.0})
    made(Path("runs/b"), command="defend")
    made(Path("runs/c/certificates"), command="certify", losses=())
    made(Path("runs/d"))
    Path("runs/d/config.json").write_text("{")
    for age, name in enumerate(("d", "c/certificates", "b", "a")):
        for file in (*Path("runs", name).iterdir(), Path("runs", name)):
            os.utime(file, (1e9 - age, 1e9 - age))
    return tmp_path


@pytest.mark.usefixtures("runs")
def test_runs_are_listed_with_state_cost_and_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal wraps lines, and cuts nothing
    assert main(["runs", "list", "--sort", "name"]) == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[3:-1]]
    age = r"\d{4,} d"
    assert re.fullmatch(rf"runs/a train finished 2 5 9 {age} test accuracy 97.25 %", lines[0])
    assert re.fullmatch(rf"runs/b defend interrupted 2 20 0 {age} loss 1", lines[1])
    assert re.fullmatch(rf"runs/c/certificates certify interrupted - - - {age}", lines[2])
    assert re.fullmatch(rf"runs/d - damaged - - - {age} runs/d/config.json is damaged.*", lines[3])


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], "d c/certificates b a"),
        (["--sort", "name"], "a b c/certificates d"),
        (["--sort", "kind"], "d c/certificates b a"),
        (["--sort", "queries"], "b a c/certificates d"),
        (["--sort", "seconds"], "a b c/certificates d"),
        (["--kind", "certify"], "c/certificates"),
        (["--state", "damaged"], "d"),
        (["--state", "running"], ""),
        (["runs/c", "runs/a", "--sort", "name"], "a c/certificates"),
    ],
)
def test_runs_are_sorted_and_picked(
    flags: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [run["path"].removeprefix("runs/") for run in listed(capsys, *flags)] == names.split()


def test_no_runs_is_no_error_and_no_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "list"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    assert main(["runs", "list", "elsewhere"]) == 2
    assert "FOLDERS must be folders, got elsewhere" in capsys.readouterr().err


def test_folder_that_may_not_be_read_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    assert main(["runs", "list", str(tmp_path)]) == 2
    assert "FOLDERS must be folders that you may read" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_json_alone_is_on_standard_output_and_the_table_beside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["runs", "list", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 4
    assert "certify" in said.err
    assert not Path("-").exists()

    assert main(["runs", "list", "--json", "list.json"]) == 0
    said = capsys.readouterr()
    assert "certify" in said.out
    assert len(json.loads(Path("list.json").read_text())["runs"]) == 4


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(runs: Path) -> None:
    for i in range(300):
        made(runs / "runs" / f"run-{i:03}", losses=())
    command = "import sys; from deepzero_apps.cli import main; sys.exit(main())"
    for flags in ([], ["--json", "-"]):
        process = subprocess.Popen(
            [sys.executable, "-c", command, "runs", "list", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        assert "error" not in said
        assert "Exception ignored" not in said


def test_text_from_a_stranger_s_run_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J[bold]:smile:"
    rows = {"rows": [{"method": evil, "acr": 1.0}]}
    made(tmp_path / "a", {"name": evil, "n": 1}, command="compare defence", result=rows)
    made(tmp_path / "b", {"name": evil, "n": 2}, command=evil, result={evil: evil})

    for command in (["list", "."], ["show", "a"], ["show", "b"], ["compare", "a", "b"]):
        words = [str(tmp_path / w) if len(w) == 1 else w for w in command]
        assert main(["runs", *words]) == 0
        said = "".join(capsys.readouterr())
        assert "\x1b[2J" not in said
        assert command[0] == "compare" or r"\x1b[2J[bold]:smile:" in said


def test_a_run_is_shown_with_what_was_chosen_and_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--out", "my run", *TINY]) == 0
    result = Path("my run/result.json").read_text()
    capsys.readouterr()

    assert main(["runs", "show", "my run", "--json", "show.json"]) == 0

    said = capsys.readouterr().out
    told = json.loads(Path("show.json").read_text())
    chosen = {"batch": 100, "depth": 1, "epochs": 1, "estimator": "fo", "width": 2}
    assert told["chosen"] == chosen
    assert (
        told["files"]["weights.safetensors"] == Path("my run/weights.safetensors").stat().st_size
    )
    for words in ("train", "finished", "test_accuracy", "torch", "command        train"):
        assert words in said
    Path("my run/result.json").unlink()
    assert main(["runs", "show", "my run"]) == 0
    (line,) = re.findall(r"continue it: deepzero-apps (.*)", capsys.readouterr().out)
    assert main(shlex.split(line)) == 0  # the very command
    again = json.loads(Path("my run/result.json").read_text())
    assert {**again, "seconds": 0} == {**json.loads(result), "seconds": 0}


def test_tuned_settings_count_as_defaults(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--classifier", centroids, "--method", "zo-ds", "--budget", "1500", "--width", "1"]
    assert main(["defend", "--out", "run", *flags, "--batch", "8", "--steps", "1"]) == 0
    capsys.readouterr()

    assert main(["runs", "show", "run", "--json", "-"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert set(told["chosen"]) == {"classifier", "method", "budget", "width", "batch", "steps"}
    assert main(["runs", "show", "run/start", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["way_on"].split(",")[0]) == (
        "finished",
        "it is a part of another run",
    )


@pytest.mark.parametrize("command", ["show", "compare"])
def test_what_is_no_run_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", command, str(tmp_path)]) == 2
    assert "must be" in capsys.readouterr().err
    one = made(tmp_path / "one")
    assert main(["runs", "compare", str(one), str(one)]) == 2
    assert "RUNS must be two folders at least, got 1" in capsys.readouterr().err
    assert main(["runs", "compare", str(one), "--out", "x.jpg"]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_damaged_run_is_shown_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("a"))
    made(Path("b"))
    Path("b/metrics.jsonl").write_text("x\n" + Path("b/metrics.jsonl").read_text())
    made(Path("c"))
    Path("c/config.json").write_text("{")

    assert main(["runs", "show", "c"]) == 0
    assert "is damaged" in capsys.readouterr().out
    assert main(["runs", "compare", "a", "b", "c", "--out", "new/figure.png"]) == 0
    assert "is damaged" in capsys.readouterr().out
    assert Path("new/figure.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared_by_the_settings_in_which_they_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("a"), {"seed": 0, "lr": 0.1, "votes": {"n": 5}, "flag": True, "depth": 3})
    made(Path("b"), {"seed": 0, "lr": 0.2, "votes": {"n": 6}, "flag": 1, "depth": 3})
    made(Path("c"), {"seed": 1, "lr": 0.5, "depth": 9}, command="correct", losses=())

    assert main(["runs", "compare", "a", "b", "c", "--json", "-"]) == 0

    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["differing"] == ["lr", "votes.n", "flag"]  # c is the only one of its command
    lines = [line.split() for line in said.err.splitlines()]
    assert lines[1][:7] == ["run", "kind", "lr", "votes.n", "flag", "state", "steps"]
    assert lines[3][:6] == ["a", "train", "0.1", "5", "true", "interrupted"]
    assert lines[5][:6] == ["c", "correct", "0.5", "-", "-", "interrupted"]
    assert Path("runs/compare.png").stat().st_size > 10_000


def test_runs_without_curves_have_a_table_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("a"), losses=())
    made(Path("b"), losses=())
    assert main(["runs", "compare", "a", "b"]) == 0
    assert "no curves to draw" in capsys.readouterr().out
    assert not Path("runs").exists()


def drawn(paths: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of the figure of runs."""
    figures: list[Figure] = []
    monkeypatch.setattr(runs_curves, "_save", lambda figure, _: figures.append(figure))
    found = {path.name: run for path in paths if (run := found_run(path))}
    assert draw_runs(found, Path("unused.png"))
    return [axes for axes in figures[0].axes if axes.get_visible()]


def points(axes: Axes) -> list[list[tuple[float, float]]]:
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xydata())]
    return [[(float(x), float(y)) for x, y in np.asarray(line)] for line in lines]


def test_losses_are_drawn_against_steps_and_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = made(tmp_path / "a"), made(tmp_path / "b", losses=(3.0, float("nan"), 0.5))

    steps, queries = drawn([one, other], monkeypatch)

    assert points(steps) == [[(1, 2.0), (2, 1.0)], [(1, 3.0), (3, 0.5)]]
    assert points(queries) == [[(10, 2.0), (20, 1.0)], [(10, 3.0), (30, 0.5)]]
    assert (steps.get_xlabel(), queries.get_xlabel()) == ("step", "queries")
    assert steps.get_yscale() == "log"


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["_first", "$x$y", r"$\frac{1$", "three"]
    found = {name: run for name in names if (run := found_run(made(tmp_path / str(len(name)))))}

    assert draw_runs(found, tmp_path / "figure.svg")

    text = (tmp_path / "figure.svg").read_text()
    assert [
        name for name in names if f"<!-- {name} -->" not in text.replace("<!--  ", "<!-- ")
    ] == []


def test_losses_below_zero_are_drawn_on_a_plain_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, _ = drawn([made(tmp_path / "a", losses=(1.0, -1.0))], monkeypatch)
    assert steps.get_yscale() == "linear"
    assert steps.get_ylim()[0] < -1.0  # nothing is cut off


def test_long_curves_are_drawn_as_their_running_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [2.0 + (-1) ** step for step in range(400)]
    steps, _ = drawn([made(tmp_path / "a", losses=losses)], monkeypatch)

    rows, mean = points(steps)

    assert [y for _, y in rows] == losses
    # eight alternating rows have a mean of 2, and that of their steps is in their middle
    assert [y for _, y in mean] == pytest.approx([2.0] * 393)
    assert mean[0][0] == pytest.approx(4.5)


def test_certified_accuracy_is_the_share_of_images_that_reach_a_radius(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = (99, 95, 90, 90, 50)  # the last one abstains
    certificates = [sound(i, votes=v, label=i % 4) for i, v in enumerate(votes)]
    certificates += [sound(i, votes=v) for i, v in enumerate(votes, start=5)]
    path = made(tmp_path / "a", command="certify", losses=())
    write(path, certificates, votes=False)

    (panel,) = drawn([path], monkeypatch)

    ((*curve, end),) = points(panel)
    for radius, share in curve:
        assert share == pytest.approx(100 * reaching(certificates, radius))
    assert end[1] == 0.0
    assert curve[0][0] == 0.0


def reaching(certificates: Sequence[Certificate], radius: float) -> float:
    good = [c for c in certificates if c.predicted == c.label and c.radius >= radius]
    return len(good) / len(certificates)
