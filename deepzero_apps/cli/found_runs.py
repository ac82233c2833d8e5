"""What is known of runs on disk: of which command, in which state, with which result.

Nothing is written, and no lock is taken for longer than it takes to see whether somebody has it. A
folder that is damaged is found like any other, with what is wrong in place of its result.
"""

__all__ = ["FoundRun", "certificates_of", "found_run", "metrics_of", "runs_below", "short_names"]

import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deepzero_apps.files.opening import open_plain, read_plain
from deepzero_apps.runs import RunFolder, RunFolderError
from deepzero_apps.runs.records import loads
from deepzero_apps.smoothing.certificates import (
    Certificate,
    average_certified_radius,
    certified_accuracy,
)
from deepzero_apps.smoothing.journal import JournalError
from deepzero_apps.smoothing.journal import read as read_certificates

State = Literal["running", "finished", "interrupted", "damaged"]

_RADIUS = 0.5
_TAIL = 65_536
_INNER = frozenset({"checkpoints", "mlflow", "tensorboard"})
_WRITTEN = ("config.json", "metrics.jsonl", "votes.jsonl", "certificates.jsonl", "result.json")
# of runs older than the name of the command beside the versions: what only one command records
_FIELDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("recertify", frozenset({"command"})),
    ("compare defence", frozenset({"methods", "votes"})),
    ("compare correction", frozenset({"methods", "problem"})),
    ("certify", frozenset({"votes", "shard"})),
    ("rollout", frozenset({"problem", "split"})),
    ("correct", frozenset({"problem", "method"})),
    ("defend", frozenset({"method", "denoiser"})),
    ("compare estimators", frozenset({"estimators", "depths"})),
    ("train", frozenset({"estimator", "network"})),
)


@dataclass(frozen=True)
class FoundRun:
    """One run as its folder shows it.

    Attributes:
        path: The folder.
        kind: The command that made it, such as ``train``; empty where that is not known.
        state: ``running`` while a process holds its lock; ``finished`` with a result, else
            ``interrupted``; ``damaged`` if something in it cannot be read.
        config: Its settings.
        versions: What it was started with.
        result: Its result, empty until it has one.
        last: Its newest row of metrics, empty if it has none.
        changed: When it was last written to, in seconds since 1970.
        fault: What is wrong with it, empty where nothing is.
    """

    path: Path
    kind: str = ""
    state: State = "damaged"
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    changed: float = 0.0
    fault: str = ""

    @property
    def steps(self) -> float | None:
        """Steps of training."""
        return _known((self.result, "steps"), (self.result, "updates"), (self.last, "step"))

    @property
    def queries(self) -> float | None:
        """Queries of the whole run, or of all rows of a comparison."""
        return self._total("queries", "simulator_steps")

    @property
    def seconds(self) -> float | None:
        """Seconds of work, or of all rows of a comparison."""
        return self._total("seconds")

    @property
    def outcome(self) -> str:
        """The main result in a few words, what is wrong, or how far the run is."""
        if self.fault:
            return self.fault
        try:
            told = _OUTCOMES[self.kind](self) if self.kind in _OUTCOMES else ""
        except (JournalError, ValueError) as error:
            return str(error)
        return told or _so_far(self.last)

    def document(self) -> dict[str, Any]:
        """Returns all of it, of JSON's types."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "state": self.state,
            "outcome": self.outcome,
            "steps": self.steps,
            "queries": self.queries,
            "seconds": self.seconds,
            "changed": self.changed,
            "settings": dict(self.config),
            "versions": dict(self.versions),
            "result": dict(self.result),
            "last": dict(self.last),
        }

    def _total(self, *names: str) -> float | None:
        whole = _known((self.result, names[0]), (self.last, names[0]))
        if whole is not None:
            return whole
        found = [_known(*((row, name) for name in names)) for row in _rows(self.result)]
        numbers = [number for number in found if number is not None]
        return sum(numbers) if numbers else None


def runs_below(folders: Sequence[Path]) -> Iterator[FoundRun]:
    """Finds all runs in folders and below, those inside of runs too.

    Args:
        folders: Where to look.

    Yields:
        The runs, by path.
    """
    for folder in folders:
        for path, names, files in os.walk(folder):
            names[:] = sorted(n for n in names if n not in _INNER and not n.startswith("."))
            if "config.json" in files:
                run = found_run(Path(path))
                if run is not None:
                    yield run


def found_run(path: Path) -> FoundRun | None:
    """Reads what a run's folder shows.

    Args:
        path: The folder.

    Returns:
        The run; None if the folder holds none.
    """
    changed = _changed(path)
    try:
        folder = RunFolder(path)
    except RunFolderError as error:
        ours = _exists(path / "lock") and _exists(path / "config.json")
        return FoundRun(path, changed=changed, fault=str(error)) if ours else None
    versions: object = folder.versions
    if not isinstance(versions, dict) or "deepzero_apps" not in versions:
        return None  # many programs write a config.json
    found = FoundRun(path, _kind(folder), "interrupted", folder.config, versions, changed=changed)
    try:
        result, last = folder.result(), _last(path / "metrics.jsonl")
    except RunFolderError as error:
        return replace(found, state="damaged", fault=str(error))
    except (OSError, ValueError, TypeError) as error:
        fault = f"metrics.jsonl is damaged in its last line: {error}"
        return replace(found, state="damaged", fault=fault)
    state: State = "interrupted" if result is None else "finished"
    if _in_use(path / "lock"):
        state = "running"
    return replace(found, state=state, result=result or {}, last=last)


def metrics_of(run: FoundRun) -> list[dict[str, Any]]:
    """Reads the rows of metrics; none where they are damaged."""
    try:
        return RunFolder(run.path).metrics()
    except (RunFolderError, OSError):
        return []


def certificates_of(run: FoundRun) -> list[Certificate]:
    """Reads the certificates of a run; none where there are none.

    Raises:
        JournalError: If they are damaged.
    """
    file = run.path / "certificates.jsonl"
    return read_certificates(file) if file.is_file() else []


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names folders apart, as shortly as their common parent allows."""
    whole = [path.absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole]) if whole else ""
    return [os.path.relpath(path, shared) for path in whole]


