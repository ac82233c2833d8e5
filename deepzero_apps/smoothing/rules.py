r"""How many estimation votes an image gets, and what they prove: the procedures of `Settings`.

An image's :math:`n_0` selection votes choose the class. They count for nothing else but *how many*
fresh estimation votes are drawn. Let :math:`p` be the chosen class's probability, :math:`k` its
votes among :math:`n`, a lost query among the votes against it.

=========  ==========================  ===============================  =======================
procedure  estimation votes            bound                            valid
=========  ==========================  ===============================  =======================
fixed      n                           Clopper and Pearson (`bounds`)   after all of them
adaptive   by the selection votes      Clopper and Pearson              after all of them
decide     until radii are decided     confidence sequence              at every moment
anytime    n, unless there is no hope  confidence sequence              at every moment
=========  ==========================  ===============================  =======================

Each bound exceeds :math:`p` with probability at most :math:`\alpha` an image. What an image draws
depends on its own counts alone, so that neither batches nor other images enter. `Rule.start` gives
an `Estimation`, which is told the counts at each look.
"""

__all__ = ["Adaptive", "Anytime", "Bound", "Decide", "Estimation", "Fixed", "Looks", "Rule"]
__all__ += ["Stop", "Whole", "rule_of"]

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from scipy.special import ndtr

from deepzero_apps.smoothing.bounds import Procedure, Settings, lower_bound
from deepzero_apps.smoothing.procedures import largest_radius
from deepzero_apps.smoothing.sequences import lower_bounds_anytime
from deepzero_apps.smoothing.stopping import Table, sizes, table_of

Stop = Literal["complete", "decided", "futile", "limit", "budget"]
"""Why the votes ended: all were drawn that were meant to be (``complete``); every radius was
certified or given up (``decided``); nothing was certified and hope was given up (``futile``); the
settings' n was reached (``limit``); or none of these yet (``budget``)."""

_PRINTED = Decimal("0.0001")
# Above what rounding down takes off, so that a radius just reached is printed as reached.
_ABOVE = 1 + 1e-8


@dataclass(frozen=True)
class Bound:
    """What an image's estimation votes allow to say.

    Attributes:
        p_lower: Lower bound of the class's probability; 0 where there is none.
        votes: Votes for the class at the look that gave it.
        n: Votes in all at that look.
        stop: Why the votes ended.
    """

    p_lower: float
    votes: int
    n: int
    stop: Stop


class Estimation(Protocol):
    """One image's estimation votes."""

    def more(self) -> int:
        """Returns the number of votes to draw until the next look; 0 where it is over."""

    def look(self, votes: int, n: int) -> None:
        """Takes in counts, cumulated: after `more` further votes, or fewer when a budget ends.

        Args:
            votes: Votes for the class.
            n: Votes in all.

        Raises:
            ValueError: If the counts do not continue the last ones, or go past the next look.
        """

    def result(self) -> Bound:
        """Returns what may be said now; valid at every moment, and final where it is over."""


