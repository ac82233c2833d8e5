"""TensorBoard's own reader finds what a run's folder holds, once, also after a crash."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.to_tensorboard import TensorBoard
from deepzero_apps.runs.tracking import Trackers

CONFIG: dict[str, Any] = {"seed": 3, "lr": 0.1, "name": None, "radii": [1], "votes": {"n": 5}}


def opened(path: Path) -> RunFolder:
    run = RunFolder.create(path, CONFIG, resume=True)
    run.attach(Trackers({"tensorboard": lambda: TensorBoard(run.path, run.config)}))
    return run


def logged(run: RunFolder, *steps: int) -> None:
    for step in steps:
        run.log({"step": step, "loss": 1 / step, "seconds": 10.0 * step, "gone": None})


def shown(path: Path) -> EventAccumulator:
    found = EventAccumulator(str(path / "tensorboard"), purge_orphaned_data=False)
    found.Reload()
    return found


def points(path: Path, tag: str = "loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in shown(path).Scalars(tag)]


def test_rows_results_figures_and_settings_are_shown(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.truncate_metrics(0)
        logged(run, 1, 2, 4)
        Image.new("RGB", (5, 7)).save(tmp_path / "curve.png")
        run.finish({"accuracy": 97.5, "rows": [{"acr": 0.5}], "name": "x"})

    found = shown(tmp_path)
    assert points(tmp_path) == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert points(tmp_path, "result/accuracy") == [(4, 97.5)]
    assert points(tmp_path, "result/rows.0.acr") == [(4, 0.5)]
    assert set(found.Tags()["scalars"]) == {
        "loss",
        "seconds",
        "result/accuracy",
        "result/rows.0.acr",
    }
    (image,) = found.Images("curve")
    assert (image.width, image.height) == (5, 7)
    times = [event.wall_time for event in found.Scalars("loss")]
    assert times[2] - times[0] == pytest.approx(30, abs=1e-3)  # the run's own seconds
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["lr"].number_value == 0.1
    assert told["votes.n"].number_value == 5
    assert told["radii"].string_value == "[1]"


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.truncate_metrics(0)
    logged(run, 1, 2, 3)
    run._tracker.flush()
    run.attach(Trackers({}))  # killed after step 3, with a checkpoint of step 2
    run.close()
    # the first file's name says that it is younger: the clock was set back
    (first,) = (tmp_path / "tensorboard").iterdir()
    os.rename(first, first.with_name(first.name.replace("tfevents.1", "tfevents.9")))

    with opened(tmp_path) as run:
        run.truncate_metrics(2)
        logged(run, 3, 4)

    assert [step for step, _ in points(tmp_path)] == [1, 2, 3, 4]


def test_a_run_that_was_not_watched_is_shown_from_its_first_row(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        logged(run, 1, 2)

    with opened(tmp_path) as run:
        run.truncate_metrics(2)
        logged(run, 3)

    assert [step for step, _ in points(tmp_path)] == [1, 2, 3]


def test_what_is_flushed_before_a_checkpoint_is_on_disk(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.truncate_metrics(0)
    logged(run, 1, 2)
    run.save(2, {})

    assert [step for step, _ in points(tmp_path)] == [1, 2]
    run.close()
