"""Training, certification and correction, killed, out of space, damaged and locked out.

A short turn of ``benchmarks/faults.py``: real processes, signals and files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepzero_apps.cli import driving

ROOT = Path(__file__).parent.parent
KINDS = {
    "killed": 3,
    "killed in writes": 3,
    "clock": 1,  # which kills, too
    "damaged": 1,
    "full": 1,
    "read-only": 1,
    "locked": 1,
}
SUBJECTS = ["training", "certification", "correction"]

Rows = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    found = tmp_path_factory.mktemp("faults") / "faults.json"
    kinds = [f"{kind}={faults}" for kind, faults in KINDS.items()]
    program = ["-m", "benchmarks.faults", "--no-mount", "--json", str(found), "--kinds", *kinds]
    done = subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert found.exists(), done.stderr
    return {(r["kind"], r["subject"]): r for r in json.loads(found.read_text())["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_disturbed_run_ends_with_the_bits_of_an_undisturbed_one(
    rows: Rows, subject: str, kind: str
) -> None:
    row = rows[kind, subject]

    assert row["unlike"] == []
    assert row["faults"] >= KINDS[kind]
    assert 1 <= row["identical"] == row["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only", "locked"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_stops_a_run_is_said(rows: Rows, subject: str, kind: str) -> None:
    row = rows[kind, subject]

    assert row["notes"]["refused and said so"] == row["faults"]
    assert row["notes"].get("left as it was", 0) == (row["faults"] if kind == "read-only" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["training", "correction"])
def test_damaged_newest_checkpoint_is_passed_over_and_that_is_said(
    rows: Rows, subject: str
) -> None:
    assert rows["damaged", subject]["notes"]["fell back and said so"] == KINDS["damaged"]


def test_runs_begun_in_one_second_or_on_a_clock_set_back_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(driving.datetime):
        @classmethod
        def now(cls, _: object = None) -> "Stopped":
            return cls(2026, 3, 29, 2, 30)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driving, "datetime", Stopped)
    found = []
    for _ in range(3):
        found.append(driving.folder_for("certify", None, resume=False))
        found[-1].mkdir(parents=True)

    first = "runs/certify-20260329-023000"
    assert list(map(str, found)) == [first, f"{first}-2", f"{first}-3"]
