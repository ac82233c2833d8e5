"""Certificates against the votes that they were made from."""

from dataclasses import replace
from typing import Any

import pytest

from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.verification.vote_checks import against_votes
from deepzero_apps.smoothing.vote_log import Entry, Pictured, Votes
from tests.smoothing.sound_certificates import DECIDE, SETTINGS, SOURCE, entries, sound


def log(*certificates: Certificate) -> Votes:
    return Votes(
        certificates[0].settings,
        SOURCE,
        {c.index: Pictured(c.index, c.label, c.image) for c in certificates},
        [entry for c in certificates for entry in entries(c)],
        spent=sum(c.asked for c in certificates),
    )


def kinds(certificate: Certificate, votes: Votes) -> list[str]:
    return [finding.kind for finding in against_votes([certificate], votes)]


def test_a_certificate_agrees_with_its_own_votes() -> None:
    both = sound(0), sound(7, votes=100)

    assert list(against_votes(both, log(*both))) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"votes": 96, "other_votes": 4}, "votes"),
        ({"votes": 94, "other_votes": 6}, "votes"),
        ({"selection_counts": (2, 8, 0)}, "selection votes"),
        ({"asked": 109}, "votes asked"),
        ({"lost": 1}, "lost votes"),
        ({"image": "f" * 64}, "image changed"),
        ({"label": 2}, "label"),
        ({"index": 9}, "votes missing"),
        ({"settings": replace(SETTINGS, seed=1)}, "votes of other settings"),
        ({"settings": replace(SETTINGS, sigma=0.25)}, "votes of other settings"),
        ({"source": replace(SOURCE, classifier="d" * 64)}, "votes of other settings"),
    ],
)
def test_each_contradiction_is_named(change: dict[str, Any], kind: str) -> None:
    c = sound(0)

    assert kind in kinds(replace(c, **change), log(c))


def test_only_a_sequence_may_report_an_earlier_look() -> None:
    first = {"votes": 47, "other_votes": 0}  # where the first batch of the examples ends

    looked, fixed = sound(0, settings=DECIDE), sound(0)

    assert kinds(replace(looked, **first), log(looked)) == []
    assert kinds(replace(fixed, **first), log(fixed)) == ["votes left out"]
    assert kinds(replace(looked, votes=46, other_votes=0), log(looked)) == ["votes"]


def test_another_alpha_is_no_contradiction() -> None:
    c = sound(0)

    assert kinds(replace(c, settings=replace(SETTINGS, alpha=0.01)), log(c)) == []


def test_votes_that_overlap_are_named() -> None:
    c = sound(0)
    votes = log(c)
    votes.entries.append(Entry(0, 1, 50, {1: 50}))

    assert kinds(c, votes) == ["votes out of order"]
