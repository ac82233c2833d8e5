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

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepzero_apps.smoothing.ballots import Candidate
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate, difference
from deepzero_apps.smoothing.rules import Bound, Estimation, Looks, Rule, Whole, rule_of
from deepzero_apps.smoothing.vote_log import Entry, VoteLog, VoteLogError, Votes, read_votes

_MOST_CLASSES = 1_000_000


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
    if votes.source.classes > _MOST_CLASSES:  # each image takes memory for all of them
        raise ValueError(
            f"votes must be of at most {_MOST_CLASSES:,} classes, got {votes.source.classes:,}"
        )
    rule = _Offline(votes.settings, settings)
    return [
        certificate
        for _, entries in sorted(votes.by_image().items())
        if (certificate := _certificate(votes, settings, entries, rule=rule)) is not None
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
    for part in parts:
        unequal = difference(part.identity, parts[0].identity)
        if unequal:
            name, has, expected = unequal
            raise VoteLogError(
                f"logs must have one {name}, got {expected!r} in the first and {has!r} in another"
            )
        images = {entry.index for entry in part.entries}
        if seen & images:
            twice = min(seen & images)
            raise VoteLogError(f"image {twice} has votes in two logs; merge each image once")
        seen |= images


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
        return Whole(self._rule.start(selection).more(), self._wanted.alpha)


class _AtAnyTime:
    """The largest bound of a confidence sequence over all looks."""

    def __init__(self, settings: Settings) -> None:
        self._most, self._n = settings.n, 0
        self._looks = Looks(settings.alpha)

    def more(self) -> int:
        return self._most - self._n

    def look(self, votes: int, n: int) -> None:
        self._n = n
        self._looks.add(votes, n)

    def result(self) -> Bound:
        return self._looks.best("limit")


def _certificate(
    votes: Votes, settings: Settings, entries: Sequence[Entry], *, rule: Rule
) -> Certificate | None:
    """The certificate of one image; None where its votes do not suffice."""
    index = entries[0].index
    if index not in votes.images:
        raise ValueError(f"votes must be of images in the log, got some of image {index}")
    candidate = Candidate(votes.images[index], votes.source.classes, settings, rule)
    for entry in entries:
        candidate.add(entry)
        if candidate.is_open:
            candidate.look()
    if not candidate.is_open:
        return None
    certificate = candidate.certificate(votes.source)
    return None if certificate.stop == "budget" else certificate
