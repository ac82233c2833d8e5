"""What is found of runs on disk: of any command, in any state, however damaged."""

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from deepzero_apps.cli.certify import CertifySettings
from deepzero_apps.cli.compare_correction import CompareCorrectionSettings
from deepzero_apps.cli.compare_defence import CompareDefenceSettings
from deepzero_apps.cli.compare_estimators import CompareEstimatorsSettings
from deepzero_apps.cli.correct import CorrectSettings
from deepzero_apps.cli.defend import DefendSettings
from deepzero_apps.cli.found_runs import found_run, metrics_of, runs_below, short_names
from deepzero_apps.cli.recertify import RecertifySettings
from deepzero_apps.cli.rollout import RolloutSettings
from deepzero_apps.cli.settings import CommonSettings
from deepzero_apps.cli.train import TrainSettings
from deepzero_apps.runs import RunFolder


def made(
    path: Path,
    config: dict[str, Any] | None = None,
    *,
    command: str | None = "train",
    rows: int = 2,
    result: dict[str, Any] | None = None,
) -> Path:
    with RunFolder.create(path, config or {"seed": 0}, resume=False, command=command) as run:
        for step in range(1, rows + 1):
            run.log({"step": step, "loss": 1 / step, "queries": 10 * step, "seconds": 0.5 * step})
        if result is not None:
            run.finish(result)
    return path


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("train", TrainSettings(out=Path("x"))),
        ("defend", DefendSettings()),
        ("certify", CertifySettings()),
        ("recertify", RecertifySettings(run=Path("x"))),
        ("correct", CorrectSettings()),
        ("rollout", RolloutSettings()),
        ("compare defence", CompareDefenceSettings()),
        ("compare correction", CompareCorrectionSettings()),
        ("compare estimators", CompareEstimatorsSettings()),
    ],
)
def test_a_run_without_the_name_of_its_command_is_known_by_its_fields(
    kind: str, settings: CommonSettings, tmp_path: Path
) -> None:
    made(tmp_path, settings.record(), command=None)
    found = found_run(tmp_path)
    assert found is not None
    assert found.kind == kind


def test_a_result_is_told_or_how_far_the_run_is(tmp_path: Path) -> None:
    result = {"test_accuracy": 97.25, "steps": 2, "queries": 20, "seconds": 1.5}
    finished = found_run(made(tmp_path / "a", result=result))
    begun = found_run(made(tmp_path / "b"))
    fresh = found_run(made(tmp_path / "c", rows=0))

    assert finished is not None
    assert (finished.state, finished.outcome) == ("finished", "test accuracy 97.25 %")
    assert (finished.steps, finished.queries, finished.seconds) == (2, 20, 1.5)
    assert begun is not None
    assert (begun.state, begun.outcome) == ("interrupted", "loss 0.5")
    assert (begun.steps, begun.queries, begun.seconds) == (2, 20, 1.0)
    assert fresh is not None
    assert (fresh.state, fresh.outcome, fresh.steps) == ("interrupted", "", None)


