"""Readers of runs: settings, metrics, certificates, votes, trajectories, logs of the field."""

__all__ = ["ENTRIES"]

import hashlib
import json
from pathlib import Path
from random import Random

import numpy as np

from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.trajectory_files import TrajectoryError, TrajectoryFolder
from deepzero_apps.correction.trajectory_files import load as load_trajectories
from deepzero_apps.runs import RunFolder, RunFolderError
from deepzero_apps.smoothing.journal import JournalError
from deepzero_apps.smoothing.journal import read as read_journal
from deepzero_apps.smoothing.recertify import recertify
from deepzero_apps.smoothing.reporting.page import page
from deepzero_apps.smoothing.verification.field_logs import Claim, LogError
from deepzero_apps.smoothing.verification.verify import verify
from deepzero_apps.smoothing.vote_log import VoteLogError, read_votes
from tests.fuzz.archives import _scratch
from tests.fuzz.mutations import mutated, mutated_json, mutated_lines, mutated_zip
from tests.smoothing.sound_certificates import DECIDE, sound, write

_LOG = (
    b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    b"0\t3\t3\t0.4321\t1\t0:00:01.5\n20\t8\t-1\t0.0\t0\t0:00:01.5\n40\t8\t8\t1.2\t1\t0:00:01.5\n"
)


def _logs() -> list[bytes]:
    return [_LOG, _LOG.replace(b"\t", b","), b"\n".join(_LOG.split(b"\n")[1:])]


def _mutated_log(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    cells = lines[at].split(b"\t")
    cells[random.randrange(len(cells))] = random.choice(
        (
            b"1e400",
            b"nan",
            b"-inf",
            b"9" * 400,
            b"1E999999999",
            b"sNaN",
            b"0x10",
            b"1_000",
            b"",
            b"\xd9\xa1",
            b"-0",
            b"1e-999999",
        )
    )
    lines[at] = b"\t".join(cells)
    return b"\n".join(lines) if random.random() < 0.5 else mutated(random, data)


def _read_log(data: bytes, folder: Path) -> None:
    (folder / "log.tsv").write_bytes(data)
    for claim in (None, Claim(sigma=0.5, alpha=0.001, n=1000)):
        report = verify(folder / "log.tsv", claim=claim, total=500)
        assert all(finding.text.isprintable() for finding in report.findings)


def _written(name: str) -> list[bytes]:
    """Files that the library itself writes."""
    made = []
    for folder, settings in (("fixed", {}), ("decide", {"settings": DECIDE, "votes": 95})):
        place = Path(_scratch(), folder)
        if not place.exists():
            write(place, [sound(index, **settings) for index in range(3)])  # type: ignore[arg-type]
        made.append((place / name).read_bytes())
    return made


def _read_certificates(data: bytes, folder: Path) -> None:
    file = folder / "certificates.jsonl"
    file.write_bytes(data)
    report = verify(file)
    assert all(finding.text.isprintable() for finding in (*report.findings, *report.notes))
    certificates = read_journal(file)
    if certificates:
        page(certificates, classes=("<b>", "x"))


def _read_vote_log(data: bytes, folder: Path) -> None:
    file = folder / "votes.jsonl"
    file.write_bytes(data)
    votes = read_votes(file)
    recertify(votes, votes.settings)


def _read_run_of_votes(data: bytes, folder: Path) -> None:
    """Sound certificates beside a broken log of votes."""
    (folder / "votes.jsonl").write_bytes(data)
    (folder / "certificates.jsonl").write_bytes(_written("certificates.jsonl")[0])
    verify(folder)


_CONFIG = {
    "command": "certify",
    "sigma": 0.5,
    "seed": 0,
    "votes": {"n": 100},
    "versions": {"python": "3"},
}
_ROWS = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'


def _runs() -> list[bytes]:
    return [json.dumps(_CONFIG).encode() + b"\0" + _ROWS]


def _mutated_run(random: Random, data: bytes) -> bytes:
    config, _, rows = data.partition(b"\0")
    if random.random() < 0.5:
        return mutated_json(random, config) + b"\0" + rows
    return config + b"\0" + mutated_lines(random, rows)


def _read_run(data: bytes, folder: Path) -> None:
    config, _, rows = data.partition(b"\0")
    for name, content in (
        ("config.json", config),
        ("result.json", config),
        ("metrics.jsonl", rows),
    ):
        (folder / name).write_bytes(content)
    run = RunFolder(folder)
    run.result()
    run.metrics()


_SETTINGS = {"problem": "p", "frames": 2}


def _simulations() -> list[bytes]:
    place = Path(_scratch(), "simulations")
    one = Trajectories(np.ones((1, 2, 1, 4)), np.array([0.5]), np.zeros((1, 2, 3)))
    with TrajectoryFolder(place, _SETTINGS, [0.5]) as folder:
        if folder.missing():
            folder.save(0, one)
    return [(place / "simulation_0000.npz").read_bytes()]


def _read_simulation(data: bytes, folder: Path) -> None:
    """A simulation whose checksum is right: it is a stranger's, not damaged."""
    place = folder / "trajectories"
    place.mkdir(exist_ok=True)
    (place / "simulation_0000.npz").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    index = {"settings": _SETTINGS, "parameters": [0.5], "files": {"simulation_0000.npz": digest}}
    (place / "trajectories.json").write_text(json.dumps(index))
    load_trajectories(place)


def _indices() -> list[bytes]:
    _simulations()
    return [Path(_scratch(), "simulations", "trajectories.json").read_bytes()]


def _read_index(data: bytes, folder: Path) -> None:
    place = folder / "trajectories"
    place.mkdir(exist_ok=True)
    (place / "simulation_0000.npz").write_bytes(_simulations()[0])
    (place / "trajectories.json").write_bytes(data)
    load_trajectories(place, {"problem": "p"})


ENTRIES = [
    ("logs of the field", _logs, _mutated_log, _read_log, (LogError,), 60),
    ("certificates", lambda: _written("certificates.jsonl"), mutated_lines, _read_certificates, (JournalError, ValueError), 40),
    ("votes", lambda: _written("votes.jsonl"), mutated_lines, _read_vote_log, (VoteLogError, ValueError), 60),
    ("votes beside certificates", lambda: _written("votes.jsonl"), mutated_lines, _read_run_of_votes, (LogError,), 30),
    ("run folders", _runs, _mutated_run, _read_run, (RunFolderError,), 100),
    ("simulations on disk", _simulations, mutated_zip, _read_simulation, (TrajectoryError,), 60),
    ("indices of simulations", _indices, mutated_json, _read_index, (TrajectoryError,), 60),
]  # fmt: skip
