"""One certificate: what holds passes, and each thing that does not is named."""

from dataclasses import replace
from typing import Any

import pytest

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.rules import Adaptive
from deepzero_apps.smoothing.verification.certificate_checks import check, check_settings
from tests.smoothing.sound_certificates import (
    DECIDE,
    SOURCE,
    clopper_pearson,
    radius_of,
    sound,
)

ADAPTIVE = Settings(sigma=0.5, n0=10, n=400, procedure="adaptive", radii=(0.25,))


def kinds(*certificates: Any, drawn: Settings | None = None) -> list[str]:  # noqa: ANN401
    return [finding.kind for c in certificates for finding in check(c, drawn)]


@pytest.mark.parametrize("votes", [1, 50, 66, 67, 95, 99, 100])
@pytest.mark.parametrize("label", [0, 1])
def test_what_holds_passes(votes: int, label: int) -> None:
    assert kinds(sound(4, votes=votes, label=label)) == []


@pytest.mark.parametrize("votes", [60, 80, 100])
def test_a_confidence_sequence_is_recomputed_as_such(votes: int) -> None:
    c = sound(4, votes=votes, settings=DECIDE)
    larger = clopper_pearson(votes, 100, DECIDE.alpha)

    assert kinds(c) == []
    assert "lower bound" in kinds(replace(c, p_lower=larger))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"radius": 0.5}, "radius"),
        ({"radius": -0.1}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"radius": 0.7503}, "radius impossible"),  # 0.5 * 1.5005 with 100 of 100 votes
        ({"radius": float("inf")}, "radius"),
        ({"predicted": -1, "correct": False}, "class"),
        ({"predicted": 2, "correct": False}, "class"),
        ({"correct": False}, "correct flag"),
        ({"p_lower": 0.86}, "lower bound"),
        ({"p_lower": float("nan")}, "lower bound"),
        ({"p_lower": 0.0}, "lower bound"),
        ({"other_votes": 6}, "votes"),
        ({"votes": -5}, "votes"),
        ({"asked": 111}, "votes asked"),
        ({"lost": 6}, "lost votes"),
        ({"lost": -1}, "lost votes"),
        ({"selected": 0}, "selected class"),
        ({"selection_counts": (1, 8, 0)}, "selection votes"),
        ({"selection_counts": (1, 10, 0)}, "selection votes"),
        ({"selection_counts": (-1, 11, 0)}, "selection votes"),
        ({"selection_counts": ()}, "selection votes"),
        ({"selection_counts": (1, 9)}, "classes"),
        ({"label": 3, "correct": False}, "label"),
        ({"seconds": float("nan")}, "seconds"),
    ],
)
def test_each_fault_is_named(change: dict[str, Any], kind: str) -> None:
    assert kind in kinds(replace(sound(0), **change))


def test_rounding_up_is_told_from_a_wrong_radius() -> None:
    c = sound(0)
    exact = radius_of(c.p_lower, 0.5)
    (up,) = check(replace(c, radius=c.radius + 1e-4))
    (unrounded,) = check(replace(c, radius=exact))
    (wrong,) = check(replace(c, radius=c.radius + 2e-4))

    assert [up.kind, unrounded.kind, wrong.kind] == ["rounding", "rounding", "radius"]
    assert up.expected.startswith(f"{c.radius}, {exact:.8f}")


def test_a_smaller_radius_than_the_counts_allow_is_found_too() -> None:
    assert kinds(replace(sound(0), radius=0.1)) == ["radius"]


def test_lost_votes_may_miss_from_both_phases() -> None:
    c = sound(0, selection_counts=(0, 8, 0), lost=5)

    assert kinds(c) == []
    assert kinds(replace(c, lost=1)) == ["selection votes"]


def test_the_number_of_votes_follows_from_the_selection_where_it_must() -> None:
    number = Adaptive(ADAPTIVE).size(9)
    good = sound(0, votes=number, settings=replace(ADAPTIVE, n=number))
    good = replace(good, settings=ADAPTIVE)
    fewer = sound(0, votes=number - 1, settings=replace(ADAPTIVE, n=number - 1))

    assert kinds(good) == []
    assert kinds(replace(fewer, settings=ADAPTIVE)) == ["votes"]
    # made again at another alpha, from votes whose number the first one decided
    again = replace(ADAPTIVE, alpha=0.01)
    p_lower = clopper_pearson(number, number, 0.01)
    other = sound(0, votes=number, settings=replace(again, n=number), p_lower=p_lower)
    assert kinds(replace(other, settings=again), drawn=ADAPTIVE) == []


def test_claiming_nothing_is_sound_where_looks_are_allowed() -> None:
    c = sound(0, settings=DECIDE, votes=60)
    nothing = {"p_lower": 0.0, "predicted": -1, "correct": False, "radius": 0.0}

    assert kinds(replace(c, votes=0, other_votes=0, asked=10, stop="futile", **nothing)) == []


def test_a_radius_out_of_reach_is_a_fault_of_the_settings() -> None:
    (finding,) = check_settings(replace(DECIDE, radii=(0.25, 2.0)))

    assert finding.kind == "settings"
    assert "radii must be at most" in finding.found
    assert list(check_settings(DECIDE)) == []


def test_the_source_s_number_of_classes_is_that_of_the_counts() -> None:
    assert kinds(sound(0, source=replace(SOURCE, classes=4))) == ["classes"]


def test_a_fixed_number_of_votes_that_a_budget_cut_short_certifies_nothing() -> None:
    # 60 of 60 votes look lucky; whoever stops there has looked.
    p_lower = clopper_pearson(60, 60, 0.001)
    lucky = replace(
        sound(7),
        votes=60,
        other_votes=0,
        asked=sound(7).settings.n0 + 60,
        p_lower=p_lower,
        radius=0.6166,
        stop="budget",
    )

    assert "lower bound" in kinds(lucky)


@pytest.mark.parametrize("stop", ["limit", "decided", "futile"])
def test_a_procedure_ends_as_it_can(stop: Any) -> None:  # noqa: ANN401
    assert kinds(replace(sound(7), stop=stop)) == ["stop"]
    assert "stop" in kinds(replace(sound(7, settings=DECIDE, stop="limit"), stop="complete"))
