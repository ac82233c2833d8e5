"""The log of votes: nothing that was asked is lost, and nothing of another run is touched."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Source
from deepzero_apps.smoothing.vote_log import (
    Entry,
    Ledger,
    Pictured,
    VoteLog,
    VoteLogError,
    read_votes,
)
from deepzero_apps.zeroth_order.oracle import BudgetExhausted
from tests.smoothing.certificate_examples import SETTINGS, SOURCE

DECIDE = Settings(sigma=0.5, procedure="decide", radii=(0.25, 0.5))
IMAGES = [Pictured(4, 7, "aa"), Pictured(0, 1, "bb")]
ENTRIES = [
    [Entry(4, 0, 0, {7: 9, 1: 1}, 0, 0.5), Entry(0, 0, 0, {}, 5, 0.25)],
    [Entry(4, 1, 0, {7: 32}, 0, 0.125)],
]


def write(folder: Path, settings: Settings = SETTINGS, source: Source = SOURCE) -> None:
    with VoteLog(folder, settings, source) as log:
        for image in IMAGES:
            log.picture(image)
        for entries in ENTRIES:
            log.ask(40)
            log.append(entries, spent=40)


def line(folder: Path, number: int) -> str:
    return (folder / "votes.jsonl").read_text().splitlines()[number]


@pytest.mark.parametrize("settings", [SETTINGS, DECIDE])
def test_what_is_read_equals_what_was_written(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path, settings)

    votes = read_votes(tmp_path)

    assert (votes.settings, votes.source) == (settings, SOURCE)
    assert votes.images == {4: IMAGES[0], 0: IMAGES[1]}
    assert votes.entries == [entry for entries in ENTRIES for entry in entries]
    assert (votes.spent, votes.unanswered) == (80, 0)


def test_votes_of_an_image_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path)

    found = read_votes(tmp_path).by_image()

    assert list(found) == [4, 0]
    assert found == {4: [ENTRIES[0][0], ENTRIES[1][0]], 0: [ENTRIES[0][1]]}


def test_a_log_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    write(tmp_path)
    more = Entry(0, 0, 5, {1: 3})

    with VoteLog(tmp_path, SETTINGS, replace(SOURCE, torch_version="9")) as log:
        assert log.votes.spent == 80
        log.picture(IMAGES[0])
        log.append([more], spent=3)

    votes = read_votes(tmp_path)
    assert votes.entries[-1] == more
    assert votes.spent == 83
    assert (tmp_path / "votes.jsonl").read_text().count('"image"') == len(IMAGES)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path, cut: int) -> None:
    write(tmp_path)
    path = tmp_path / "votes.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])

    votes = read_votes(tmp_path)
    assert votes.entries == ENTRIES[0]
    assert (votes.spent, votes.unanswered) == (40 + 40, 40)  # it was asked: it is paid for
    with VoteLog(tmp_path, SETTINGS, SOURCE) as log:
        log.ask(32)
        log.append(ENTRIES[1], spent=32)
    assert read_votes(tmp_path).entries == [*ENTRIES[0], *ENTRIES[1]]
    assert read_votes(tmp_path).spent == 40 + 40 + 32


def test_what_was_asked_and_not_written_is_paid_for(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.smoothing.test_vote_log import ENTRIES, SETTINGS, SOURCE, VoteLog
with VoteLog(Path({str(tmp_path)!r}), SETTINGS, SOURCE) as log:
    log.ask(15)
    log.append(ENTRIES[0], spent=15)
    log.ask(32)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)

    assert killed.returncode == -signal.SIGKILL
    votes = read_votes(tmp_path)
    assert votes.entries == ENTRIES[0]
    assert (votes.spent, votes.unanswered) == (47, 32)


def test_a_ledger_notes_every_query_before_it_is_sent(tmp_path: Path) -> None:
    with VoteLog(tmp_path, SETTINGS, SOURCE) as log:
        ledger = Ledger(log, 50)
        ledger.charge(15)
        log.append(ENTRIES[0], spent=15)
        ledger.charge(32)  # of a call that never returns
        with pytest.raises(BudgetExhausted, match="does not cover 4 more"):
            ledger.charge(4)
        assert ledger.spent == read_votes(tmp_path).spent == 47

    assert read_votes(tmp_path).unanswered == 32
    with VoteLog(tmp_path, SETTINGS, SOURCE) as log:
        assert Ledger(log, 50).remaining == 3


@pytest.mark.parametrize(
    ("settings", "source", "message"),
    [
        (replace(SETTINGS, sigma=0.25), SOURCE, "has sigma 0.5, this run 0.25; choose another"),
        (DECIDE, SOURCE, "has n0 10, this run 100"),
        (SETTINGS, replace(SOURCE, classifier="cc"), "has classifier 'bb', this run 'cc'"),
    ],
)
def test_a_log_of_another_run_is_refused_and_left_as_it_is(
    tmp_path: Path, settings: Settings, source: Source, message: str
) -> None:
    write(tmp_path)
    before = (tmp_path / "votes.jsonl").read_bytes()

    with pytest.raises(VoteLogError, match=message), VoteLog(tmp_path, settings, source):
        pass
    assert (tmp_path / "votes.jsonl").read_bytes() == before


def test_another_image_at_the_same_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path)

    with (
        VoteLog(tmp_path, SETTINGS, SOURCE) as log,
        pytest.raises(VoteLogError, match="another image at 4: image aa of class 7, this run cc"),
    ):
        log.picture(Pictured(4, 7, "cc"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: {**row, "spent": "8"}, r"line 5 is no line of votes: .*spent"),
        (lambda row: {"votes": row["votes"]}, r"line 5 is no line of votes"),
        (lambda _: [1], r"line 5 is no line of votes"),
        (lambda row: {**row, "votes": [[1, 0, 0, {"a": 1}, 0]]}, r"line 5 .*votes"),
        (lambda row: {**row, "votes": [[1, 0, -3, {"1": 1}, 0]]}, r"line 5 .*votes"),
        (lambda row: {**row, "votes": [[1, 0, 0, {"1": -1}, 0]]}, r"line 5 .*votes"),
        (lambda row: {**row, "spent": -1}, r"line 5 .*spent"),
    ],
)
def test_a_damaged_line_is_refused_by_number(
    tmp_path: Path, damage: Callable[[object], object], message: str
) -> None:
    write(tmp_path)
    path = tmp_path / "votes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[4] = json.dumps(damage(json.loads(lines[4]))) + "\n"
    path.write_text("".join(lines))

    with pytest.raises(VoteLogError, match=message):
        read_votes(tmp_path)
    with pytest.raises(VoteLogError, match=message), VoteLog(tmp_path, SETTINGS, SOURCE):
        pass
    assert path.read_text() == "".join(lines)


def test_votes_before_their_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))

    with pytest.raises(VoteLogError, match="line 1: settings must be the first line"):
        read_votes(tmp_path)


def test_a_log_has_one_writer_and_takes_nothing_when_closed(tmp_path: Path) -> None:
    with VoteLog(tmp_path, SETTINGS, SOURCE) as log:
        with (
            pytest.raises(VoteLogError, match="in use by another process"),
            VoteLog(tmp_path, SETTINGS, SOURCE),
        ):
            pass
        assert read_votes(tmp_path).entries == []
    with pytest.raises(VoteLogError, match="log must be open"):
        log.ask(1)


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").touch()

    with pytest.raises(VoteLogError, match="holds no votes"):
        read_votes(tmp_path)
    with pytest.raises(VoteLogError, match=r"cannot read .*: No such file"):
        read_votes(tmp_path / "absent")
    os.mkdir(tmp_path / "folder")
    with (
        pytest.raises(VoteLogError, match="cannot open"),
        VoteLog(tmp_path / "votes.jsonl", SETTINGS, SOURCE),
    ):
        pass
