"""Certificates made again from votes on disk, at other settings, where that is sound; nothing is asked.

What a log of votes allows depends on whether the votes decided how many there are:

================ =================== ===============================================================
votes drawn by   certificates by     allowed
================ =================== ===============================================================
``fixed``        ``fixed``           another alpha; the number of votes was set beforehand
``adaptive``     ``adaptive``        another alpha; the number follows from other votes alone
any              ``anytime``         another alpha: the bound holds at whatever number, however chosen
``decide``       ``decide``          another alpha, other radii: one bound serves all radii at once
``decide``,      ``fixed``,          refused: votes that were looked at decided how many there are,
``anytime``      ``adaptive``        and Clopper-Pearson does not allow looks
================ =================== ===============================================================

Refused for all: another sigma, seed, noise, n0, and more votes than there are. Whoever tries many
alphas and reports the most pleasant one has chosen after the fact; each alone is sound.
"""

__all__ = ["merge", "recertify", "refuse_strangers"]

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepzero_apps.smoothing.ballots import Candidate
from deepzero_apps.smoothing.bounds import Settings, lower_bound
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.rules import Bound, Estimation, rule_of
from deepzero_apps.smoothing.sequences import lower_bound_anytime
from deepzero_apps.smoothing.vote_log import Entry, VoteLog, VoteLogError, Votes, read_votes


def recertify(votes: Votes, settings: Settings) -> list[Certificate]:
    """Makes certificates of votes at other settings.

    Args:
        votes: The votes.
        settings: The settings wanted.

    Returns:
        A certificate for each image whose votes suffice, by index. ``stop`` is ``complete`` for
        a fixed number of votes, else ``limit``: no more votes are to be had.

    Raises:
        ValueError: If the votes cannot tell what is wanted, or not soundly.
    """
    _refuse_unsound(votes.settings, settings)
    return [
        certificate
        for _, entries in sorted(_by_image(votes.entries).items())
        if (certificate := _certificate(votes, settings, entries)) is not None
    ]


def merge(parts: Sequence[Votes], folder: Path | str) -> Votes:
    """Joins the logs of several workers, each with images of its own.

    Args:
        parts: The votes, at least one, of equal settings and of one classifier.
        folder: Where the joint log goes; must hold none.

    Returns:
        The joint votes.

    Raises:
        VoteLogError: If settings, classifier or images contradict each other, an image has votes
            in two logs, or the folder holds a log.
    """
    if not parts:
        raise VoteLogError("parts must hold at least one log, got none")
    head = parts[0]
    refuse_strangers(parts)
    with VoteLog(folder, head.settings, head.source) as log:
        if log.votes.entries or log.votes.images:
            raise VoteLogError(f"{log.path} holds votes already; choose another folder")
        for part in parts:
            for _, pictured in sorted(part.images.items()):
                log.picture(pictured)
            log.ask(part.spent)
            for entry in part.entries:
                log.append([entry], spent=entry.rows)
            watching = part.spent - part.unanswered - sum(entry.rows for entry in part.entries)
            log.append([], spent=watching)
        path = log.path
    return read_votes(path)


def _refuse_unsound(drawn: Settings, wanted: Settings) -> None:
    for name in ("sigma", "seed", "noise", "n0", "n"):
        has, asked = getattr(drawn, name), getattr(wanted, name)
        if has != asked:
            raise ValueError(
                f"{name} must be that of the votes, {has}, got {asked}: it needs other votes"
            )
    if wanted.procedure in ("anytime", drawn.procedure):
        return
    allowed = " or ".join(dict.fromkeys((drawn.procedure, "anytime")))
    looks = (
        ": votes that were looked at decided how many there are, and Clopper-Pearson does not allow "
        "looks"
    )
    raise ValueError(
        f"procedure must be {allowed} for votes drawn by {drawn.procedure}, got "
        f"{wanted.procedure}" + looks * (drawn.is_sequential and not wanted.is_sequential)
    )


def refuse_strangers(parts: Sequence[Votes]) -> None:
    """Refuses logs that cannot be joined; see `merge`.

    Args:
        parts: The votes, at least one.

    Raises:
        VoteLogError: If settings or classifier contradict each other, or an image has votes twice.
    """
    seen: set[int] = set()
    expected = _identity(parts[0])
    for part in parts:
        for name, has in _identity(part).items():
            if has != expected[name]:
                raise VoteLogError(
                    f"logs must have one {name}, got {expected[name]!r} in the first and {has!r} "
                    "in another"
                )
        twice = seen & _by_image(part.entries).keys()
        if twice:
            raise VoteLogError(f"image {min(twice)} has votes in two logs; merge each image once")
        seen |= _by_image(part.entries).keys()


def _identity(votes: Votes) -> dict[str, object]:
    return {**asdict(votes.settings), "classifier": votes.source.classifier}


def _by_image(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.index].append(entry)
    return found


class _Offline:
    """The rule of votes that are there already: looks at whatever there is.

    Args:
        drawn: The settings by which the votes were drawn.
        wanted: The settings of the certificates.
    """

    def __init__(self, drawn: Settings, wanted: Settings) -> None:
        self._rule = rule_of(drawn)
        self._wanted = wanted

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins with one image."""
        if self._wanted.is_sequential:
            return _AtAnyTime(self._wanted)
        return _AtTheEnd(self._rule.start(selection).more(), self._wanted)


class _AtTheEnd:
    """Clopper and Pearson's bound, once all votes are in."""

    def __init__(self, complete: int, settings: Settings) -> None:
        self._complete, self._settings = complete, settings
        self._votes = self._n = 0

    def more(self) -> int:
        return self._complete - self._n

    def look(self, votes: int, n: int) -> None:
        self._votes, self._n = votes, n

    def result(self) -> Bound:
        if self._n < self._complete:
            return Bound(0.0, 0, 0, "budget")
        if self._complete == 0:
            return Bound(0.0, 0, 0, "futile")
        p_lower = lower_bound(self._votes, self._n, self._settings.alpha)
        return Bound(p_lower, self._votes, self._n, "complete")


class _AtAnyTime:
    """The largest bound of a confidence sequence over all looks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._best = Bound(0.0, 0, 0, "limit")
        self._n = 0

    def more(self) -> int:
        return self._settings.n - self._n

    def look(self, votes: int, n: int) -> None:
        self._n = n
        p_lower = lower_bound_anytime(votes, n, self._settings.alpha)
        if p_lower > self._best.p_lower:
            self._best = Bound(p_lower, votes, n, "limit")

    def result(self) -> Bound:
        return self._best


def _certificate(votes: Votes, settings: Settings, entries: Sequence[Entry]) -> Certificate | None:
    """The certificate of one image; None where its votes do not suffice."""
    index = entries[0].index
    if index not in votes.images:
        raise ValueError(f"votes must be of images in the log, got some of image {index}")
    rule = _Offline(votes.settings, settings)
    candidate = Candidate(votes.images[index], votes.source.classes, settings, rule)
    for entry in entries:
        candidate.add(entry)
        if candidate.is_open:
            candidate.look()
    if not candidate.is_open:
        return None
    certificate = candidate.certificate(votes.source)
    return None if certificate.stop == "budget" else certificate
