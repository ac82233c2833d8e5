"""MLflow's own client finds what a run's folder holds, once, also after a crash."""

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient
from mlflow.entities import Run

from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.to_mlflow import MLflow
from deepzero_apps.runs.tracking import Trackers

CONFIG: dict[str, Any] = {"seed": 3, "lr": 0.1, "votes": {"n": 5}, "long": "x" * 9000}


# of MLflow's own database code
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _nobody_s_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def opened(path: Path) -> RunFolder:
    run = RunFolder.create(path, CONFIG, resume=True, command="train")
    run.attach(Trackers({"mlflow": lambda: MLflow(run.path, run.config, run.versions)}))
    return run


def logged(run: RunFolder, *steps: int) -> None:
    for step in steps:
        run.log({"step": step, "loss": 1 / step, "seconds": 10.0 * step, "gone": None})


def stored(path: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("deepzero-apps")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def steps(client: MlflowClient, run: Run, name: str = "loss") -> list[int]:
    return sorted(m.step for m in client.get_metric_history(run.info.run_id, name))


@pytest.mark.slow
def test_a_killed_run_is_taken_up_as_the_same_one(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.truncate_metrics(0)
    logged(run, 1, 2)
    run.save(2, {})
    logged(run, 3)
    run._tracker.flush()  # sent, and the checkpoint of it was not written
    run.attach(Trackers({}))
    run.close()

    with opened(tmp_path) as run:
        run.truncate_metrics(2)
        logged(run, 3, 4)

    client, found = stored(tmp_path)
    assert steps(client, found) == [1, 2, 3, 4]
    assert found.info.status == "KILLED"  # it was closed without a result

    with opened(tmp_path) as run:
        run.truncate_metrics(4)
        (tmp_path / "curve.png").write_bytes(b"png")
        run.finish({"accuracy": 97.5, "rows": [{"acr": 0.5}]})

    client, found = stored(tmp_path)
    assert steps(client, found) == [1, 2, 3, 4]
    assert found.info.status == "FINISHED"
    assert found.info.run_name == tmp_path.name
    assert found.data.metrics["result.accuracy"] == 97.5
    assert found.data.metrics["result.rows.0.acr"] == 0.5
    assert found.data.params["lr"] == "0.1"
    assert found.data.params["votes.n"] == "5"
    assert found.data.tags["command"] == "train"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert sorted(m.value for m in history) == [1 / 4, 1 / 3, 1 / 2, 1.0]
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert names == {"curve.png", "result.json"}
    own = tmp_path / "mlflow" / "artifacts"
    assert [p.read_bytes() for p in own.rglob("curve.png")] == [b"png"]


@pytest.mark.slow
def test_more_rows_than_a_request_may_hold_are_sent(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False, command="train") as run:
        logged(run, *range(1, 1201))

    with opened(tmp_path) as run:
        run.truncate_metrics(1200)

    client, found = stored(tmp_path)
    assert steps(client, found) == list(range(1, 1201))


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told_of_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()

    with opened(tmp_path) as run:
        with pytest.warns(UserWarning, match="mlflow has failed and is told no more"):
            run.truncate_metrics(0)
        logged(run, 1, 2)  # a second warning would be an error here
        run.finish({})

    assert time.monotonic() - started < 60
    assert len(RunFolder(tmp_path).metrics()) == 2
