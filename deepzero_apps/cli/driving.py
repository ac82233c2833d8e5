"""Drives a training run inside its folder: resumes, logs, checkpoints, shows progress, reports."""

__all__ = ["drive", "folder_for", "opened", "write_json"]

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import chain, count
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from deepzero_apps.cli.answers import write_json
from deepzero_apps.cli.logs import timed
from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.settings import CommonSettings, DrivenSettings, Misuse, WatchedSettings
from deepzero_apps.runs import RunFolder, RunFolderError
from deepzero_apps.runs.tracking import Tracker, Trackers
from deepzero_apps.runs.trees import Tree
from deepzero_apps.zeroth_order.training import Training

_LOGGER = logging.getLogger(__name__)

Row = dict[str, float]
"""The metrics of one step."""

_SCORE = "validation_accuracy"


def opened(
    command: str,
    folder: Path,
    settings: CommonSettings,
    *,
    resume: bool,
    record: dict[str, Any] | None = None,
) -> RunFolder:
    """Opens a run's folder as its settings wish: how many checkpoints it keeps, who watches.

    Args:
        command: What the run is one of, such as ``train``.
        folder: The folder.
        settings: The settings.
        resume: Whether to continue a run that the folder holds.
        record: What defines the result; what the settings record by default.

    Returns:
        The folder, locked until it is closed; a context manager.

    Raises:
        RunFolderError: If the folder belongs to something else, is in use or cannot be written.
    """
    record = settings.record() if record is None else record
    keep = settings.keep_checkpoints if isinstance(settings, DrivenSettings) else 2
    run = RunFolder.create(folder, record, resume=resume, keep=keep, command=command)
    if isinstance(settings, WatchedSettings):
        run.attach(Trackers({name: partial(_tracker, name, run) for name in settings.track}))
    return run


def _tracker(name: str, run: RunFolder) -> Tracker:
    if name == "tensorboard":
        from deepzero_apps.runs.to_tensorboard import TensorBoard

        return TensorBoard(run.path, run.config)
    from deepzero_apps.runs.to_mlflow import MLflow

    return MLflow(run.path, run.config, run.versions)


def drive(
    training: Training,
    run: RunFolder,
    steps: int,
    *,
    title: str,
    checkpoint_every: float,
    observe: Callable[[Row], Row] | None = None,
) -> None:
    """Trains to the end, from the folder's last checkpoint if it has one.

    Args:
        training: The run, set up as at its first start.
        run: Its folder, open.
        steps: The number of the last step.
        title: What the progress bar is called.
        checkpoint_every: Seconds between checkpoints.
        observe: Adds to a step's metrics, such as validation accuracy at the end of an epoch.
    """
    _take_up(training, run)
    saved, stored = time.monotonic(), None
    rows = training.run(steps)
    observed = map(observe, rows) if observe else rows
    with _interruptible() as interrupted:
        for row in tracked(observed, title, total=steps, done=training.step, note=_note):
            run.log(row)
            late = time.monotonic() - saved >= checkpoint_every
            # a score counts whenever it is measured, and not when the clock says so
            if interrupted.is_set() or late or _SCORE in row:
                _save(training, run, row.get(_SCORE))
                saved, stored = time.monotonic(), training.step
            if interrupted.is_set():
                raise KeyboardInterrupt
    if stored != training.step:
        _save(training, run)


def _take_up(training: Training, run: RunFolder) -> None:
    """Goes on from the folder's last checkpoint, if it has one."""
    found = run.load_latest()
    if found is not None:
        step, state = found
        _restore(training, state, f"{run.path}/checkpoints: that of step {step}")
        _LOGGER.info("%s continues after step %d", run.path, training.step)
    else:
        _LOGGER.info("%s begins", run.path)
    run.truncate_metrics(training.step)


def _restore(training: Training, state: Tree, name: str) -> None:
    """Takes a checkpoint's state, whole as a file, which may be that of something else."""
    if not isinstance(state, dict):
        raise RunFolderError(f"{name} must hold a dict, got {type(state).__name__}; remove it")
    try:
        training.load_state_dict({str(key): value for key, value in state.items()})
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunFolderError(f"{name} is none of this run ({reason}); remove it") from error


def _save(training: Training, run: RunFolder, score: float | None = None) -> None:
    with timed(_LOGGER, f"the checkpoint of step {training.step}"):
        run.save(training.step, training.state_dict(), score=score)
    _LOGGER.info("%s has a checkpoint of step %d", run.path, training.step)


@contextmanager
def _interruptible() -> Iterator[Event]:
    """Lets Ctrl-C wait for the end of a step, so that no paid query is lost; twice stops at once."""
    interrupted = Event()
    if current_thread() is not main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def wait(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, wait)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _note(row: Row) -> str:
    words = f"loss {row['loss']:.3g}, {row['queries']:,.0f} queries"
    if "validation_accuracy" in row:
        words += f", validation {row['validation_accuracy']:.1f} %"
    return words


def folder_for(verb: str, out: Path | None, *, resume: bool) -> Path:
    """Returns the folder of a run: the one asked for, or a fresh place below ``runs/``.

    Raises:
        Misuse: If a run is to be continued and none is named.
    """
    if out is not None:
        return out
    if resume:
        raise Misuse("--resume must come with --out, the folder of the run to continue")
    name = f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"
    # A clock that was set back, or two runs in a second, must not meet in one folder.
    names = chain((name,), (f"{name}-{number}" for number in count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())
