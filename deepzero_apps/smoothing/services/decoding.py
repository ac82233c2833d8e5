"""Answers read out of the body of a response.

Nothing in a response is taken on trust. A body that is no JSON, that has no answers where they
should be, or another number of them than there were images, is `Garbage` as a whole: nobody can
say which answer belongs to which image. Within a sound body each row stands for itself: null, an
empty list, a number that is not finite, too many numbers or a label that is no class lose the
vote of that one image.
"""

__all__ = ["Garbage", "Reader", "Reading"]

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import jmespath
import numpy as np
from jmespath.exceptions import JMESPathError

from deepzero_apps.smoothing.answers import NO_VOTE
from deepzero_apps.smoothing.services.service import Service

_SMALLEST_PROBABILITY = 1e-6
_LONGEST_LABEL = 60
# what jmespath raises, and what its functions let through: of numbers too large, of infinities
_NO_RESULT = (JMESPathError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


class Garbage(Exception):
    """A response that cannot be read as answers to the images sent."""


@dataclass(frozen=True)
class Reading:
    """The answers to one request.

    Args:
        values: Scores ``(n, classes)``, float64, all NaN where lost; or labels ``(n,)``, int64,
            -1 where lost.
        answered: How many rows hold an answer, be it a label that is no class.
        unknown: The labels that are no class, shortened.
    """

    values: np.ndarray
    answered: int = 0
    unknown: tuple[str, ...] = ()


class Reader:
    """Reads responses of one service.

    Args:
        service: The service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers, self._row = jmespath.compile(service.answers), jmespath.compile(service.row)
        self._places = {name: place for place, name in enumerate(service.classes)}
        self._numbers_are_names = any(name.lstrip("-").isdigit() for name in service.classes)
        self._read: Callable[[object], object] = {
            "scores": self._scores,
            "probabilities": self._log_probabilities,
            "label": self._label,
            "top-k": self._best,
        }[service.answer]

    def lost(self, rows: int) -> Reading:
        """Gives the reading of images that have no answer."""
        if self._service.scores:
            return Reading(np.full((rows, len(self._places)), np.nan))
        return Reading(np.full(rows, NO_VOTE, dtype=np.int64))

    def __call__(self, content: bytes, rows: int) -> Reading:
        """Reads a response.

        Args:
            content: The body.
            rows: The number of images that it should answer.

        Returns:
            The answers.

        Raises:
            Garbage: If it is no such response.
        """
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError):
            raise Garbage("a body that is no JSON") from None
        items = self._tensor(parsed) if self._service.protocol != "json" else self._list(parsed)
        if len(items) != rows:
            raise Garbage(f"{len(items)} answers to {rows} images")

        values, answered, unknown = self.lost(rows).values, 0, []
        for place, item in enumerate(items):
            value = self._read(item)
            if isinstance(value, str):
                unknown.append(value[:_LONGEST_LABEL])
            elif value is not None:
                values[place] = value
            answered += value is not None
        return Reading(values, answered, tuple(unknown))

    def _list(self, parsed: object) -> list[object]:
        found = _search(self._answers, parsed)
        items = [found] if self._service.one_image else found
        if not isinstance(items, list):
            raise Garbage(f"no list at {self._service.answers!r}")
        return [_search(self._row, item) for item in items]

    def _tensor(self, parsed: object) -> list[object]:
        """The rows of an output tensor, whose data may be flat or nested."""
        outputs = parsed.get("outputs") if isinstance(parsed, dict) else None
        tensors = [t for t in outputs if isinstance(t, dict)] if isinstance(outputs, list) else []
        name = self._service.output
        found = [t for t in tensors if name is None or t.get("name") == name][:1]
        if not found:
            raise Garbage("no output tensor" + ("" if name is None else f" {name!r}"))
        shape, data = _shape(found[0].get("shape")), found[0].get("data")
        if shape is None or not isinstance(data, list):
            raise Garbage("an output tensor without shape or data")
        flat = _flattened(data)
        width = math.prod(shape[1:])
        if len(flat) != math.prod(shape):
            raise Garbage("an output tensor whose data do not fit its shape")
        if self._service.scores:
            return [flat[start : start + width] for start in range(0, len(flat), width or 1)]
        if width != 1:
            raise Garbage("an output tensor with more than one label an image")
        return flat

    def _scores(self, item: object) -> list[float] | None:
        if isinstance(item, dict):
            item = [item.get(name) for name in self._service.classes]
        if not isinstance(item, list) or len(item) != len(self._places):
            return None
        numbers = [_number(value) for value in item]
        return None if any(math.isnan(number) for number in numbers) else numbers

    def _log_probabilities(self, item: object) -> np.ndarray | None:
        numbers = self._scores(item)
        if numbers is None or not all(-1e-6 <= number <= 1 + 1e-6 for number in numbers):
            return None
        logarithms: np.ndarray = np.log(np.clip(numbers, _SMALLEST_PROBABILITY, None))
        return logarithms

    def _label(self, item: object) -> int | str | None:
        """The place of a label; the label itself where it is no class; None for nothing."""
        if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
            return None
        if isinstance(item, str) or self._numbers_are_names:
            return self._places.get(_text(item), _text(item))
        return item if 0 <= item < len(self._places) else _text(item)

    def _best(self, item: object) -> int | str | None:
        if not isinstance(item, list) or not all(isinstance(entry, dict) for entry in item):
            return None
        scores = [_number(entry.get(self._service.score)) for entry in item]
        if not scores or any(math.isnan(score) for score in scores):
            return None
        return self._label(item[scores.index(max(scores))].get(self._service.label))


def _search(path: jmespath.parser.ParsedResult, value: object) -> object:
    try:
        return path.search(value)
    except _NO_RESULT:
        return None


def _shape(value: object) -> list[int] | None:
    lengths = (
        [length for length in value if type(length) is int] if isinstance(value, list) else []
    )
    sound = isinstance(value, list) and len(lengths) == len(value) > 0
    return lengths if sound and min(lengths) >= 0 else None


def _flattened(data: list[object]) -> list[object]:
    while any(isinstance(value, list) for value in data):
        data = [
            inner for value in data for inner in (value if isinstance(value, list) else [value])
        ]
    return data


def _number(value: object) -> float:
    """A finite number as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _text(label: str | int) -> str:
    try:
        return str(label)
    except ValueError:  # an integer of thousands of digits
        return "a very long number"
