"""The field's plain logs: how they are read, and radii against what their authors state."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepzero_apps.smoothing.verification.field_logs import (
    Claim,
    FieldLog,
    LogError,
    check_radii,
    check_rows,
    read_log,
)
from tests.smoothing.sound_certificates import clopper_pearson, radius_of

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
N, SIGMA = 60, 0.5


def values(alpha: float) -> list[float]:
    """All radii that N votes allow, in full."""
    limits = [0.0] + [clopper_pearson(k, N, alpha) for k in range(1, N + 1)]
    return [radius_of(p, SIGMA) for p in limits]


def log(*radii: str) -> FieldLog:
    rows = "".join(f"{20 * i}\t3\t3\t{r}\t1\t0:00:01\n" for i, r in enumerate(radii))
    return read_log((HEAD + rows).encode(), "log")


def claim(alpha: float = 0.01) -> Claim:
    return Claim(sigma=SIGMA, alpha=alpha, n=N)


def kinds(found: FieldLog, stated: Claim) -> list[str]:
    return [finding.kind for finding in check_radii(found.rows, stated)[0]]


def test_rows_are_read_as_they_stand() -> None:
    first, second = read_log(
        (HEAD + "0\t3\t3\t0.378\t1\t15.4\n20\t7\t-1\t0.0\t0\t1\n").encode(), "l"
    ).rows

    assert (first.line, first.index, first.label, first.predicted) == (2, 0, 3, 3)
    assert (first.radius, first.text, first.correct) == (0.378, "0.378", True)
    assert (second.predicted, second.radius, second.correct) == (-1, 0.0, False)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "0\t3\t3\t0.378\t1\t15.4\n",
        HEAD.replace("\n", "\r\n") + "0\t3\t3\t0.378\t1\t15.4\r\n",
        "\ufeff" + HEAD + "\n0\t3\t3\t0.378\t1\t15.4\n\n",
        "Index,Target,Prediction,Radius,Correct\n0,3,3,0.378,True\n",
        "idx label predict radius\n0 3 3 0.378\n",
        "time\tradius\tpredict\tlabel\tidx\n1\t0.378\t3\t3\t0\n",
        "0\t3\t3\t0.378\t1\t0:00:01\n",
        "0\t3\t3\t0.378",
    ],
)
def test_headers_and_separators_vary(text: str) -> None:
    found = read_log(text.encode(), "log")

    (row,) = found.rows
    assert (row.index, row.label, row.predicted, row.radius) == (0, 3, 3, 0.378)
    assert row.correct in (None, True)
    assert found.findings == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\r\n \n", "is empty"),
        (b"idx\0label", "no text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(1, 256)), "must start with the columns"),
        (b"idx\tlabel\tpredict\tcorrect\ttime\n0\t0\t0\t1\t1\n", "certifies nothing"),
        (b"x" * 10**6, "must start with the columns"),
        (b"a b c d e\n1 2 3 4 5\n", "without idx and label and predict and radius"),
    ],
)
def test_what_is_no_log_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(LogError, match=message) as refused:
        read_log(content, "file")
    assert len(str(refused.value)) < 300


def test_damaged_lines_are_named_and_the_rest_is_read() -> None:
    bad = [
        "x\t3\t3\t0.1\t1\t1",
        "1\t3\t3\t0,1\t1\t1",
        "2\t3\t3",
        "3\t3\t3\t0.1\tmaybe\t1",
        "9" * 9999,
    ]
    text = HEAD + "\n".join(["0\t3\t3\t0.1\t1\t1", *bad, "6\t3\t3\t0.1\t1\t1"]) + "\n7\t3\t3\t0."

    found = read_log(text.encode(), "log")

    assert [row.index for row in found.rows] == [0, 6]
    assert [f.line for f in found.findings] == [3, 4, 5, 6, 7, 9]
    assert [f.kind for f in found.findings] == ["damaged line"] * 5 + ["torn last line"]
    assert all(len(f.text) < 200 for f in found.findings)


@given(st.binary(max_size=200))
def test_garbage_never_crashes(garbage: bytes) -> None:
    try:
        found = read_log(HEAD.encode() + garbage, "log")
    except LogError:
        return
    assert list(check_rows(found.rows)) is not None
    check_radii(found.rows, claim())


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("0\t3\t3\t0.1\t0\t1", "correct flag"),
        ("0\t3\t4\t0.1\t1\t1", "correct flag"),
        ("0\t3\t3\tnan\t1\t1", "radius"),
        ("0\t3\t3\t-0.1\t1\t1", "radius"),
        ("0\t3\t3\tinf\t1\t1", "radius"),
        ("0\t3\t-1\t0.2\t0\t1", "radius"),
        ("0\t3\t-2\t0.0\t0\t1", "class"),
    ],
)
def test_rows_contradict_themselves(row: str, kind: str) -> None:
    (finding,) = check_rows(read_log((HEAD + row + "\n").encode(), "log").rows)

    assert (finding.kind, finding.line) == (kind, 2)


@pytest.mark.parametrize("form", ["{:.3}", "{:.4f}", "{}", "{:.2f}"])
@pytest.mark.parametrize("alpha", [0.01, 0.001])
def test_every_radius_that_votes_allow_passes_in_any_form(form: str, alpha: float) -> None:
    told = [r for r in values(alpha) if r > 0.005]
    found = log(*(form.format(r) for r in told))

    assert set(kinds(found, claim(alpha))) <= {"rounding"}


@pytest.mark.parametrize("alpha", [0.01, 0.001])
def test_rounding_up_is_counted_where_the_digits_prove_it(alpha: float) -> None:
    told = [r for r in values(alpha) if r > 0.005]
    nearest = [f"{r:.4f}" for r in told]
    down = [f"{math.floor(r * 1e4) / 1e4:.4f}" for r in told]
    # A value that rounds up is alone within its last digit here: values are .003 apart.
    up = [r for r, text in zip(told, nearest, strict=True) if float(text) > r]

    (finding,) = check_radii(log(*nearest).rows, claim(alpha))[0]

    assert finding.kind == "rounding"
    assert finding.found.startswith(f"{len(up)} radii")
    assert kinds(log(*down), claim(alpha)) == []


def test_radii_between_the_values_are_named() -> None:
    allowed = np.array(values(0.01))
    draw = np.random.default_rng(0)
    texts = [f"{r:.3f}" for r in draw.uniform(0.01, allowed[-1], 400)]
    # possible if a value lies within half a digit below or a whole one above
    possible = [
        bool(((allowed > float(t) - 0.5e-3) & (allowed < float(t) + 1e-3)).any()) for t in texts
    ]

    found = [f for f in check_radii(log(*texts).rows, claim())[0] if f.kind != "rounding"]

    assert len(found) == possible.count(False) > 100
    assert {f.kind for f in found} == {"radius between values"}


def test_the_largest_radius_may_be_exceeded_by_half_a_digit_alone() -> None:
    limit = radius_of(0.01 ** (1 / N), SIGMA)
    within = math.floor((limit + 0.5e-4) * 1e4) / 1e4

    assert "radius impossible" not in kinds(log(f"{within:.4f}"), claim())
    assert kinds(log(f"{within + 1e-4:.4f}"), claim()) == ["radius impossible"]


def test_a_last_line_without_its_end_is_torn_even_if_its_radius_is_there() -> None:
    (finding,) = read_log((HEAD + "0\t3\t3\t0.1\t1\t1\n1\t3\t3\t0.1\t1").encode(), "l").findings

    assert (finding.kind, finding.line) == ("torn last line", 3)


def test_a_radius_above_all_votes_is_impossible_and_says_which_alpha_would_do() -> None:
    top = values(0.01)[-1]
    texts = [f"{r:.3}" for r in values(0.01) if r > 0.1]

    findings, (remedy,) = check_radii(log(*texts).rows, claim(alpha=0.001))

    impossible = [f for f in findings if f.kind == "radius impossible"]
    limit = radius_of(0.001 ** (1 / N), SIGMA)
    above = [t for t in texts if float(t) - 0.0005 > limit]
    assert len(impossible) == len(above) > 0
    assert f"at most {limit:.6g}" in impossible[0].expected
    # eq. in the module: the radius as printed, less half a digit, with all votes for the class
    p = NormalDist().cdf((float(f"{top:.3}") - 0.0005) / SIGMA)
    assert f"an alpha of at least {p**N:.3g} at n {N}" in remedy.found
    assert f"n of at least {math.ceil(math.log(0.001) / math.log(p))}" in remedy.found
    assert f"alpha 0.01 explains all {len(texts)} radii" in remedy.found


@pytest.mark.parametrize(
    "stated", [{"sigma": 0}, {"sigma": math.nan}, {"alpha": 0}, {"alpha": 1}, {"n": 0}, {"n0": 0}]
)
def test_statements_out_of_range_are_refused(stated: dict[str, float]) -> None:
    with pytest.raises(LogError, match=f"{next(iter(stated))} must be"):
        Claim(**{"sigma": 0.5, "alpha": 0.01, "n": 10, **stated})  # type: ignore[arg-type]
