r"""One certificate, recomputed from the counts that it carries.

Of :math:`n` votes :math:`k` for the class, noise :math:`\sigma` and risk :math:`\alpha` follow the
lower bound, the class and the radius (``bounds``, ``sequences``); nothing that a certificate says
about itself is taken on trust where it can be computed:

.. math::
    \underline{p} = L(k, n, \alpha), \qquad
    R = \lfloor \sigma \Phi^{-1}(\underline{p}) \rfloor_{0.0001}, \qquad
    R \le \lfloor \sigma \Phi^{-1}(L(N, N, \alpha)) \rfloor_{0.0001}               \tag{1}

with the limit of Clopper and Pearson for a number of votes set beforehand, and the confidence
sequence where the votes were looked at.
"""

__all__ = ["check", "check_settings"]

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from deepzero_apps.smoothing.bounds import Procedure, Settings, radius, round_down
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.procedures import largest_radius, probability_bound
from deepzero_apps.smoothing.rules import Stop, rule_of
from deepzero_apps.smoothing.verification.findings import Finding

_STEP = 1e-4
_STOPS: dict[Procedure, tuple[Stop, ...]] = {
    "fixed": ("complete", "budget"),
    "adaptive": ("complete", "budget", "futile"),
    "decide": ("decided", "futile", "limit", "budget"),
    "anytime": ("futile", "limit", "budget"),
}
# Other versions of the special functions differ in their last digits.
_SAME = {"rel_tol": 1e-9, "abs_tol": 1e-12}


