"""What adapters share: the door, and what stands in front of another classifier.

Whatever the kind of classifier, images and answers pass `ask`, and so `checked`.
"""

__all__ = [
    "Adapter",
    "Wrapper",
    "as_one_of",
    "ask",
    "charge_retries",
    "class_count",
    "largest_call",
    "most_repeats",
]

import sys
from abc import ABC, abstractmethod

from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier, checked, loses_votes
from deepzero_apps.zeroth_order.oracle import Meter


def ask(classifier: Classifier, images: Tensor) -> Tensor:
    """Asks a classifier and checks what it answers.

    Args:
        classifier: The black box, one of this module's adapters or any other.
        images: Images of shape ``(n, channel, height, width)``, floating, n at least 1.

    Returns:
        Scores ``(n, classes)`` or int64 labels ``(n,)``, on the images' device, without a
        gradient. Scores are finite; where the classifier declares ``may_lose``, a lost image
        has label -1 or scores that are all NaN.

    Raises:
        TypeError: If ``images`` is no tensor.
        ValueError: If ``images`` is no floating batch of that shape.
        ClassifierError: If the classifier raises or its answer cannot be used.
        BudgetExhausted: If the classifier meters its queries and refuses more.
    """
    if isinstance(classifier, Adapter):
        return classifier(images)
    name = str(getattr(classifier, "name", type(classifier).__name__))
    return checked(
        classifier,
        images,
        classes=classifier.classes,
        name=name,
        may_lose=loses_votes(classifier),
    )


def charge_retries(classifier: Classifier, meter: Meter | None) -> None:
    """Names the meter that a classifier's repeated queries are charged to.

    Args:
        classifier: The black box. One that is no adapter of this package repeats nothing that
            could be charged, and is left as it is.
        meter: The meter; the caller charges the first query of each image to it. None for none.
    """
    if isinstance(classifier, Adapter):
        classifier.meter = meter


def largest_call(classifier: Classifier) -> int:
    """Gives the most images that are worth asking at once: no limit, but for services.

    Args:
        classifier: The black box.
    """
    return classifier.largest_call if isinstance(classifier, Adapter) else sys.maxsize


def most_repeats(classifier: Classifier) -> int:
    """Gives how often an image may be shown again at most: never, but by services.

    Args:
        classifier: The black box.
    """
    return classifier.repeats if isinstance(classifier, Adapter) else 0


def as_one_of(classifier: Classifier, copies: int, *, threads: int) -> None:
    """Tells a copy of a classifier that it shares a machine, or a service, with others.

    Args:
        classifier: The black box. One that is no adapter of this package is left as it is.
        copies: How many copies there are, this one among them.
        threads: The threads that each may use.
    """
    if isinstance(classifier, Adapter):
        classifier.become_one_of(copies, threads=threads)


class Adapter(ABC):
    """What adapters share: the door. Abstract; those of this package are final.

    Attributes:
        classes: The number of classes.
        name: What to call it in messages.
        may_lose: Whether it may answer label -1, or rows of scores that are all NaN.
        meter: What *repeated* queries are charged to; the caller charges the first of each
            image. None for nothing. Only services repeat queries.
        largest_call: The most images that are worth asking at once. What is asked at once is
            lost at once, when a service is down or the process is killed.
        repeats: How often an image may be repeated at most.
    """

    classes: int
    name: str
    may_lose: bool = False
    meter: Meter | None = None
    largest_call: int = sys.maxsize
    repeats: int = 0

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 in hex of what identifies the classifier, the same between runs."""

    @abstractmethod
    def _answer(self, images: Tensor) -> Tensor:
        """Answers checked images; what it returns or raises is checked by the caller."""

    def become_one_of(self, copies: int, *, threads: int) -> None:  # noqa: B027 - most need nothing
        """Takes its share of threads and of a service's rate; see `as_one_of`."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Answers a batch; see `ask`."""
        return checked(
            self._answer, images, classes=self.classes, name=self.name, may_lose=self.may_lose
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, classes={self.classes})"


class Wrapper(Adapter):
    """An adapter that changes images before it hands them on. Abstract.

    What the classifier behind declares is handed on: its classes, whether it may lose images,
    and the meter that its repeated queries are charged to.

    Args:
        classifier: The black box behind it.
        name: What stands in front, for messages.
    """

    def __init__(self, classifier: Classifier, *, name: str) -> None:
        self.classifier = classifier
        self.classes = classifier.classes
        self.may_lose = loses_votes(classifier)
        self.largest_call = largest_call(classifier)
        self.repeats = most_repeats(classifier)
        behind = getattr(classifier, "name", type(classifier).__name__)
        self.name = f"{behind} behind {name}"

    @property
    def meter(self) -> Meter | None:
        """What repeated queries are charged to; None for nothing, or where none is repeated."""
        return getattr(self.classifier, "meter", None)

    @meter.setter
    def meter(self, meter: Meter | None) -> None:
        charge_retries(self.classifier, meter)

    def become_one_of(self, copies: int, *, threads: int) -> None:
        """Tells the classifier behind."""
        as_one_of(self.classifier, copies, threads=threads)

    @abstractmethod
    def _changed(self, images: Tensor) -> Tensor:
        """What the classifier behind is shown."""

    def _answer(self, images: Tensor) -> Tensor:
        return ask(self.classifier, self._changed(images))


def class_count(classes: int) -> int:
    """Checks a number of classes.

    Args:
        classes: The number, at least 2.

    Returns:
        The same.

    Raises:
        ValueError: If it is below 2.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    return int(classes)
