"""What runs come to in ``faults.py``, and whether it is what an undisturbed one comes to."""

__all__ = ["Row", "Setting", "outcome", "undisturbed"]

import hashlib
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.faults_subjects import Subject, child, lines, waited, warm
from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.records import Json
from deepzero_apps.runs.trees import Tree, flatten
from deepzero_apps.smoothing.journal import read
from deepzero_apps.smoothing.verification.vote_checks import against_votes
from deepzero_apps.smoothing.vote_log import read_votes


@dataclass
class Row:
    """What one kind of fault did to one command.

    Attributes:
        kind: The fault.
        subject: The command.
        faults: How often it happened.
        runs: Runs that ended after it.
        identical: How many of these came to the same as the undisturbed run, to the bit.
        notes: How often what was seen on the way.
        unlike: What went wrong, in words.
    """

    kind: str
    subject: str
    faults: int = 0
    runs: int = 0
    identical: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    unlike: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Counts something seen."""
        self.notes[what] = self.notes.get(what, 0) + 1


@dataclass(frozen=True)
class Setting:
    """Where faults meet a command.

    Args:
        subject: The command.
        expected: What must come out.
        seconds: That it takes undisturbed.
        lines: Lines of the file that grows, in the end.
        place: An empty folder.
        chance: Draws moments.
        mount: Whether file systems may be mounted.
    """

    subject: Subject
    expected: dict[str, str]
    seconds: float
    lines: int
    place: Path
    chance: random.Random
    mount: bool

    def ended(self, place: Path, row: Row) -> None:
        """Lets a run go on to its end undisturbed, and compares."""
        self.compare(place, row, waited(child(self.subject, place, resume=True)))

    def compare(self, place: Path, row: Row, code: int, *, said: Path | None = None) -> None:
        """Compares what a run came to with what was expected.

        Args:
            place: Where it ran; cleared away if all is well.
            row: Where this is counted.
            code: Its exit code.
            said: Where it printed, if that is elsewhere; the folder then stays.
        """
        row.runs += 1
        printed = (said or place / "said.txt").read_text()
        if "fell back to the checkpoint" in printed:
            row.note("fell back and said so")
        found = outcome(place / "run") if code == 0 else {"exit code": f"{code}: {printed}"}
        if found == self.expected:
            row.identical += 1
            if said is None:
                shutil.rmtree(place)
        else:
            unequal = {k: v for k, v in found.items() if self.expected.get(k) != v}
            row.unlike.append(f"{place}: {unequal}")


def undisturbed(subject: Subject, place: Path) -> tuple[dict[str, str], float, int]:
    """Runs a command undisturbed, twice.

    Returns:
        What comes out, the seconds that it takes, and the lines of the file that grows.

    Raises:
        RuntimeError: If it fails, or does not come to the same twice.
    """
    warm(subject, place / "warm")
    found, seconds = [], []
    for attempt in ("first", "second"):
        begun = time.monotonic()
        code = waited(child(subject, place / attempt, resume=False))
        if code:
            said = (place / attempt / "said.txt").read_text()
            raise RuntimeError(f"{subject.name} must succeed undisturbed, got {code}: {said}")
        seconds.append(time.monotonic() - begun)
        found.append(outcome(place / attempt / "run"))
    if found[0] != found[1]:
        raise RuntimeError(f"{subject.name} must come to the same twice, got {found}")
    return found[0], min(seconds), lines(place / "second" / "run" / subject.work)


def outcome(folder: Path) -> dict[str, str]:
    """Gives what must not depend on faults, by name: digests of all that a run comes to.

    Seconds are left out. So are the queries of a certification: what a killed process had asked is
    paid for, and asked again.
    """
    found = {path.name: _digest(path.read_bytes()) for path in _weights(folder)}
    best = RunFolder(folder).load_best()
    if best is not None:
        tree = {name: value for name, value in best.state.items() if name != "seconds"}
        found["best"] = f"{best.step} {best.score!r} {_tree(tree)}"
    if (folder / "certificates.jsonl").exists():
        certificates = sorted(read(folder), key=lambda c: c.index)
        found["certificates"] = _json([asdict(replace(c, seconds=0.0)) for c in certificates])
        found["contradictions"] = str(list(against_votes(certificates, read_votes(folder))))
    else:
        found["result"] = _json(_timeless(RunFolder(folder).result()))
        found["metrics"] = _json(_timeless(RunFolder(folder).metrics()))
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    found["left behind"] = str(left)
    return found


def _weights(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.safetensors") if path.is_file()]


def _tree(tree: Tree) -> str:
    skeleton, tensors = flatten(tree)
    parts = [tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in tensors]
    return _digest(json.dumps(skeleton).encode() + b"".join(parts))


def _timeless(value: Json) -> Json:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _json(value: Json) -> str:
    return _digest(json.dumps(value).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
