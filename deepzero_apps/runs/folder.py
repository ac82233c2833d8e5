"""The folder of a run: what it was asked, what it measured, where it stopped, what came out.

    | ``config.json``     | the resolved settings, and under ``versions`` what they ran with
    | ``metrics.jsonl``   | one row a line, as the run goes
    | ``checkpoints/``    | the newest states to continue from, and the best on validation data
    | ``result.json``     | what came out; its presence says that the run is finished
    | ``lock``            | held while a process writes here

Settings never change once written, so a folder belongs to one run for good: another run is
refused, and a refusal leaves the folder as it was.
"""

__all__ = ["RunFolder"]

import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from deepzero_apps.files.opening import read_plain
from deepzero_apps.runs.checkpoints import Best, Checkpoints
from deepzero_apps.runs.files import (
    RunFolderError,
    append,
    explained,
    is_temporary,
    lock,
    remove_temporary,
    replace,
    sync,
)
from deepzero_apps.runs.records import differences, dumps, loads, plain, versions
from deepzero_apps.runs.tracking import Tracker, Untracked
from deepzero_apps.runs.trees import Tree

_CHECKPOINTS = "checkpoints"
_SHOWN = 5


class RunFolder:
    """A run's folder, for reading; :meth:`create` opens it for writing too, and locks it.

    Args:
        path: The folder of an existing run.

    Attributes:
        path: The folder.
        config: The settings of the run, without the versions.
        versions: What the run was started with: package, Python, torch, numpy, git, seed, and
            the command, where it is known.

    Raises:
        RunFolderError: If the folder holds no run, or its ``config.json`` is damaged.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp()
        >>> with RunFolder.create(path, {"seed": 0}, resume=False) as run:
        ...     run.log({"step": 1, "loss": 0.5})
        ...     run.save(1, {"weights": [1, 2.5]})
        >>> RunFolder(path).load_latest()
        (1, {'weights': [1, 2.5]})
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with explained("read", self._config_file):
            if not self._config_file.exists():
                raise RunFolderError(f"{self.path} holds no run: it has no config.json")
        self.config = _read_object(self._config_file)
        self.versions: dict[str, Any] = self.config.pop("versions", {})
        self._lock: IO[bytes] | None = None
        self._checkpoints = Checkpoints(self._checkpoint_folder)
        self._tracker: Tracker = Untracked()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        *,
        resume: bool,
        keep: int = 2,
        command: str | None = None,
    ) -> "RunFolder":
        """Makes the folder of a new run, or opens that of the same run to continue it.

        Args:
            path: The folder: absent, empty, or of a run with equal settings.
            config: The resolved settings, of JSON's types; ``versions`` is taken.
            resume: Whether to continue a run that the folder holds. A folder without a run is
                made in either case.
            keep: How many of the newest checkpoints are kept, at least 1; the best besides.
            command: What the run is one of, such as ``train``; noted beside the versions.

        Returns:
            The folder, locked until it is closed; a context manager.

        Raises:
            TypeError: If the settings are no dict of JSON's types, or ``keep`` no int.
            ValueError: If the settings have a field ``versions``, or ``keep`` is not positive.
            RunFolderError: If the folder belongs to another run or to something else, is in
                use, or cannot be written. It is then as it was.
        """
        path, settings = Path(path), _settings(config)
        checkpoints = Checkpoints(path / _CHECKPOINTS, keep=keep)
        _holds_run(path, settings, resume=resume)
        with explained("made", path):
            path.mkdir(parents=True, exist_ok=True)
        held = lock(path / "lock")
        try:
            # Asked again under the lock: another process may have been faster.
            if not _holds_run(path, settings, resume=resume):
                started = {**versions(), "seed": settings.get("seed"), "command": command}
                record = {**settings, "versions": started}
                replace(path / "config.json", dumps(record, indent=2))
            folder = cls(path)
            folder._tidy()
        except BaseException:
            held.close()
            raise
        folder._lock, folder._checkpoints = held, checkpoints
        return folder

    def attach(self, tracker: Tracker) -> None:
        """Lets a tracker see all that is written here from now on.

        Args:
            tracker: The tracker. :meth:`truncate_metrics` begins it, :meth:`close` closes it.
        """
        self._tracker = tracker

    def close(self) -> None:
        """Releases the lock; the folder can still be read. Closing twice does nothing."""
        if self._lock is None:
            return
        try:
            self._tracker.close()
        finally:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row of metrics, which survives the death of the process.

        Args:
            row: Names and numbers, by custom with ``step``. A float that is not finite is
                written as ``null`` and reads back as ``None``.

        Raises:
            TypeError: If the row is no dict of JSON's types, or its ``step`` no integer.
            RunFolderError: If the folder is not open for writing, or the disk is full.
        """
        self._check_open()
        line = _object(row, "row")
        if type(line.get("step", 0)) is not int:
            raise TypeError(f"row must have an int as step, got {row['step']!r}")
        append(self._metrics_file, dumps(line))
        self._tracker.log(line)

    def metrics(self) -> list[dict[str, Any]]:
        """Reads the rows of metrics.

        Returns:
            The rows in order. A last line that a killed process left unfinished is left out.

        Raises:
            RunFolderError: If a finished line is damaged.
        """
        if not self._metrics_file.exists():
            return []
        with explained("read", self._metrics_file):
            lines = read_plain(self._metrics_file).split(b"\n")[:-1]
        return [self._row(number, line) for number, line in enumerate(lines, start=1)]

    def truncate_metrics(self, step: int) -> None:
        """Drops the rows of steps after the given one: a resumed run writes them again.

        Args:
            step: The last step to keep. Rows without a ``step`` are kept.

        Raises:
            RunFolderError: If the folder is not open for writing, or a line is damaged.
        """
        self._check_open()
        rows = self.metrics()
        kept = [row for row in rows if not _is_after(row, step)]
        if len(kept) < len(rows):
            replace(self._metrics_file, b"".join(map(dumps, kept)))
        self._tracker.begin(kept)

    def save(self, step: int, state: Tree, *, score: float | None = None) -> None:
        """Writes a checkpoint, whole or not at all, and keeps it and those just before it.

        With a score, the best one is kept besides, whatever the number kept: a copy that nothing
        but a better one replaces. For it not to depend on when checkpoints are written, save at
        each step that has a score.

        Args:
            step: The number of steps done. Checkpoints of later steps are removed.
            state: A tree of dicts, lists, tuples, tensors and plain values, such as the
                ``state_dict()`` of a network and its optimizer. It is not changed.
            score: How good the state is, on validation data: the higher, the better.

        Raises:
            TypeError: If the step is no integer, the score no number, or the tree holds what
                cannot be stored.
            ValueError: If the step is negative or the tree too deep.
            RunFolderError: If the folder is not open for writing, or the file cannot be
                written; the earlier checkpoints are then intact.

        Warns:
            UserWarning: If the copy of the best is damaged, so that this one takes its place.
        """
        self._check_open()
        if self._metrics_file.exists():
            with explained("written", self._metrics_file):
                sync(self._metrics_file)
        self._tracker.flush()
        self._checkpoints.save(step, state, score=score)

    def load_latest(self) -> tuple[int, Tree] | None:
        """Reads the newest checkpoint that is whole; where none is, the best one.

        Returns:
            Its step and its state, tensors on the CPU; ``None`` if there is no checkpoint.

        Raises:
            RunFolderError: If there are checkpoints and none can be read.

        Warns:
            UserWarning: If the newest is damaged and an earlier one was read.
        """
        return self._checkpoints.load_latest()

    def load_best(self) -> Best | None:
        """Reads the checkpoint with the highest score.

        Returns:
            Its step, its score and its state; ``None`` if none was saved with a score.

        Raises:
            RunFolderError: If it is damaged.
        """
        return self._checkpoints.load_best()

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result, which marks the run as finished.

        Args:
            result: The result, of JSON's types; a float that is not finite becomes ``null``.

        Raises:
            TypeError: If the result is no dict of JSON's types.
            RunFolderError: If the folder is not open for writing, or the disk is full.
        """
        self._check_open()
        document = _object(result, "result")
        replace(self._result_file, dumps(document, indent=2))
        self._tracker.finish(document)

    def result(self) -> dict[str, Any] | None:
        """Reads the result.

        Returns:
            The result; ``None`` if the run is not finished.

        Raises:
            RunFolderError: If the file is damaged.
        """
        return _read_object(self._result_file) if self._result_file.exists() else None

    @property
    def _config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def _checkpoint_folder(self) -> Path:
        return self.path / _CHECKPOINTS

    def _check_open(self) -> None:
        if self._lock is None:
            raise RunFolderError(
                f"{self.path} is open for reading only; "
                "open it with RunFolder.create(..., resume=True)"
            )

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return loads(line)
        except (ValueError, TypeError) as error:
            raise RunFolderError(
                f"{self._metrics_file} is damaged in line {number}: {error}; remove that line"
            ) from error

    def _tidy(self) -> None:
        with explained("made", self._checkpoint_folder):
            self._checkpoint_folder.mkdir(exist_ok=True)
        remove_temporary(self.path)
        remove_temporary(self._checkpoint_folder)
        if self._metrics_file.exists():
            with explained("read", self._metrics_file):
                data = read_plain(self._metrics_file)
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                replace(self._metrics_file, whole)


def _is_after(row: dict[str, Any], step: int) -> bool:
    number = row.get("step")
    return isinstance(number, int) and number > step


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    settings = _object(config, "config")
    if "versions" in settings:
        raise ValueError("config must not have a field 'versions', got one; it is added here")
    return settings


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, got {type(value).__name__}")
    fields: dict[str, Any] = plain(value, name)
    return fields


def _read_object(path: Path) -> dict[str, Any]:
    with explained("read", path):
        text = read_plain(path)
    try:
        return loads(text)
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{path} is damaged: {error}; restore it or choose another folder"
        ) from error


def _holds_run(path: Path, settings: dict[str, Any], *, resume: bool) -> bool:
    """Whether the folder holds this very run; refuses a folder that is anything else's."""
    with explained("read", path):
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} must be a folder, got a file; choose another --out")
        found = sorted(path.iterdir()) if path.exists() else []
    if path / "config.json" not in found:
        # A process killed before it wrote its settings leaves these two and no more.
        foreign = [item.name for item in found if item.name != "lock" and not is_temporary(item)]
        if foreign:
            raise RunFolderError(
                f"{path} must be empty or hold a run, got {foreign[0]!r} in it; "
                "choose another --out"
            )
        return False

    unequal = differences(RunFolder(path).config, settings)
    if unequal:
        more = f" and {len(unequal) - _SHOWN} more" if len(unequal) > _SHOWN else ""
        raise RunFolderError(
            f"{path} holds a run with other settings ({'; '.join(unequal[:_SHOWN])}{more}); "
            "give it the same settings or choose another --out"
        )
    if not resume:
        raise RunFolderError(
            f"{path} holds a run already; pass --resume to continue it or choose another --out"
        )
    return True
