"""Certificates and votes that hold, made without the library's own arithmetic, for tests of checks.

The limit of Clopper and Pearson is found as a root of the binomial tail, the bound of the
confidence sequence as a root of its defining integral, the normal quantile by the standard library.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import binom

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate, Source
from deepzero_apps.smoothing.journal import Journal
from deepzero_apps.smoothing.vote_log import Entry, Pictured, VoteLog

SETTINGS = Settings(sigma=0.5, n0=10, n=100)
DECIDE = Settings(sigma=0.5, n0=10, n=100, procedure="decide", radii=(0.25,))
SOURCE = Source(
    classifier="c" * 64,
    classes=3,
    dtype="float32",
    device="cpu",
    package_version="0.1.0",
    torch_version="2.13.0",
)


def clopper_pearson(votes: int, n: int, alpha: float) -> float:
    """The probability at which so many votes or more have probability alpha."""
    return float(brentq(lambda p: binom.sf(votes - 1, n, p) - alpha, 1e-9, 1 - 1e-12, xtol=1e-15))


def anytime(votes: int, n: int, alpha: float) -> float:
    """The probability at which the mixture of likelihood ratios is 1 / alpha."""

    def excess(p: float) -> float:
        mixture = quad(lambda u: ((1 - u) / p + u) ** votes * u ** (n - votes), 0, 1, limit=200)[0]
        return float(mixture * alpha - 1)

    return float(brentq(excess, 0.3, votes / n - 1e-9, xtol=1e-14))


def radius_of(p: float, sigma: float) -> float:
    """The radius of a probability, in full."""
    return sigma * NormalDist().inv_cdf(p) if p > 0.5 else 0.0


def sound(
    index: int, *, votes: int = 95, label: int = 1, settings: Settings = SETTINGS, **other: object
) -> Certificate:
    """A certificate of class 1 that holds, or what ``other`` makes of it."""
    looked = settings.procedure in ("decide", "anytime")
    p_lower = (anytime if looked else clopper_pearson)(votes, settings.n, settings.alpha)
    predicted = 1 if p_lower > 0.5 else -1
    fields: dict[str, Any] = {
        "predicted": predicted,
        "radius": math.floor(1e4 * radius_of(p_lower, settings.sigma)) / 1e4,
        "correct": predicted == label,
        "seconds": 0.25,
        "selected": 1,
        "selection_counts": (1, settings.n0 - 1, 0),
        "votes": votes,
        "other_votes": settings.n - votes,
        "asked": settings.n0 + settings.n,
        "lost": 0,
        "p_lower": p_lower,
        "stop": "limit" if looked else "complete",
        "image": f"{index:064x}",
        "source": SOURCE,
    }
    return Certificate(index=index, label=label, settings=settings, **{**fields, **other})


def write(folder: Path, certificates: Sequence[Certificate], *, votes: bool = True) -> None:
    """Writes a journal, and the log of votes that it could come from."""
    one = certificates[0]
    with Journal(folder, one.settings, classifier=one.source.classifier) as journal:
        for certificate in certificates:
            journal.append(certificate)
    if not votes:
        return
    with VoteLog(folder, one.settings, one.source) as log:
        for c in certificates:
            log.picture(Pictured(c.index, c.label, c.image))
            log.ask(c.asked)
            log.append(entries(c), spent=c.asked)


def entries(c: Certificate) -> list[Entry]:
    """The votes of a certificate: those of the selection, and the others in two batches."""
    half = c.votes // 2
    parts = [
        (0, 0, dict(enumerate(c.selection_counts))),
        (1, 0, {1: half}),
        (1, half, {1: c.votes - half, 2: c.other_votes}),
    ]
    return [
        Entry(c.index, phase, start, {label: votes for label, votes in counts.items() if votes})
        for phase, start, counts in parts
    ]
