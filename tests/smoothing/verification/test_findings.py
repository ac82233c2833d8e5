"""Findings as lines, and which images a file covers."""

import random

import pytest

from deepzero_apps.smoothing.verification.findings import Finding, coverage, gaps, repetitions


def test_a_finding_is_one_line_with_its_place() -> None:
    finding = Finding(kind="radius", found="1.5", expected="1.2", file="a.tsv", line=3, index=7)

    assert finding.text == "a.tsv, line 3, image 7: radius: 1.5, expected 1.2"
    assert Finding(kind="note", found="words").text == "file: note: words"


@pytest.mark.parametrize("stride", [1, 2, 20])
def test_exactly_the_rows_taken_out_are_missing(stride: int) -> None:
    draw = random.Random(stride)
    every = range(0, 60 * stride, stride)
    gone = set(draw.sample(every[:-1], 12))
    left = [i for i in every if i not in gone]
    draw.shuffle(left)

    covered = coverage(left)

    missing = {i for a, b, _ in covered.missing for i in range(a, b + 1, covered.stride)}
    assert covered.stride == stride
    assert missing == gone
    assert sum(count for *_, count in covered.missing) == len(gone)


@pytest.mark.parametrize(
    ("indices", "wanted", "missing", "strays"),
    [
        ([1, 4, 7], range(1, 8, 3), (), ()),
        ([1, 7], range(1, 11, 3), ((4, 4, 1), (10, 10, 1)), ()),
        ([0, 1, 2], range(0, 3, 2), (), (1,)),
        ([], range(5), ((0, 4, 5),), ()),
        ([3], range(2), ((0, 1, 2),), (3,)),
    ],
)
def test_what_was_wanted_decides_where_it_is_known(
    indices: list[int],
    wanted: range,
    missing: tuple[tuple[int, int, int], ...],
    strays: tuple[int, ...],
) -> None:
    covered = coverage(indices, wanted=wanted)

    assert (covered.missing, covered.strays) == (missing, strays)
    assert len(list(gaps(covered))) == len(missing) + len(strays)


def test_a_log_cut_short_shows_only_against_the_size_of_the_data() -> None:
    assert coverage(range(0, 100, 20)).missing == ()
    assert coverage(range(0, 100, 20), 100).missing == ()
    assert coverage(range(0, 100, 20), 141).missing == ((100, 140, 3),)


def test_indices_of_any_size_are_no_obstacle() -> None:
    assert coverage([0, 1, 10**40]).missing == ((2, 10**40 - 1, 10**40 - 2),)


def test_repetitions_name_both_lines() -> None:
    (again, negative) = repetitions([(1, 5), (2, 6), (3, 5), (4, -2)])

    assert (again.kind, again.line, again.expected) == ("duplicate", 3, "once, as in line 1")
    assert (negative.kind, negative.line) == ("index", 4)
