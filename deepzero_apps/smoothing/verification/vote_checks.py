"""Certificates against the log of the votes that they were made from.

The counts of a certificate must be those of its image in the log: all selection votes, and the
estimation votes up to the look that gave the bound. A look is where a batch in the log ends. By a
procedure that sets the number of votes beforehand that is the end of the log; where every look is
allowed, any.
"""

__all__ = ["against_votes"]

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from deepzero_apps.smoothing.ballots import ESTIMATION, SELECTION
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.verification.findings import Finding
from deepzero_apps.smoothing.vote_log import Entry, Votes

_DRAWN = ("sigma", "n0", "seed", "noise")


def against_votes(certificates: Sequence[Certificate], votes: Votes) -> Iterator[Finding]:
    """Compares certificates with a log of votes.

    Args:
        certificates: The certificates.
        votes: The log.

    Yields:
        A finding for each contradiction; without file and line.
    """
    entries = votes.by_image()
    for c in certificates:
        yield from _origin(c, votes)
        if c.index not in entries:
            yield _finding(c, "votes missing", f"{c.asked} votes", "votes of it in the log")
            continue
        faults = list(_places(c, entries[c.index]))
        yield from faults or _counts(c, entries[c.index])


def _origin(c: Certificate, votes: Votes) -> Iterator[Finding]:
    drawn = {k: v for k, v in asdict(votes.settings).items() if k in _DRAWN}
    ours, theirs = asdict(c.settings), {**drawn, "classifier": votes.source.classifier}
    for name, value in theirs.items():
        has = c.source.classifier if name == "classifier" else ours[name]
        if has != value:
            yield _finding(
                c, "votes of other settings", f"{name} {has!r}", f"{value!r} of the log"
            )
    pictured = votes.images.get(c.index)
    if pictured is None:
        yield _finding(c, "image unknown", f"image {c.image[:12]}", "its fingerprint in the log")
        return
    if pictured.image != c.image:
        yield _finding(c, "image changed", f"image {c.image[:12]}", f"{pictured.image[:12]}")
    if pictured.label != c.label:
        yield _finding(c, "label", f"class {c.label}", f"{pictured.label} of the log")


def _places(c: Certificate, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Votes must follow each other without gap or repetition."""
    seen = {SELECTION: 0, ESTIMATION: 0}
    for entry in entries:
        if entry.start != seen.get(entry.phase) or min(entry.counts.values(), default=0) < 0:
            yield _finding(
                c,
                "votes out of order",
                f"{entry.rows} votes of phase {entry.phase} from {entry.start}",
                f"votes from {seen.get(entry.phase)} on",
            )
            return
        seen[entry.phase] += entry.rows


def _counts(c: Certificate, entries: Sequence[Entry]) -> Iterator[Finding]:
    selection = Counter[int]()
    for entry in entries:
        if entry.phase == SELECTION:
            selection.update(entry.counts)
    if {k: v for k, v in enumerate(c.selection_counts) if v} != _positive(selection):
        yield _finding(
            c, "selection votes", f"{c.selection_counts}", f"{dict(sorted(selection.items()))}"
        )
    n, looks = c.votes + c.other_votes, _looks(c, entries)
    if n not in looks:
        nearest = min(looks, key=lambda look: abs(look - n))
        yield _finding(
            c, "votes", f"a look after {n} votes", f"a look of the log, as at {nearest}"
        )
    elif looks[n] != c.votes:
        yield _finding(c, "votes", f"{c.votes} of {n}", f"{looks[n]} of {n} in the log")
    yield from _totals(c, entries, max(looks))


def _totals(c: Certificate, entries: Sequence[Entry], last: int) -> Iterator[Finding]:
    rows = sum(entry.rows for entry in entries)
    lost = sum(entry.lost for entry in entries)
    if c.asked != rows:
        yield _finding(c, "votes asked", f"{c.asked}", f"{rows} in the log")
    elif c.lost != lost:
        yield _finding(c, "lost votes", f"{c.lost}", f"{lost} in the log")
    set_beforehand = not c.settings.is_sequential and c.stop != "budget"
    if set_beforehand and c.votes + c.other_votes != last:
        yield _finding(
            c,
            "votes left out",
            f"{c.votes + c.other_votes} estimation votes",
            f"all {last} of the log: by procedure {c.settings.procedure} none may be left out",
        )


def _looks(c: Certificate, entries: Sequence[Entry]) -> Mapping[int, int]:
    """Votes for the selected class by the number of estimation votes, wherever a batch ends."""
    n = votes = 0
    looks = {0: 0}
    for entry in entries:
        if entry.phase == ESTIMATION:
            n += entry.rows
            votes += entry.counts.get(c.selected, 0)
            looks[n] = votes
    return looks


def _positive(counts: Mapping[int, int]) -> dict[int, int]:
    return {label: votes for label, votes in counts.items() if votes}


def _finding(c: Certificate, kind: str, found: str, expected: str) -> Finding:
    return Finding(kind=kind, found=found, expected=expected, index=c.index)
