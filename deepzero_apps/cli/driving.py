"""Drives a training run inside its folder: resumes, logs, checkpoints, shows progress, reports."""

__all__ = ["drive", "folder_for", "write_json"]

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.files import replace
from deepzero_apps.zeroth_order.training import Training

Row = dict[str, float]
"""The metrics of one step."""


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
    found = run.load_latest()
    if found is not None:
        _, state = found
        if not isinstance(state, dict):
            raise TypeError(f"a checkpoint must hold a dict, got {type(state).__name__}")
        training.load_state_dict({str(key): value for key, value in state.items()})
    run.truncate_metrics(training.step)
    saved = time.monotonic()
    rows = training.run(steps)
    observed = map(observe, rows) if observe else rows
    with _interruptible() as interrupted:
        for row in tracked(observed, title, total=steps, done=training.step, note=_note):
            run.log(row)
            if interrupted.is_set() or time.monotonic() - saved >= checkpoint_every:
                run.save(training.step, training.state_dict())
                saved = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt
    run.save(training.step, training.state_dict())


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
    return Path("runs") / f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Writes a result to a JSON file, if one is wanted; what was there stays if that fails."""
    if path is None:
        return
    text = json.dumps(document, indent=2) + "\n"
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe or a terminal cannot be replaced
    else:
        replace(path, text.encode())