def check(certificate: Certificate, drawn: Settings | None = None) -> Iterator[Finding]:
    """Recomputes a certificate.

    Args:
        certificate: The certificate; any values of the right types.
        drawn: What its votes were drawn with, if that is known to be something else.

    Yields:
        A finding for each thing that does not follow; without file and line.
    """
    c = certificate
    if c.stop not in _STOPS[c.settings.procedure]:
        allowed = ", ".join(_STOPS[c.settings.procedure])
        yield _finding(c, "stop", f"{c.stop} by procedure {c.settings.procedure}", allowed)
    yield from _selection(c)
    faults = [*_counts(c, drawn or c.settings), *_asked(c)]
    yield from faults
    p_lower = None if faults else _bound_of(c)
    if p_lower is not None and not math.isclose(c.p_lower, p_lower, **_SAME):
        yield _finding(
            c,
            "lower bound",
            f"p_lower {c.p_lower!r}",
            f"{p_lower!r}, of {c.votes} votes of {c.votes + c.other_votes}",
        )
    if p_lower is None and 0 <= c.p_lower <= 1:
        p_lower = c.p_lower  # the rest can still be compared with what the certificate says
    yield from _radius(c, p_lower)
    if p_lower is not None:
        wanted = c.selected if p_lower > 0.5 else ABSTAIN
        if c.predicted != wanted:
            yield _finding(c, "class", f"predicted {c.predicted}", f"{wanted}, by p_lower")
    if not 0 <= c.seconds < math.inf:
        yield _finding(c, "seconds", f"{c.seconds!r}", "a number of at least 0")
    if c.correct is not (c.predicted == c.label):
        yield _finding(
            c,
            "correct flag",
            f"{c.correct} for label {c.label} and predicted {c.predicted}",
            str(not c.correct),
        )


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Checks that settings can certify what they are to decide.

    Args:
        settings: The settings.

    Yields:
        A finding if a radius is out of reach; without file and line.
    """
    try:
        rule_of(settings)
    except ValueError as error:
        yield Finding(kind="settings", found=str(error))


@lru_cache(maxsize=65_536)
def _bound(votes: int, n: int, settings: Settings) -> float:
    return probability_bound(votes, n, settings)


def _bound_of(c: Certificate) -> float:
    """The bound that the counts allow; 0 where less than that is claimed, which is sound."""
    sequential = c.settings.is_sequential
    if (c.p_lower == 0 and sequential) or (c.stop == "budget" and not sequential):
        return 0.0
    return _bound(c.votes, c.votes + c.other_votes, c.settings)


def _selection(c: Certificate) -> Iterator[Finding]:
    counts = c.selection_counts
    drawn, n0 = sum(counts), c.settings.n0
    if min(counts, default=-1) < 0 or not n0 - max(c.lost, 0) <= drawn <= n0:
        yield _finding(
            c,
            "selection votes",
            f"{drawn} votes by class and {c.lost} lost",
            f"{n0} in all" + (f", of which up to {c.lost} may be lost" if c.lost > 0 else ""),
        )
    if len(counts) != c.source.classes:
        found, expected = f"{len(counts)} classes", f"{c.source.classes}"
        yield _finding(c, "classes", found, expected)
    leader = max(range(len(counts)), key=counts.__getitem__, default=None)
    if c.selected != leader:
        yield _finding(
            c, "selected class", f"class {c.selected}", f"{leader}, by the selection votes"
        )
    if not 0 <= c.label < len(counts):
        yield _finding(c, "label", f"class {c.label}", f"one of {len(counts)} classes")


def _counts(c: Certificate, drawn: Settings) -> Iterator[Finding]:
    n, settings = c.votes + c.other_votes, c.settings
    said = f"{c.votes} votes and {c.other_votes} others"
    if min(c.votes, c.other_votes) < 0:
        yield _finding(c, "votes", said, "counts of at least 0")
        return
    wanted = _number(c, drawn)
    if wanted is None and n > settings.n:
        yield _finding(c, "votes", said, f"at most {settings.n} in all")
    elif wanted is not None and n != wanted:
        yield _finding(c, "votes", said, f"{wanted} in all by procedure {settings.procedure}")


def _number(c: Certificate, drawn: Settings) -> int | None:
    """How many estimation votes there must be; None where a budget or the votes decide."""
    if c.stop == "budget" or c.settings.is_sequential:
        return None
    if c.settings.procedure == "fixed":
        return c.settings.n
    settings = drawn if drawn.procedure == "adaptive" else c.settings
    counts = c.selection_counts
    sound = min(counts, default=-1) >= 0 and sum(counts) <= settings.n0
    if not sound or any(check_settings(settings)):
        return None
    return rule_of(settings).start(np.array(counts)).more()


def _asked(c: Certificate) -> Iterator[Finding]:
    settings = c.settings
    least = settings.n0 + c.votes + c.other_votes
    most = settings.n0 + settings.n
    exact = not settings.is_sequential and c.stop != "budget"
    if (exact and c.asked != least) or not least <= c.asked <= most:
        expected = f"{least}" if exact else f"{least} ... {most}"
        yield _finding(c, "votes asked", str(c.asked), expected)
    lost = c.lost - max(0, settings.n0 - sum(c.selection_counts))
    room = c.other_votes if exact else c.asked - settings.n0 - c.votes
    if c.lost < 0 or lost > room:
        yield _finding(
            c, "lost votes", str(c.lost), "at most the votes that went to no class selected"
        )


def _radius(c: Certificate, p_lower: float | None) -> Iterator[Finding]:
    most = largest_radius(c.settings)
    said = f"radius {c.radius!r}"
    if not 0 <= c.radius < math.inf:
        yield _finding(c, "radius", said, f"0 ... {most}")
        return
    if c.radius > most:
        s = c.settings
        yield _finding(
            c,
            "radius impossible",
            said,
            f"at most {most} at sigma {s.sigma:g}, alpha {s.alpha:g}, n {s.n} by {s.procedure}",
        )
    elif p_lower is not None:
        exact = radius(p_lower, c.settings.sigma)
        down = round_down(exact)
        if c.radius != down:
            near = down <= c.radius <= down + _STEP * (1 + 1e-9) and exact > 0
            kind = "rounding" if near else "radius"
            yield _finding(c, kind, said, f"{down}, {exact:.8f} rounded down to four decimals")


def _finding(c: Certificate, kind: str, found: str, expected: str) -> Finding:
    return Finding(kind=kind, found=found, expected=expected, index=c.index)
