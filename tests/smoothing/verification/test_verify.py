"""Verification: what holds passes, what was changed is found, and nothing crashes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deepzero_apps.smoothing.fingerprint import fingerprint
from deepzero_apps.smoothing.verification.field_logs import Claim, LogError
from deepzero_apps.smoothing.verification.journal_verification import Plan, Scene
from deepzero_apps.smoothing.verification.verify import verify
from tests.smoothing.sound_certificates import DECIDE, SOURCE, sound, write

Lines = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, [sound(0), sound(1, votes=100), sound(2, votes=60), sound(3, label=0)])
    return tmp_path


def change(folder: Path, edit: Callable[[Lines], object]) -> None:
    path = folder / "certificates.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def kinds(folder: Path, **other: Any) -> list[str]:  # noqa: ANN401
    return [finding.kind for finding in verify(folder, **other).findings]


def test_what_holds_passes_and_says_what_it_is(folder: Path) -> None:
    report = verify(folder)

    assert report.findings == report.notes == ()
    facts = dict(report.facts)
    # 0.5 * the normal quantile of 0.001 ** (1 / 100), rounded down
    assert facts["largest radius possible"] == facts["largest radius"] == "0.7502"
    assert (facts["certificates"], facts["right, abstained"]) == ("4", "2, 1")
    assert facts["queries"] == "440"
    assert verify(folder / "certificates.jsonl").findings == ()
    assert verify(folder / "votes.jsonl").file == str(folder / "certificates.jsonl")


def test_what_is_absent_is_told_as_not_checked(tmp_path: Path) -> None:
    write(tmp_path, [sound(0)], votes=False)
    alone = tmp_path / "elsewhere.jsonl"
    alone.write_bytes((tmp_path / "certificates.jsonl").read_bytes())

    for path in (tmp_path, alone):
        report = verify(path)
        assert report.findings == ()
        assert any("no readable votes.jsonl" in words for words in report.unchecked)
        assert any("no data at hand" in words for words in report.unchecked)


def _set(line: int, **values: Any) -> Callable[[Lines], object]:  # noqa: ANN401
    return lambda lines: lines[line].update(values)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_set(1, radius=0.7503), {"radius impossible", "table"}),
        (_set(0, radius=0.5069), {"rounding", "table"}),
        (_set(0, label=2), {"correct flag", "label", "table"}),
        (_set(0, votes=96, other_votes=4), {"lower bound", "radius", "votes"}),
        (_set(0, image="0" * 63 + "9"), {"image changed"}),
        (lambda lines: lines.pop(1), {"missing", "table"}),
        (lambda lines: lines.append(lines[0]), {"duplicate", "table"}),
        (
            lambda lines: lines[2]["settings"].update(seed=9),
            {"mixed settings", "votes of other settings"},
        ),
        (
            lambda lines: lines[2]["source"].update(classifier="d" * 64),
            {"changed classifier or denoiser", "votes of other settings"},
        ),
        (lambda lines: lines[1]["settings"].update(n=1), {"settings", "missing", "table"}),
        (lambda lines: lines[1].pop("votes"), {"damaged line", "missing", "table"}),
        (lambda lines: lines[1].update(votes=10**30), {"damaged line", "missing", "table"}),
        (lambda lines: lines.clear(), {"no certificate", "table"}),
    ],
)
def test_each_change_of_the_file_is_found(
    folder: Path, edit: Callable[[Lines], object], expected: set[str]
) -> None:
    change(folder, edit)

    assert set(kinds(folder)) == expected


def test_findings_name_file_line_and_image(folder: Path) -> None:
    change(folder, _set(3, p_lower=0.5))

    first = verify(folder).findings[0]

    assert first.text.startswith("certificates.jsonl, line 4, image 3: lower bound: p_lower 0.5, ")


def test_damaged_lines_leave_the_rest_checked(folder: Path) -> None:
    path = folder / "certificates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1:1] = [b"\xff\x00garbage\n", b"{" * 100_000 + b"\n", b"\n"]
    path.write_bytes(b"".join(lines) + b'{"index": 4, "la')

    report = verify(folder)

    assert [(f.kind, f.line) for f in report.findings] == [("damaged line", n) for n in (2, 3, 4)]
    assert [(f.kind, f.line) for f in report.notes] == [("torn last line", 8)]
    assert all(len(f.text) < 300 for f in report.findings)


def test_votes_that_were_edited_are_found(folder: Path) -> None:
    path = folder / "votes.jsonl"
    text = path.read_text()

    path.write_text(text.replace('{"1": 47}', '{"1": 46, "2": 1}', 1))
    assert kinds(folder) == ["votes"]
    path.write_text(text.replace('"ask"', '"task"', 1))
    assert kinds(folder) == ["damaged votes"]
    path.write_text(text + '{"votes": [[0, 1')
    assert [f.kind for f in verify(folder).notes] == ["torn last line"]


def test_the_table_must_follow_from_the_journal(folder: Path) -> None:
    path = folder / "certificates.tsv"
    text = path.read_text()

    path.write_text(text.replace("0.5068", "0.5069", 1))
    assert kinds(folder) == ["table"]
    path.write_text(text + "9\t1\t1\t0.1000\t1\t0:00:01\n")
    assert kinds(folder) == ["table"]
    path.write_text(text + text.splitlines()[1] + "\n")
    assert kinds(folder) == ["duplicate"]
    path.write_bytes(b"\0")
    assert kinds(folder) == ["damaged table"]


def test_a_plan_says_what_is_missing(folder: Path) -> None:
    assert kinds(folder, plan=Plan(indices=range(4))) == []
    assert kinds(folder, plan=Plan(indices=range(6))) == ["missing"]
    assert kinds(folder, plan=Plan(indices=range(0, 6, 2))) == ["missing", "stray", "stray"]
    unfinished = verify(folder, plan=Plan(indices=range(6), finished=False))
    assert unfinished.findings == ()
    assert [f.kind for f in unfinished.notes] == ["missing"]


def test_data_and_classifier_are_compared_by_fingerprint(tmp_path: Path) -> None:
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([1, 1, 0])
    prints = [fingerprint(image.float()) for image in images]
    write(tmp_path, [sound(i, label=int(labels[i]), image=prints[i]) for i in range(3)])
    scene = Scene(images=images, labels=labels, classifier=SOURCE.classifier)

    assert kinds(tmp_path, scene=scene) == []
    other = replace(
        scene, images=images.flip(0), labels=labels + 1, classifier="e", suspect="denoiser"
    )
    assert kinds(tmp_path, scene=other) == [
        "changed denoiser", "image changed", "label", "label", "image changed", "label",
    ]  # fmt: skip
    assert kinds(tmp_path, scene=replace(scene, images=images[:2])) == ["image"]


def test_what_is_sound_but_worth_knowing_is_a_note(tmp_path: Path) -> None:
    older = replace(SOURCE, package_version="0.0.1")
    found = ("drift: it changed",)
    budget = {"stop": "budget", "settings": DECIDE}
    write(tmp_path, [sound(0, findings=found, **budget), sound(1, source=older, **budget)])

    report = verify(tmp_path)

    assert report.findings == ()
    assert [f.kind for f in report.notes] == ["mixed sources", "check of the black box", "budget"]
    assert "drift: it changed (in 1 certificates)" in report.notes[1].found


def test_a_plain_log_is_checked_against_what_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "sigma_0.25"
    rows = [
        "0\t3\t3\t0.1\t1\t1",
        "20\t3\t-1\t0.0\t0\t1",
        "60\t3\t3\t0.978\t1\t1",
        "60\t3\t3\t0.1\t0\t1",
    ]
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "\n".join(rows) + "\n")
    claim = Claim(sigma=0.25, alpha=0.001, n=100_000)

    bare = verify(path)
    stated = verify(path, claim=claim, total=100)

    assert [f.kind for f in bare.findings] == ["correct flag", "duplicate", "missing"]
    assert "radii against sigma, alpha and n: none are stated with the log" in bare.unchecked
    assert [f.found for f in stated.findings if f.kind == "missing"] == [
        "no row for image 40", "no row for image 80",
    ]  # fmt: skip
    (impossible,) = [f for f in stated.findings if f.kind == "radius impossible"]
    # 0.25 * the normal quantile of 0.001 ** (1 / 100000)
    assert "0.952864" in impossible.expected
    assert "at least 0.0099 at n 100000" in stated.notes[0].found
    assert dict(stated.facts)["rows"] == "4, every 20."


def test_there_must_be_something_to_verify(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"must hold certificates\.jsonl"):
        verify(tmp_path)
    (tmp_path / "certificates.jsonl").write_bytes(b"")
    assert kinds(tmp_path) == ["no certificate"]
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(LogError, match="is empty"):
        verify(tmp_path / "log")
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "absent")