@pytest.mark.parametrize(
    ("kind", "result", "outcome"),
    [
        ("correct", {"validation": [{"method": "src", "mae": 0.09}, {"method": "fo", "mae": 0.01}]},
         "error fo 0.0100, src 0.0900"),
        ("rollout", {"rows": [{"method": "src", "mae": 0.09}]}, "error src 0.0900"),
        ("compare correction", {"rows": [{"method": "src", "mae": 0.09},
         {"method": "zo-field", "mae": 0.01}]}, "best: zo-field, error 0.0100"),
        ("compare defence", {"rows": [{"method": "mse", "acr": 0.3},
         {"method": "zo-cv", "acr": 0.4}]}, "best: zo-cv, ACR 0.400"),
        ("compare estimators", {"rows": [{"estimator": "fo", "accuracy": 90.0},
         {"estimator": "rge", "accuracy": 80.0}]}, "best: fo, 90.0 %"),
    ],
)  # fmt: skip
def test_outcomes_of_other_commands(
    kind: str, result: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    found = found_run(made(tmp_path, command=kind, rows=0, result=result))
    assert found is not None
    assert found.outcome == outcome


@pytest.mark.parametrize(
    "kind", ["train", "certify", "correct", "compare defence", "compare correction", "", "other"]
)
@pytest.mark.parametrize(
    "result",
    [
        {},
        {"rows": 3, "validation": None, "wanted": "x", "test_accuracy": "97", "steps": [1]},
        {"rows": [1, {}, {"mae": None, "acr": "x", "queries": True}], "queries": None},
        {
            "test_accuracy": 10**400,
            "queries": 10**400,
            "seconds": 1e308,
            "rows": [{"queries": 10**400, "acr": 10**400, "mae": 10**400}],
        },
    ],
)
def test_a_result_of_another_shape_is_no_crash(
    kind: str, result: dict[str, Any], tmp_path: Path
) -> None:
    found = found_run(made(tmp_path, command=kind, result=result))
    assert found is not None
    assert found.state == "finished"
    assert found.outcome == "loss 0.5"
    assert json.loads(json.dumps(found.document(), allow_nan=False))["kind"] == found.kind


def test_a_comparison_costs_the_sum_of_its_rows(tmp_path: Path) -> None:
    rows = [{"queries": 5, "seconds": 1.0}, {"simulator_steps": 7, "seconds": 2.5}, {"other": 1}]
    found = found_run(made(tmp_path, command="compare defence", rows=0, result={"rows": rows}))
    assert found is not None
    assert (found.queries, found.seconds) == (12, 3.5)


def held(path: Path, taken: Event, over: Event) -> None:
    with RunFolder.create(path, {"seed": 0}, resume=True):
        taken.set()
        over.wait(30)


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    made(tmp_path, result={})  # also one that was finished before
    context = multiprocessing.get_context("fork")
    taken, over = context.Event(), context.Event()
    process = context.Process(target=held, args=(tmp_path, taken, over))
    process.start()
    assert taken.wait(30)
    owner = (tmp_path / "lock").read_bytes()
    try:
        states = [found_run(tmp_path) for _ in range(3)]
        assert [one.state for one in states if one] == ["running"] * 3
        assert (tmp_path / "lock").read_bytes() == owner  # it was looked at, and not taken
    finally:
        over.set()
        process.join(30)

    done = found_run(tmp_path)
    assert done is not None
    assert done.state == "finished"
    RunFolder.create(tmp_path, {"seed": 0}, resume=True).close()  # nothing holds the lock


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "config.json").write_text("{"), "config.json is damaged"),
        (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
        (lambda p: (p / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda p: (p / "result.json").write_text("nothing"), "result.json is damaged"),
        (lambda p: (p / "metrics.jsonl").write_text("{}\nx\n"), "metrics.jsonl is damaged"),
        (lambda p: (p / "metrics.jsonl").write_text("[1]\n"), "metrics.jsonl is damaged"),
        (lambda p: (p / "metrics.jsonl").write_bytes(b"\xff\n"), "metrics.jsonl is damaged"),
    ],
)
def test_a_damaged_run_is_found_with_what_is_wrong(
    damage: Damage, words: str, tmp_path: Path
) -> None:
    made(tmp_path)
    damage(tmp_path)

    (found,) = runs_below([tmp_path])

    assert found.state == "damaged"
    assert words in found.outcome


def test_damaged_certificates_are_told_and_hide_nothing_else(tmp_path: Path) -> None:
    made(tmp_path, command="certify", rows=0, result={"images": 3, "wanted": 5, "queries": 9})
    (tmp_path / "certificates.jsonl").write_text('{"index": 1}\n')

    found = found_run(tmp_path)

    assert found is not None
    assert "certificates.jsonl, line 1 is no certificate" in found.outcome
    assert (found.state, found.queries) == ("finished", 9)


