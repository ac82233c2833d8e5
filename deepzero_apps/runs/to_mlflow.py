"""A run shown by MLflow: settings as parameters, metrics, the result, figures as artifacts.

It goes to the server that ``MLFLOW_TRACKING_URI`` names, under the experiment of
``MLFLOW_EXPERIMENT_NAME`` (``deepzero-apps`` by default), or else to a database in the run's folder,
``mlflow/mlflow.db``. (MLflow 3 refuses its former store of plain files.) The run's id is kept in
``mlflow/run.json``, and a run that is taken up is the same one: rows that MLflow has are not sent
again, rows that it lacks are.

Rows are sent in bunches, so that a slow server slows nothing down. A server that is gone is asked
twice more, within half a minute, unless MLflow's own variables say otherwise. MLflow's telemetry
is off unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise.
"""

__all__ = ["MLflow"]

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepzero_apps.runs.files import replace
from deepzero_apps.runs.tracking import Row, flattened, numbers

if TYPE_CHECKING:
    from mlflow.entities import Metric

_FOLDER = "mlflow"
_SECONDS = 2.0
_METRICS, _PARAMETERS = 1000, 100  # the most that one request may hold
_LONGEST = 500  # of a parameter's text, which every server takes
_CALM = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ARTIFACTS = ("*.png", "*.gif", "*.html", "result.json")


class MLflow:
    """Tells MLflow of one run.

    Args:
        run: The run's folder.
        settings: Its settings.
        versions: What it was started with.
    """

    def __init__(
        self, run: Path, settings: Mapping[str, Any], versions: Mapping[str, Any]
    ) -> None:
        self._run, self._folder = run, run / _FOLDER
        self._settings, self._versions = settings, versions
        self._step, self._started = 0, time.time()
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._known: dict[str, set[int]] = {}
        self._state = "KILLED"

    def begin(self, rows: Sequence[Row], /) -> None:
        """Makes the run, or takes it up, and sends the rows that it lacks."""
        for name, value in _CALM.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._folder.mkdir(exist_ok=True)
        self._started -= numbers(rows[-1]).get("seconds", 0.0) if rows else 0.0
        self._client = MlflowClient(tracking_uri=self._address())
        self._id = self._taken_up() or self._made()
        for row in rows:
            self.log(row)
        self.flush()

    def log(self, row: Row, /) -> None:
        """Sends the metrics of a row, soon."""
        from mlflow.entities import Metric

        self._step = row.get("step", self._step + 1)
        found = numbers(row)
        at = int(1000 * (self._started + found.get("seconds", 0.0)))
        self._waiting += [
            Metric(name, value, at, self._step)
            for name, value in found.items()
            if self._step not in self._known.get(name, ())
        ]
        if time.monotonic() - self._sent > _SECONDS or len(self._waiting) >= _METRICS:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _METRICS):
            self._client.log_batch(self._id, metrics=waiting[start : start + _METRICS])
        self._sent = time.monotonic()

    def finish(self, result: Row, /) -> None:
        """Sends the numbers of the result as ``result.…``, and the folder's figures."""
        found = numbers(flattened(result, lists=True))
        self.log({"step": self._step, **{f"result.{name}": v for name, v in found.items()}})
        self.flush()
        for pattern in _ARTIFACTS:
            for path in sorted(self._run.glob(pattern)):
                self._client.log_artifact(self._id, str(path))
        self._state = "FINISHED"

    def close(self) -> None:
        """Sends what waits and ends the run: finished, or killed before."""
        self.flush()
        self._client.set_terminated(self._id, self._state)

    def _address(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or (
            f"sqlite:///{(self._folder / 'mlflow.db').absolute()}"
        )

    def _taken_up(self) -> str | None:
        """The id of this folder's run, if the server knows it."""
        from mlflow.exceptions import MlflowException

        file = self._folder / "run.json"
        if not file.exists():
            return None
        identity = str(json.loads(file.read_text(encoding="utf-8"))["run_id"])
        try:
            names = self._client.get_run(identity).data.metrics
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another server, or a wiped one
                return None
            raise
        for name in names:
            history = self._client.get_metric_history(identity, name)
            self._known[name] = {metric.step for metric in history}
        self._client.update_run(identity, status="RUNNING")
        return identity

    def _made(self) -> str:
        from mlflow.entities import Param

        tags = {name: str(value) for name, value in self._versions.items()}
        made = self._client.create_run(
            self._experiment(), run_name=self._run.absolute().name, tags=tags
        )
        identity = str(made.info.run_id)
        fields = flattened(self._settings).items()
        params = [Param(name, str(value)[:_LONGEST]) for name, value in fields]
        for start in range(0, len(params), _PARAMETERS):
            self._client.log_batch(identity, params=params[start : start + _PARAMETERS])
        replace(self._folder / "run.json", json.dumps({"run_id": identity}).encode())
        return identity

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "deepzero-apps"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        own = self._address().startswith("sqlite:") and not os.environ.get("MLFLOW_TRACKING_URI")
        place = (self._folder / "artifacts").absolute().as_uri() if own else None
        return str(self._client.create_experiment(name, artifact_location=place))