class Rule(Protocol):
    """A procedure with its settings."""

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins the estimation votes of an image.

        Args:
            selection: Its selection votes by class, of shape ``(classes,)``; lost queries are
                not among them.

        Returns:
            The estimation of the class with most selection votes.

        Raises:
            ValueError: If these are no such counts.
        """


class Fixed:
    r"""All of the settings' n votes, then Clopper and Pearson's bound: CERTIFY of Cohen et al.

    Guarantee: the bound exceeds :math:`p` with probability at most :math:`\alpha`; before the last
    vote there is none. Proof: the class is fixed by other votes, so that :math:`k` is binomial with
    :math:`(n, p)`, and the bound exceeds :math:`p` only where
    :math:`P(\mathrm{Bin}(n, p) \ge k) \le \alpha`.

    References:
        | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Sec. 3.2
        | https://arxiv.org/abs/1902.02918

    Args:
        settings: Whose ``n0``, ``n`` and ``alpha`` are meant.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def size(self, selected: int) -> int:  # noqa: ARG002 - as of `Adaptive`
        """Returns the number of estimation votes."""
        return self.settings.n

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins the estimation votes of an image; see `Rule`."""
        return Whole(self.size(_selected(selection, self.settings.n0)), self.settings.alpha)


class Adaptive:
    r"""A number of votes that the selection votes determine, then Clopper and Pearson's bound.

    Guarantee: as of `Fixed`. Proof: given the selection votes, class and number are fixed, and the
    estimation votes are fresh: :math:`k` is binomial with :math:`(N, p)`. So the error is at most
    :math:`\alpha` for each outcome of the selection, and over all of them. (Input-specific sampling
    as published counts the selection votes again. These chose the class for their luck, so that
    :math:`k` is too large, and more than :math:`\alpha` of the certificates can be false.)

    References:
        | Input-Specific Robustness Certification for Randomized Smoothing (Chen et al., 2022)
        | https://arxiv.org/abs/2112.12084

    Args:
        settings: Whose ``sigma``, ``n0``, ``n`` (the most votes), ``alpha`` and ``radii`` are meant.

    Raises:
        ValueError: If a radius is out of reach.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sizes = sizes(_targets(settings), n0=settings.n0, n=settings.n, alpha=settings.alpha)

    def size(self, selected: int) -> int:
        """Returns the number of estimation votes; 0 where the selection leaves no hope.

        Args:
            selected: Selection votes of the class, in 0 ... n0.
        """
        return int(self._sizes[selected])

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins the estimation votes of an image; see `Rule`."""
        return Whole(self.size(_selected(selection, self.settings.n0)), self.settings.alpha)


class Decide:
    r"""Votes until every radius is certified or given up, at most the settings' n.

    Guarantee: the bound of a confidence sequence at its best look exceeds :math:`p` with probability
    at most :math:`\alpha`, whenever the votes end and whatever made them end; for one radius or many.
    Proof: :math:`P(\exists t: L_t > p) \le \alpha` by Ville's inequality (``sequences``), and the
    best look is one of those. A radius :math:`r` is certified falsely only if
    :math:`L_t \ge \Phi(r / \sigma) > p` at some look; that is the same event for all radii, so that
    none of them costs a share of :math:`\alpha`. Giving up certifies nothing (``stopping``).

    References:
        | Estimating means of bounded random variables by betting (Waudby-Smith & Ramdas, 2023)
        | https://arxiv.org/abs/2010.09686

    Args:
        settings: Whose ``sigma``, ``n0``, ``n`` (the most votes), ``alpha`` and ``radii`` are meant.

    Raises:
        ValueError: If a radius is out of reach.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = _table(settings, stop_when_decided=True)

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins the estimation votes of an image; see `Rule`."""
        return _Sequential(self.table, _selected(selection, self.settings.n0), self.settings.alpha)


class Anytime:
    r"""Votes until the settings' n, or a budget, ends; fewer where no class will get more than half.

    Guarantee and proof: as of `Decide`. The longer it goes on, the larger the radius.

    Args:
        settings: Whose ``sigma``, ``n0``, ``n`` (the most votes) and ``alpha`` are meant.

    Raises:
        ValueError: If not even the smallest radius, .0001, is within reach.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = _table(settings, stop_when_decided=False)

    def start(self, selection: np.ndarray) -> Estimation:
        """Begins the estimation votes of an image; see `Rule`."""
        return _Sequential(self.table, _selected(selection, self.settings.n0), self.settings.alpha)


@lru_cache(maxsize=64)
def rule_of(settings: Settings) -> Fixed | Adaptive | Decide | Anytime:
    """Gives the procedure that settings name.

    Args:
        settings: The settings.

    Returns:
        The procedure, the same object for equal settings: what it computes once takes up to two
        tenths of a second.

    Raises:
        ValueError: If a radius is out of reach.
    """
    rules: dict[Procedure, Callable[[Settings], Fixed | Adaptive | Decide | Anytime]] = {
        "fixed": Fixed,
        "adaptive": Adaptive,
        "decide": Decide,
        "anytime": Anytime,
    }
    return rules[settings.procedure](settings)


class _Counted:
    """Counts that grow to the next look. Abstract; the siblings below are final."""

    def __init__(self) -> None:
        self._votes, self._n = 0, 0

    def more(self) -> int:
        raise NotImplementedError

    def look(self, votes: int, n: int) -> None:
        further, drawn = votes - self._votes, n - self._n
        if not 0 <= further <= drawn or not 1 <= drawn <= self.more():
            raise ValueError(
                f"votes and n must continue {self._votes} of {self._n} by at most {self.more()}, "
                f"got {votes} of {n}"
            )
        self._votes, self._n = votes, n