def test_a_torn_last_row_is_left_out_and_a_long_file_is_not_read_whole(tmp_path: Path) -> None:
    made(tmp_path, rows=3000)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    assert size > 100_000
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3001, "lo')

    found = found_run(tmp_path)

    assert found is not None
    assert found.steps == 3000
    assert len(metrics_of(found)) == 3000


def test_a_row_longer_than_the_end_that_is_read_is_read_whole(tmp_path: Path) -> None:
    made(tmp_path)
    row = {"step": 3, "loss": 0.25, "note": "x" * 100_000}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    found = found_run(tmp_path)
    assert found is not None
    assert (found.state, found.steps, found.outcome) == ("interrupted", 3, "loss 0.25")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
def test_pipes_are_not_waited_for_and_devices_not_read_to_their_end(
    name: str, tmp_path: Path
) -> None:
    for folder, put in (("pipe", os.mkfifo), ("device", lambda p: p.symlink_to("/dev/zero"))):
        made(tmp_path / folder, result={"test_accuracy": 97.25})
        (tmp_path / folder / name).unlink()
        put(tmp_path / folder / name)

    found = list(runs_below([tmp_path]))

    assert [run.state for run in found] == ["damaged", "damaged"]
    assert all(name in run.outcome and "pipe or a device" in run.outcome for run in found)


def test_runs_are_found_at_any_depth_and_what_is_not_ours_is_not(tmp_path: Path) -> None:
    made(tmp_path / "b")
    made(tmp_path / "a" / "certificates")
    made(tmp_path / "a" / "tensorboard" / "no")
    made(tmp_path / ".hidden" / "no")
    for foreign in ('{"architectures": ["Bert"]}', "{", '{"versions": 3}', '{"versions": {}}'):
        folder = tmp_path / f"foreign-{len(foreign)}"
        folder.mkdir()
        (folder / "config.json").write_text(foreign)

    found = [run.path.relative_to(tmp_path) for run in runs_below([tmp_path])]

    assert found == [Path("a/certificates"), Path("b")]
    assert found_run(tmp_path) is None
    assert found_run(tmp_path / "absent") is None


def test_a_folder_that_cannot_be_read_is_no_crash(tmp_path: Path) -> None:
    made(tmp_path / "a")
    (tmp_path / "a" / "result.json").mkdir()

    (found,) = runs_below([tmp_path])

    assert found.state == "damaged"
    assert "result.json cannot be read" in found.outcome


def test_a_folder_without_permission_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "mine")
    made(tmp_path / "theirs")
    stat = os.stat

    def refusing(path: Any, **named: Any) -> os.stat_result:  # noqa: ANN401 - as os.stat
        if "theirs/" in str(path):  # as without the right to search it, which root always has
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **named)

    monkeypatch.setattr(os, "stat", refusing)
    found = {run.path.name: run for run in runs_below([tmp_path])}

    assert {name: run.state for name, run in found.items()} == {
        "mine": "interrupted",
        "theirs": "damaged",
    }
    assert "Permission denied" in found["theirs"].outcome


def test_a_clock_that_was_set_back_is_no_crash(tmp_path: Path) -> None:
    made(tmp_path)
    for file in tmp_path.iterdir():
        os.utime(file, (4e9, 4e9))
    os.utime(tmp_path, (4e9, 4e9))
    found = found_run(tmp_path)
    assert found is not None
    assert found.changed == 4e9


def test_names_are_as_short_as_their_common_parent_allows() -> None:
    paths = [Path("runs/a"), Path("runs/b/certificates"), Path("./runs/c")]
    assert short_names(paths) == ["a", "b/certificates", "c"]
    assert short_names([Path("/x/one"), Path("/y/one")]) == ["x/one", "y/one"]
    assert short_names([Path("a"), Path("a/b")]) == ["a", "a/b"]
