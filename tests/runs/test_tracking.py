"""Watchers of a run: what they are told, and that none of them can stop it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.tracking import Row, Trackers, flattened, numbers

CONFIG: dict[str, Any] = {"seed": 3}


class Noted:
    """A tracker that notes its calls, and fails at those of a name."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, list[tuple[str, Any]]()

    def _note(self, name: str, what: object = None) -> None:
        self.calls.append((name, what))
        if name == self.fails:
            raise ConnectionError("the server is gone")

    def begin(self, rows: Sequence[Row], /) -> None:
        self._note("begin", list(rows))

    def log(self, row: Row, /) -> None:
        self._note("log", row)

    def flush(self) -> None:
        self._note("flush")

    def finish(self, result: Row, /) -> None:
        self._note("finish", result)

    def close(self) -> None:
        self._note("close")


def ran(path: Path, trackers: Trackers, *, steps: int = 3) -> None:
    with RunFolder.create(path, CONFIG, resume=True) as run:
        run.attach(trackers)
        run.truncate_metrics(0)
        for step in range(1, steps + 1):
            run.log({"step": step, "loss": math.nan if step == 2 else 0.5})
            run.save(step, {"step": step})
        run.finish({"accuracy": 1.5})


def test_a_tracker_is_told_what_the_folder_is_told(tmp_path: Path) -> None:
    noted = Noted()
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.log({"step": 0, "loss": 9})

    ran(tmp_path, Trackers({"noted": lambda: noted}), steps=2)

    assert noted.calls == [
        ("begin", [{"step": 0, "loss": 9}]),
        ("log", {"step": 1, "loss": 0.5}),
        ("flush", None),  # before the checkpoint: what is lost with the process comes again
        ("log", {"step": 2, "loss": None}),
        ("flush", None),
        ("finish", {"accuracy": 1.5}),
        ("close", None),
    ]


@pytest.mark.parametrize("call", ["begin", "log", "flush", "finish", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(call: str, tmp_path: Path) -> None:
    broken, whole = Noted(call), Noted()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ran(tmp_path, Trackers({"broken": lambda: broken, "whole": lambda: whole}))

    assert [str(w.message).split(":")[0] for w in told] == [
        "broken has failed and is told no more in this process"
    ]
    assert "the server is gone" in str(told[0].message)
    assert broken.calls[-1][0] == call
    assert [name for name, _ in whole.calls].count("log") == 3
    assert whole.calls[-1] == ("close", None)
    run = RunFolder(tmp_path)
    assert (len(run.metrics()), run.result()) == (3, {"accuracy": 1.5})
    assert run.load_latest() == (3, {"step": 3})


def test_a_tracker_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    def make() -> Noted:
        raise ModuleNotFoundError("No module named 'tracker'")

    with pytest.warns(UserWarning, match="absent has failed .* No module named 'tracker'"):
        ran(tmp_path, Trackers({"absent": make}))

    assert RunFolder(tmp_path).result() == {"accuracy": 1.5}


def test_a_failure_repeats_no_credentials(tmp_path: Path) -> None:
    def make() -> Noted:
        raise ConnectionError("no answer from http://user:pass@host:5000/api")

    with pytest.warns(UserWarning, match="no answer from http://host:5000/api"):
        ran(tmp_path, Trackers({"server": make}))


def test_nothing_is_made_for_a_run_that_does_nothing(tmp_path: Path) -> None:
    made: list[Noted] = []

    def make() -> Noted:
        made.append(Noted())
        return made[-1]

    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.attach(Trackers({"noted": make}))
    assert made == []

    with RunFolder.create(tmp_path, CONFIG, resume=True) as run:  # a comparison has no steps
        run.attach(Trackers({"noted": make}))
        run.finish({})
    assert made[0].calls == [("begin", []), ("finish", {}), ("close", None)]


def test_the_lock_is_released_whatever_trackers_do(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG, resume=False)
    run.attach(Noted("close"))  # not guarded by Trackers

    with pytest.raises(ConnectionError):
        run.close()

    RunFolder.create(tmp_path, CONFIG, resume=True).close()


def test_what_can_be_drawn_is_finite_numbers() -> None:
    row: Mapping[str, Any] = {
        "step": 4,
        "loss": 0.5,
        "queries": 7,
        "bad": None,
        "nan": math.nan,
        "flag": True,
        "name": "x",
        "huge": 10**400,
    }
    assert numbers(row) == {"loss": 0.5, "queries": 7.0}


def test_nested_fields_are_named_by_their_path() -> None:
    tree = {"votes": {"n": 5, "radii": [0.25, 0.5]}, "rows": [{"acr": 1}], "none": None, "e": {}}

    assert flattened(tree) == {
        "votes.n": 5,
        "votes.radii": "[0.25, 0.5]",
        "rows": '[{"acr": 1}]',
        "none": None,
    }
    assert flattened(tree, lists=True) == {
        "votes.n": 5,
        "votes.radii.0": 0.25,
        "votes.radii.1": 0.5,
        "rows.0.acr": 1,
        "none": None,
    }
