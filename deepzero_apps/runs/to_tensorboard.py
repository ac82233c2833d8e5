"""A run shown by TensorBoard: scalars, settings as hyperparameters, figures as images.

The events lie in the run's folder, below ``tensorboard``, and are written anew from the folder's
rows whenever the run is taken up. So they follow from ``metrics.jsonl`` alone, whatever was lost
with a killed process and whatever the clock says. (TensorBoard's own way is to write the step
after which earlier files are void; it keeps holes and goes by file names, which hold the time.)
"""

__all__ = ["TensorBoard"]

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from deepzero_apps.runs.tracking import Row, flattened, numbers

_FOLDER = "tensorboard"


class TensorBoard:
    """Writes the events of one run.

    Args:
        run: The run's folder.
        settings: Its settings.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self._run, self._folder = run, run / _FOLDER
        self._settings = {name: _plain(value) for name, value in flattened(settings).items()}
        self._step, self._started = 0, time.time()

    def begin(self, rows: Sequence[Row], /) -> None:
        """Writes the events of the rows in place of all that were there."""
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._started -= numbers(rows[-1]).get("seconds", 0.0) if rows else 0.0
        self._writer = SummaryWriter(str(self._folder))
        self._write(self._hyperparameters()[1])
        for row in rows:
            self.log(row)
        self._writer.flush()

    def log(self, row: Row, /) -> None:
        """Writes the scalars of a row."""
        self._step = row.get("step", self._step + 1)
        scalars = numbers(row)
        at = self._started + scalars["seconds"] if "seconds" in scalars else None
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, self._step, walltime=at)

    def flush(self) -> None:
        """Writes what is held back to the file."""
        self._writer.flush()

    def finish(self, result: Row, /) -> None:
        """Writes the numbers of the result as ``result/...``, and the folder's figures."""
        for name, value in numbers(flattened(result, lists=True)).items():
            self._writer.add_scalar(f"result/{name}", value, self._step)
        for figure in sorted(self._run.glob("*.png")):
            with Image.open(figure) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(figure.stem, pixels, self._step, dataformats="HWC")
        self._write(self._hyperparameters()[2])

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _hyperparameters(self) -> Any:  # noqa: ANN401 - three messages of protobuf
        # The middle one opens a session with its settings, the last one ends it; the first would
        # name the metrics, which TensorBoard finds itself.
        return hparams(self._settings, {})

    def _write(self, summary: Any) -> None:  # noqa: ANN401 - a message of protobuf
        self._writer._get_file_writer().add_summary(summary)


def _plain(value: object) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