class Whole(_Counted):
    """A number of votes that count once all of them are there, by Clopper and Pearson's bound.

    Args:
        size: The number of votes.
        alpha: Probability that the bound exceeds the truth.
    """

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        self._size, self._alpha = size, alpha

    def more(self) -> int:
        """Returns the number of votes still to be drawn; see `Estimation`."""
        return self._size - self._n

    def result(self) -> Bound:
        """Returns the bound, once all votes are there; see `Estimation`."""
        if self._size == 0:
            return Bound(0.0, 0, 0, "futile")
        if self._n < self._size:
            return Bound(0.0, self._votes, self._n, "budget")
        p_lower = lower_bound(self._votes, self._n, self._alpha)
        return Bound(p_lower, self._votes, self._n, "complete")


class Looks:
    """Counts at the looks so far, and the best bound of a confidence sequence over them.

    Args:
        alpha: Probability that any of the bounds exceeds the truth.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._seen: list[tuple[int, int]] = []

    def add(self, votes: int, n: int) -> None:
        """Takes in cumulated counts: votes for the class, of n in all."""
        self._seen.append((votes, n))

    def best(self, stop: Stop) -> Bound:
        """Returns the largest bound, with the counts of the first look that gave it.

        Args:
            stop: Why the votes ended.
        """
        if not self._seen:
            return Bound(0.0, 0, 0, stop)
        votes, n = np.array(self._seen).T
        bounds = lower_bounds_anytime(votes, n, self._alpha)
        best = int(bounds.argmax())
        return Bound(float(bounds[best]), int(votes[best]), int(n[best]), stop)


class _Sequential(_Counted):
    """Votes by a table, and the best bound of all looks."""

    def __init__(self, table: Table, selected: int, alpha: float) -> None:
        super().__init__()
        self._table, self._looks = table, Looks(alpha)
        self._refuted = np.array(0)
        self._stop: Stop = "budget" if selected >= table.least_selection else "futile"

    def more(self) -> int:
        return 0 if self._stop != "budget" else int(self._next()) - self._n

    def look(self, votes: int, n: int) -> None:
        due = self._next()
        super().look(votes, n)
        self._looks.add(votes, n)
        if n < due:
            return
        look = int(np.searchsorted(self._table.looks, n))
        self._refuted, over = self._table.step(look, np.array(votes), self._refuted)
        if over:
            self._stop = "decided" if self._refuted else "futile"
        elif n == self._table.looks[-1]:
            self._stop = "limit"

    def result(self) -> Bound:
        return self._looks.best(self._stop)

    def _next(self) -> int:
        looks = self._table.looks
        later = int(np.searchsorted(looks, self._n, side="right"))
        return int(looks[min(later, len(looks) - 1)])


def _selected(selection: np.ndarray, n0: int) -> int:
    """Checks selection votes; gives those of the leading class."""
    counts = np.asarray(selection)
    if counts.ndim != 1 or counts.size == 0 or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            "selection must be integer votes of shape (classes,), "
            f"got {counts.dtype} of shape {counts.shape}"
        )
    if counts.min() < 0 or counts.sum() > n0:
        raise ValueError(f"selection must be counts of at most {n0} votes, got {counts.tolist()}")
    return int(counts.max())


def _table(settings: Settings, *, stop_when_decided: bool) -> Table:
    return table_of(
        _targets(settings),
        n0=settings.n0,
        n=settings.n,
        alpha=settings.alpha,
        stop_when_decided=stop_when_decided,
    )


def _targets(settings: Settings) -> list[float]:
    """Probabilities that certify the radii, each rounded up to a radius as it is printed."""
    n, sigma = settings.n, settings.sigma
    wanted = [Decimal(str(r)) for r in settings.radii] or [_PRINTED]
    printed = [float(r.quantize(_PRINTED, rounding=ROUND_CEILING)) for r in wanted]
    reach = largest_radius(settings)
    if printed[-1] > reach:
        raise ValueError(
            f"radii must be at most {reach}, what n = {n} votes for one class can certify by "
            f"procedure {settings.procedure}, got {wanted[-1]}; raise n, alpha or sigma"
        )
    return [float(ndtr(r * _ABOVE / sigma)) for r in printed]
