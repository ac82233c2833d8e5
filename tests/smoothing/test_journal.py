"""The journal: what is read is what was written, and nothing of another run is touched."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.journal import Journal, JournalError, read
from tests.smoothing.certificate_examples import certificate

SETTINGS = Settings(sigma=0.5, n0=10, n=100)
THREE = [
    certificate(4, radius=0.1234),
    certificate(7, predicted=ABSTAIN, radius=0.0, p_lower=1 / 3, seconds=1e-7),
    certificate(5, label=2, predicted=1, radius=1.5),
]


def journal(folder: Path, settings: Settings = SETTINGS, classifier: str = "bb") -> Journal:
    return Journal(folder, settings, classifier=classifier)


def write(folder: Path, certificates: list[Certificate]) -> None:
    with journal(folder) as opened:
        for c in certificates:
            opened.append(c)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, THREE)

    assert read(tmp_path) == read(tmp_path / "certificates.jsonl") == THREE


@given(
    values=st.fixed_dictionaries(
        {
            "p_lower": st.floats(0, 1),
            "seconds": st.floats(0, 1e9),
            "seed": st.integers(0, 2**64),
            "classifier": st.text(),
            "findings": st.lists(st.text()).map(tuple),
        }
    )
)
def test_every_value_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    settings = replace(SETTINGS, seed=values["seed"])
    with journal(folder, settings, values["classifier"]) as opened:
        opened.append(certificate(0, **values))

    assert read(folder) == [certificate(0, **values)]


def test_the_table_has_the_field_s_columns(tmp_path: Path) -> None:
    write(tmp_path, THREE)

    assert (tmp_path / "certificates.tsv").read_text().splitlines() == [
        "idx\tlabel\tpredict\tradius\tcorrect\ttime",
        "4\t1\t1\t0.1234\t1\t0:00:00.250000",
        "7\t1\t-1\t0.0000\t0\t0:00:00",
        "5\t2\t1\t1.5000\t0\t0:00:00.250000",
    ]


def test_a_resumed_journal_is_the_uninterrupted_one(tmp_path: Path) -> None:
    write(tmp_path / "whole", THREE)
    write(tmp_path / "parts", THREE[:1])
    with journal(tmp_path / "parts") as opened:
        assert opened.done == {4}
        for c in THREE[1:]:
            opened.append(c)
        assert opened.certificates == tuple(THREE)

    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "whole", THREE)
    write(tmp_path / "torn", THREE)
    for name in ("certificates.jsonl", "certificates.tsv"):
        path = tmp_path / "torn" / name
        path.write_bytes(path.read_bytes()[: -min(cut, 9) if name.endswith("tsv") else -cut])

    assert read(tmp_path / "torn") == THREE[:2]
    with journal(tmp_path / "torn") as opened:
        assert opened.done == {4, 7}
        opened.append(THREE[2])
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_every_line_is_on_disk_when_a_process_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.smoothing.test_journal import THREE, journal
with journal(Path({str(tmp_path)!r})) as opened:
    opened.append(THREE[0])
    opened.append(THREE[1])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)

    assert killed.returncode == -signal.SIGKILL
    with journal(tmp_path) as opened:  # the lock died with the process
        assert opened.certificates == tuple(THREE[:2])


@pytest.mark.parametrize(
    ("settings", "classifier", "message"),
    [
        (Settings(sigma=0.25, n0=10, n=100), "bb", r"journal in .* has sigma 0.5, this run 0.25"),
        (Settings(sigma=0.5, n0=10, n=99), "bb", "has n 100, this run 99; choose another"),
        (Settings(sigma=0.5, n0=10, n=100, seed=1), "cc", "has seed 0, this run 1"),
        (SETTINGS, "cc", "has classifier 'bb', this run 'cc'"),
    ],
)
def test_a_journal_of_another_run_is_refused_and_left_as_it_is(
    tmp_path: Path, settings: Settings, classifier: str, message: str
) -> None:
    write(tmp_path, THREE)
    with (tmp_path / "certificates.jsonl").open("ab") as file:
        file.write(b'{"torn')
    before = contents(tmp_path)

    with pytest.raises(JournalError, match=message), journal(tmp_path, settings, classifier):
        pass
    assert contents(tmp_path) == before


def test_a_certificate_of_another_run_or_a_second_one_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append(THREE[0])
        with pytest.raises(JournalError, match=r"certificate has alpha 0.01, this run 0.001"):
            opened.append(certificate(1, alpha=0.01))
        with pytest.raises(JournalError, match="certificate has image 4 a second time"):
            opened.append(THREE[0])

    assert read(tmp_path) == THREE[:1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: {k: v for k, v in row.items() if k != "votes"}, r"line 2 .*votes: Field req"),
        (lambda row: {**row, "radius": "0.5"}, "line 2 is no certificate: radius: .*valid number"),
        (lambda row: {**row, "index": 1.5}, "line 2 is no certificate: index"),
        (lambda _: [1], "line 2 is no certificate"),
    ],
)
def test_a_damaged_line_is_refused_by_number(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path, THREE)
    path = tmp_path / "certificates.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = json.dumps(damage(json.loads(lines[1]))) + "\n"  # type: ignore[operator]
    path.write_text("".join(lines))

    with pytest.raises(JournalError, match=message):
        read(tmp_path)
    with pytest.raises(JournalError, match=message), journal(tmp_path):
        pass
    assert path.read_text() == "".join(lines)


def test_findings_are_written_into_every_certificate(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        for c in THREE:
            opened.append(c)
        opened.conclude(("it drifts",))
        with pytest.raises(JournalError, match="in use by another process"), journal(tmp_path):
            pass  # the new file is locked as the old one was

    assert read(tmp_path) == [replace(c, findings=("it drifts",)) for c in THREE]
    with journal(tmp_path) as opened:
        assert opened.done == {4, 5, 7}
        opened.conclude(())
    assert read(tmp_path) == THREE


def test_what_a_budget_ended_is_open_again(tmp_path: Path) -> None:
    ended = certificate(9, stop="budget")
    write(tmp_path, [THREE[0], ended, THREE[1]])
    assert ended in read(tmp_path)

    with journal(tmp_path) as opened:
        assert opened.done == {4, 7}
        opened.append(certificate(9, stop="limit"))

    assert [c.index for c in read(tmp_path)] == [4, 7, 9]
    assert len((tmp_path / "certificates.tsv").read_text().splitlines()) == 4


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    with journal(tmp_path):
        with pytest.raises(JournalError, match="in use by another process"), journal(tmp_path):
            pass
        assert read(tmp_path) == []


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="journal must be open"):
        journal(tmp_path).append(THREE[0])


def test_what_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "certificates.tsv").write_text("mine")

    with pytest.raises(JournalError, match=r"cannot read .*certificates.jsonl: No such file"):
        read(tmp_path)
    with pytest.raises(JournalError, match="cannot open a journal in"), journal(tmp_path / "file"):
        pass
    with pytest.raises(JournalError, match=r"certificates.tsv without"), journal(tmp_path):
        pass
    assert (tmp_path / "certificates.tsv").read_text() == "mine"


def test_a_write_that_fails_keeps_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, THREE[:1])
    size = (tmp_path / "certificates.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with journal(tmp_path) as opened:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
            with pytest.raises(JournalError, match=r"cannot write .*jsonl: .* continues from it"):
                opened.append(THREE[1])
            with pytest.raises(JournalError, match="journal must be open"):
                opened.append(THREE[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert os.path.getsize(tmp_path / "certificates.jsonl") == size
    assert read(tmp_path) == THREE[:1]
    write(tmp_path, THREE[1:])
    assert read(tmp_path) == THREE
