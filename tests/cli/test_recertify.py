"""``deepzero-apps recertify`` and ``merge``: nothing is asked, and nothing unsound is made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzero_apps.cli import main
from deepzero_apps.smoothing.bounds import lower_bound

VOTES = ["--images", "6", "--n", "200", "--n0", "10"]


def certificates(folder: str) -> list[dict[str, Any]]:
    lines = (Path(folder) / "certificates.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_another_alpha_asks_nothing(centroids: str, asked: Callable[[], int]) -> None:
    assert main(["certify", *VOTES, "--classifier", centroids, "--out", "run"]) == 0
    before = asked()

    assert main(["recertify", "--run", "run", "--alpha", "0.05", "--out", "again"]) == 0

    assert asked() == before
    for c, old in zip(certificates("again"), certificates("run"), strict=True):
        assert c["settings"]["alpha"] == 0.05
        assert c["p_lower"] == lower_bound(old["votes"], 200, 0.05)
    assert Path("again/certified_accuracy.png").exists()


def test_unsound_wishes_are_refused(centroids: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*VOTES, "--classifier", centroids, "--procedure", "anytime"]
    assert main(["certify", *flags, "--out", "run"]) == 0

    assert main(["recertify", "--run", "run", "--procedure", "fixed", "--out", "again"]) == 2

    assert "Clopper-Pearson does not allow looks" in capsys.readouterr().err
    assert not Path("again").exists()
    assert main(["recertify", "--run", "absent"]) == 1


def test_parts_merge_into_the_whole_and_go_on(
    centroids: str, asked: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*VOTES, "--classifier", centroids]
    assert main(["certify", *flags, "--out", "whole"]) == 0
    for part in "123":
        assert main(["certify", *flags, "--shard", f"{part}/3", "--out", part]) == 0
    assert main(["merge", "1", "2", "3", "--out", "all"]) == 0
    assert main(["merge", "1", "3", "--out", "some"]) == 0

    def known(folder: str) -> list[tuple[object, ...]]:
        found = sorted(certificates(folder), key=lambda c: c["index"])
        return [(c["index"], c["votes"], c["radius"], c["image"]) for c in found]

    assert known("all") == known("whole")
    before = asked()
    assert main(["certify", *flags, "--canaries", "0", "--resume", "--out", "some"]) == 0
    assert asked() - before == 2 * 210 + 1
    assert known("some") == known("whole")
    capsys.readouterr()
    assert main(["merge", "1", "1", "--out", "twice"]) == 1
    assert "has votes in two logs" in capsys.readouterr().err


def test_parts_of_other_images_are_refused_and_nothing_is_written(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*VOTES, "--classifier", centroids]
    assert main(["certify", *flags, "--shard", "1/2", "--out", "1"]) == 0
    assert main(["certify", *flags, "--shard", "2/2", "--split", "validation", "--out", "2"]) == 0

    assert main(["merge", "1", "2", "--out", "all"]) == 2
    assert "parts must have equal settings, got another votes in 2" in capsys.readouterr().err
    assert main(["merge", "1", "1", "--out", "all"]) == 1
    assert "image 0 has votes in two logs" in capsys.readouterr().err

    assert not Path("all").exists()


def test_what_is_made_of_votes_is_not_continued(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--classifier", centroids, "--out", "run"]) == 0

    assert main(["recertify", "--run", "run", "--out", "run"]) == 2
    assert main(["merge", "run", "--out", "run"]) == 2

    assert capsys.readouterr().err.count("--out must be a new or an empty folder, got run") == 2


def test_votes_for_a_class_that_is_none_are_one_message(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--classifier", centroids, "--out", "run"]) == 0
    log = Path("run/votes.jsonl")
    edited = log.read_text().replace('[[0, 0, 0, {"', '[[0, 0, 0, {"99')  # selection of image 0
    log.write_text(edited)

    assert main(["recertify", "--run", "run", "--out", "again"]) == 2

    assert "votes of image 0 must be for classes 0 ... 9, got 99" in capsys.readouterr().err
