"""What is served, and what a request may take of it."""

__all__ = ["Limits", "Subject"]

import math
from dataclasses import dataclass, replace

from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier
from deepzero_apps.smoothing.bounds import Settings

_BYTES_A_PIXEL = 24
"""The longest way a sensible client writes a float64: 17 digits, exponent, comma, blank."""

_BYTES_BESIDE = 64 * 1024
_LARGEST_BODY = 8 * 1024 * 1024
"""Parsing holds Python's lock, .1 s for so much: as long as other requests may have to wait."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A classifier, the images it sees and the votes that are asked of it.

    Args:
        name: What clients call it: letters, digits, dots, dashes, underscores.
        classifier: The black box.
        classes: The names of its classes, in order.
        shape: The shape ``(channel, height, width)`` of an image.
        settings: Of a certificate, where the request says nothing else. Its ``n`` is the most
            votes that a request may choose; its seed is not used.
        n: Votes of a prediction, where the request says nothing else, 1 ... ``settings.n``.
        example: An image of that shape for the page, in [0, 1]; None for none.

    Raises:
        ValueError: If names, classes and numbers do not fit each other, or ``n`` votes could
            not certify anything.
    """

    name: str
    classifier: Classifier
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    settings: Settings
    n: int = 200
    example: Tensor | None = None

    def __post_init__(self) -> None:
        if (
            not self.name
            or not self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        ):
            raise ValueError(
                f"name must be of letters, digits, dots, dashes and underscores, got {self.name!r}"
            )
        if len(self.classes) != self.classifier.classes:
            raise ValueError(
                f"classes must name the {self.classifier.classes} classes of the classifier, "
                f"got {len(self.classes)}"
            )
        if not 1 <= self.n <= self.settings.n:
            raise ValueError(f"n must be in 1 ... {self.settings.n}, got {self.n}")
        replace(self.settings, n=self.n)  # refuses votes that could not certify anything
        if self.example is not None and tuple(self.example.shape) != self.shape:
            raise ValueError(
                f"example must have shape {self.shape}, got {tuple(self.example.shape)}"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What keeps a service small.

    Args:
        images: The most images a request, at least 1.
        body: The most bytes a request's body, at least 1.
        queue: The most requests inside at once, from their first byte of body to their answer,
            at least 1; further ones are refused with 503. Memory is bounded by ``queue`` times
            a small multiple of ``body``.
        timeout: Seconds that a request may take, body included, positive.
        rows: Rows a call of the classifier, at least 1.

    Raises:
        ValueError: If one is out of range.
    """

    images: int = 16
    body: int = 1024 * 1024
    queue: int = 64
    timeout: float = 60.0
    rows: int = 1024

    def __post_init__(self) -> None:
        for name in ("images", "body", "queue", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be positive and finite, got {self.timeout}")

    @staticmethod
    def body_for(images: int, shape: tuple[int, int, int]) -> int:
        """Gives the bytes that so many images take as JSON numbers, at most 8 MiB.

        Args:
            images: How many images a request.
            shape: The shape ``(channel, height, width)`` of each.

        Returns:
            The bytes, with room for what stands beside the numbers.

        Example:
            >>> Limits.body_for(1, (1, 8, 8))  # 64 numbers of 24 bytes, and 64 KiB
            67072
        """
        numbers = images * math.prod(shape) * _BYTES_A_PIXEL
        return min(_BYTES_BESIDE + numbers, _LARGEST_BODY)
