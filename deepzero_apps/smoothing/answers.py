"""What a classifier is asked and what it answers, checked at one door.

Number of rows, number of scores, dtype and finiteness are checked, and an exception of the
black box is wrapped, so that a broken answer is never counted as a vote for a class.

A remote service may fail for some images and answer the others. A classifier that declares
``may_lose = True`` says so by label -1 (`NO_VOTE`), or by a row of scores that are all NaN. Such
an image has been asked and has no class: its vote counts among all votes and for none of the
classes. That is sound, because a failure can then only lower the share of every class. From
a classifier that does not declare it, the same answer is an error.
"""

__all__ = [
    "NO_VOTE",
    "Classifier",
    "ClassifierError",
    "check_images",
    "checked",
    "labels_of",
    "loses_votes",
]

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from deepzero_apps.zeroth_order.oracle import BudgetExhausted

NO_VOTE = -1
"""The label of an image that was asked and has no usable answer: a vote for no class."""


class ClassifierError(Exception):
    """A classifier raised, or its answer cannot be used."""


class Classifier(Protocol):
    """A batched function from images to scores or labels.

    Images are ``(n, channel, height, width)``, float32, nominally in [0, 1]. The answer is
    scores ``(n, classes)``, float, higher for likelier and to be read as logits, or labels
    ``(n,)``, int64, in 0 ... classes - 1. One that also has an attribute ``may_lose`` that is
    true may answer label -1, or scores that are all NaN, for an image that it lost.
    """

    @property
    def classes(self) -> int:
        """The number of classes."""

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex of what identifies it, the same between runs."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Answers a batch."""


def labels_of(answer: Tensor) -> Tensor:
    """Reads the labels of an answer: the place of the highest score, or the labels as they are.

    A row of scores that are all NaN is a lost vote and has label -1.

    Args:
        answer: Scores ``(n, classes)`` or labels ``(n,)``.

    Returns:
        Labels of shape ``(n,)``, int64; -1 for no vote.

    Example:
        >>> labels_of(torch.tensor([[0.1, 2.0, -1.0], [3.0, 0.0, 0.0], [torch.nan] * 3]))
        tensor([ 1,  0, -1])
    """
    if answer.ndim == 1:
        return answer
    return answer.argmax(dim=1).masked_fill(answer.isnan().all(dim=1), NO_VOTE)


def loses_votes(classifier: Classifier) -> bool:
    """Says whether a classifier declares that it may answer label -1 or rows of NaN.

    Args:
        classifier: The black box, with or without an attribute ``may_lose``.

    Returns:
        The attribute; False where there is none.
    """
    return bool(getattr(classifier, "may_lose", False))


def checked(
    function: Callable[[Tensor], object],
    images: Tensor,
    *,
    classes: int,
    name: str,
    may_lose: bool = False,
) -> Tensor:
    """Calls a black box on a batch; every image and every answer passes here.

    Args:
        function: The black box.
        images: Images of shape ``(n, channel, height, width)``, floating, n at least 1.
        classes: The number of classes it should know.
        name: What to call it in messages.
        may_lose: Whether label -1 and rows that are all NaN are answers.

    Returns:
        Scores ``(n, classes)`` or int64 labels ``(n,)``, on the images' device, without a
        gradient. Scores are finite, or all NaN in a row that was lost.

    Raises:
        TypeError: If ``images`` is no tensor.
        ValueError: If ``images`` is no such batch.
        ClassifierError: If the black box raises or its answer cannot be used.
        BudgetExhausted: If it meters its queries and refuses more: no fault of its own.
    """
    check_images(images)
    shape = tuple(images.shape)
    try:
        with torch.no_grad():
            answer = function(images.detach())
    except (ClassifierError, BudgetExhausted):
        raise
    except Exception as error:
        raise ClassifierError(
            f"classifier {name} raised {type(error).__name__} on images of shape {shape}: {error}"
        ) from error
    if not isinstance(answer, Tensor):
        fault: str | None = f"the answer must be a tensor, got {type(answer).__name__}"
    else:
        fault = _fault(answer, len(images), classes, may_lose=may_lose)
        if fault is None:
            answer = answer.detach().to(images.device)
            return answer if answer.is_floating_point() else answer.long()
    raise ClassifierError(f"classifier {name}, asked for images of shape {shape}: {fault}")


def check_images(images: Tensor) -> None:
    """Refuses what is no batch of images.

    Args:
        images: To be floating, of shape ``(n, channel, height, width)``, n at least 1.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is another shape or dtype, or holds no image.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor, got {type(images).__name__}")
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise ValueError(
            "images must be floating, of shape (n, channel, height, width) with n at least 1, "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )


def _fault(answer: Tensor, rows: int, classes: int, *, may_lose: bool) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if tuple(answer.shape) == (rows, classes):
        return _score_fault(answer, may_lose=may_lose)
    if tuple(answer.shape) == (rows,):
        return _label_fault(answer, classes, lowest=NO_VOTE if may_lose else 0)
    return (
        f"the answer must be scores of shape {(rows, classes)} or labels of shape {(rows,)}, "
        f"got shape {tuple(answer.shape)}"
    )


def _score_fault(scores: Tensor, *, may_lose: bool) -> str | None:
    if not scores.is_floating_point():
        return f"scores must be floating, got {scores.dtype}"
    finite = scores.isfinite()
    if bool(finite.all()):
        return None
    broken = ~finite.all(dim=1)
    if may_lose:
        broken &= ~scores.isnan().all(dim=1)
        if not bool(broken.any()):
            return None
    row = int(broken.nonzero()[0])
    kind = "NaN" if bool(scores[row].isnan().any()) else "infinite"
    return (
        f"scores must be finite, got {kind} scores, first in row {row}; "
        "clip probabilities before taking their logarithm"
    )


def _label_fault(labels: Tensor, classes: int, *, lowest: int) -> str | None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        return f"labels must be integers, got {labels.dtype}"
    low, high = (int(end) for end in labels.aminmax())
    if low < lowest or high >= classes:
        return f"labels must be in {lowest} ... {classes - 1}, got {low} ... {high}"
    return None
