"""What one request asks of the worker, and where the answer goes."""

__all__ = ["Answer", "Certifying", "Job", "Predicting"]

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A prediction.

    Args:
        label: The class, or -1 for abstention.
        seed: The seed of its noise.
        place: The image's place in the call: the index whose noise it met.
    """

    label: int
    seed: int
    place: int


@dataclass(eq=False, kw_only=True)
class Job(Generic[T]):
    """What one request asks for.

    Args:
        images: Images of shape ``(n, channel, height, width)``, float32, in [0, 1].
        settings: The settings; the seed is set by the worker.
        future: Where the answer goes.
        abandoned: Whether nobody waits for it; may be set from any thread.
    """

    images: Tensor
    settings: Settings
    future: Future[T] = field(default_factory=Future)
    abandoned: bool = False

    @property
    def votes(self) -> int:
        """The most votes that it may take."""
        return len(self.images) * self.settings.n

    def succeed(self, result: T) -> None:
        """Hands the answer over, unless the job was given up in the meantime."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Hands an error over, unless there is an answer already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Predicting(Job[list[Answer]]):
    """A wish for the classes of images."""


@dataclass(eq=False, kw_only=True)
class Certifying(Job[Certificate]):
    """A wish for the certificate of one image.

    Args:
        label: Its true class; None where it is not known.
    """

    label: int | None = None

    @property
    def votes(self) -> int:
        """The most votes that it may take."""
        return self.settings.n0 + self.settings.n