def _kind(folder: RunFolder) -> str:
    told = folder.versions.get("command")
    if isinstance(told, str):
        return told
    for kind, fields in _FIELDS:
        if fields <= folder.config.keys():
            return kind
    return ""


def _in_use(lock: Path) -> bool:
    """Whether a process holds the lock; asked of a file that is open for reading alone."""
    try:
        with open_plain(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _last(metrics: Path) -> dict[str, Any]:
    """Reads the last whole line of a file that may be long."""
    if not metrics.exists():
        return {}
    lines = read_plain(metrics, last=_TAIL).split(b"\n")[:-1]
    if len(lines) < 2:  # the only line, or the end of a very long one
        lines = read_plain(metrics).split(b"\n")[:-1]
    return loads(lines[-1]) if lines else {}


def _changed(path: Path) -> float:
    times = [0.0]
    for file in (path, *(path / name for name in _WRITTEN)):
        with suppress(OSError):  # it is absent, or not for us to see
            times.append(file.stat().st_mtime)
    return max(times)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that is not for us to see
        return True


def _known(*places: tuple[Mapping[str, Any], str]) -> float | None:
    for fields, name in places:
        value = fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if abs(value) <= sys.float_info.max:  # what is larger cannot be summed
            return value
    return None


def _rows(result: Mapping[str, Any], name: str = "rows") -> list[Mapping[str, Any]]:
    rows = result.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _so_far(last: Mapping[str, Any]) -> str:
    words = []
    for name, form in (("loss", "loss {:.3g}"), ("validation_accuracy", "validation {:.1f} %")):
        value = _known((last, name))
        if value is not None:
            words.append(form.format(value))
    return ", ".join(words)


def _trained(run: FoundRun) -> str:
    accuracy = _known((run.result, "test_accuracy"))
    return "" if accuracy is None else f"test accuracy {accuracy:.2f} %"


def _certified(run: FoundRun) -> str:
    certificates = certificates_of(run)
    if not certificates:
        return ""
    (share,) = certified_accuracy(certificates, [_RADIUS])
    words = (
        f"{100 * share:.1f} % at r = {_RADIUS:g}, "
        f"ACR {average_certified_radius(certificates):.3f}, {len(certificates):,}"
    )
    wanted = _known((run.result, "wanted"))
    short = wanted is not None and len(certificates) < wanted
    return f"{words} of {wanted:,} images" if short else f"{words} images"


def _corrected(rows: Sequence[Mapping[str, Any]]) -> str:
    errors = {str(row.get("method")): _known((row, "mae")) for row in rows}
    known = {name: error for name, error in errors.items() if error is not None}
    told = [f"{name} {error:.4f}" for name, error in known.items()]
    return f"error {', '.join(reversed(told))}" if told else ""


def _best(name: str, form: str, *, lowest: bool) -> Callable[[FoundRun], str]:
    def outcome(run: FoundRun) -> str:
        rows = [row for row in _rows(run.result) if _known((row, name)) is not None]
        if not rows:
            return ""
        best = (min if lowest else max)(rows, key=lambda row: float(row[name]))
        return form.format(best.get("method", best.get("estimator")), best[name])

    return outcome


_OUTCOMES: dict[str, Callable[[FoundRun], str]] = {
    "train": _trained,
    "certify": _certified,
    "recertify": _certified,
    "merge": _certified,
    "correct": lambda run: _corrected(_rows(run.result, "validation")),
    "rollout": lambda run: _corrected(_rows(run.result)),
    "compare defence": _best("acr", "best: {}, ACR {:.3f}", lowest=False),
    "compare correction": _best("mae", "best: {}, error {:.4f}", lowest=True),
    "compare estimators": _best("accuracy", "best: {}, {:.1f} %", lowest=False),
}
