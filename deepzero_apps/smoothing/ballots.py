"""One image on its way to a certificate: selection votes, then estimation votes as a rule asks."""

__all__ = ["ESTIMATION", "SELECTION", "Candidate"]

import numpy as np

from deepzero_apps.smoothing.bounds import Settings, radius, round_down
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate, Source
from deepzero_apps.smoothing.rules import Estimation, Rule
from deepzero_apps.smoothing.vote_log import Entry, Pictured

SELECTION, ESTIMATION = range(2)


class Candidate:
    """The ballot of one image.

    Args:
        pictured: The image's place, class and fingerprint.
        classes: The number of classes.
        settings: The settings.
        rule: Says how many estimation votes are drawn and what they allow to say.
    """

    def __init__(self, pictured: Pictured, classes: int, settings: Settings, rule: Rule) -> None:
        self.pictured = pictured
        self.index = pictured.index
        self.phase, self.seen, self.wanted = SELECTION, 0, settings.n0
        self._settings, self._rule = settings, rule
        self._counts = np.zeros(classes, dtype=np.int64)  # of the phase at work
        self._selection: tuple[int, ...] = ()
        self._selected = 0
        self._estimation: Estimation | None = None
        self._looked = 0  # estimation votes at the last look
        self._lost = 0
        self._seconds = 0.0

    @property
    def is_open(self) -> bool:
        """Whether an anytime rule could say something about it now."""
        return self._estimation is not None

    def add(self, entry: Entry) -> None:
        """Takes votes, and looks at them after as many as it wished for.

        Raises:
            ValueError: If they are not the next ones of its phase.
        """
        if (entry.phase, entry.start) != (self.phase, self.seen) or entry.rows > self.wanted:
            raise ValueError(
                f"votes of image {self.index} must be at most {self.wanted} of phase {self.phase} "
                f"from {self.seen} on, got {entry.rows} of phase {entry.phase} from {entry.start}"
            )
        if max(entry.counts, default=0) >= len(self._counts):
            raise ValueError(
                f"votes of image {self.index} must be for classes 0 ... {len(self._counts) - 1}, "
                f"got {max(entry.counts)}"
            )
        for label, votes in entry.counts.items():
            self._counts[label] += votes
        self.seen += entry.rows
        self.wanted -= entry.rows
        self._lost += entry.lost
        self._seconds += entry.seconds
        if self.wanted == 0:
            self.look()

    def look(self) -> None:
        """Looks at the votes so far: selects, or lets the rule say how many more it needs."""
        if self._estimation is None:
            self._selection = tuple(self._counts.tolist())
            self._selected = int(self._counts.argmax())
            self._estimation = self._rule.start(self._counts)
            self._counts = np.zeros_like(self._counts)
            self.phase, self.seen = ESTIMATION, 0
        elif self.seen > self._looked:
            self._estimation.look(int(self._counts[self._selected]), self.seen)
            self._looked = self.seen
        self.wanted = self._estimation.more()

    def certificate(self, source: Source) -> Certificate:
        """Says what the votes so far certify.

        Raises:
            ValueError: If the class is not selected yet.
        """
        if self._estimation is None:
            raise ValueError(f"image {self.index} must have its selection votes first")
        bound = self._estimation.result()
        predicted = self._selected if bound.p_lower > 0.5 else ABSTAIN
        return Certificate(
            index=self.index,
            label=self.pictured.label,
            predicted=predicted,
            radius=round_down(radius(bound.p_lower, self._settings.sigma)),
            correct=predicted == self.pictured.label,
            seconds=self._seconds,
            selected=self._selected,
            selection_counts=self._selection,
            votes=bound.votes,
            other_votes=bound.n - bound.votes,
            asked=self._settings.n0 + self.seen,
            lost=self._lost,
            p_lower=bound.p_lower,
            stop=bound.stop,
            image=self.pictured.image,
            settings=self._settings,
            source=source,
        )
