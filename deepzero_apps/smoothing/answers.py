"""What a classifier is asked and what it answers, checked at one door.

Number of rows, number of scores, dtype and finiteness are checked, and an exception of the
black box is wrapped, so that a broken answer is never counted as a vote.
"""

__all__ = ["Classifier", "ClassifierError", "check_images", "checked", "labels_of"]

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from deepzero_apps.zeroth_order.oracle import BudgetExhausted


class ClassifierError(Exception):
    """A classifier raised, or its answer cannot be used."""


class Classifier(Protocol):
    """A batched function from images to scores or labels.

    Images are ``(n, channel, height, width)``, float32, nominally in [0, 1]. The answer is
    scores ``(n, classes)``, float, higher for likelier and to be read as logits, or labels
    ``(n,)``, int64, in 0 ... classes - 1.
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

    Args:
        answer: Scores ``(n, classes)`` or labels ``(n,)``.

    Returns:
        Labels of shape ``(n,)``, int64.

    Example:
        >>> labels_of(torch.tensor([[0.1, 2.0, -1.0], [3.0, 0.0, 0.0]]))
        tensor([1, 0])
    """
    return answer.argmax(dim=1) if answer.ndim == 2 else answer


def checked(
    function: Callable[[Tensor], object], images: Tensor, *, classes: int, name: str
) -> Tensor:
    """Calls a black box on a batch; every image and every answer passes here.

    Args:
        function: The black box.
        images: Images of shape ``(n, channel, height, width)``, floating, n at least 1.
        classes: The number of classes it should know.
        name: What to call it in messages.

    Returns:
        Finite scores ``(n, classes)`` or int64 labels ``(n,)``, on the images' device,
        without a gradient.

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
        fault = _fault(answer, len(images), classes)
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


def _fault(answer: Tensor, rows: int, classes: int) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if tuple(answer.shape) == (rows, classes):
        return _score_fault(answer)
    if tuple(answer.shape) == (rows,):
        return _label_fault(answer, classes)
    return (
        f"the answer must be scores of shape {(rows, classes)} or labels of shape {(rows,)}, "
        f"got shape {tuple(answer.shape)}"
    )


def _score_fault(scores: Tensor) -> str | None:
    if not scores.is_floating_point():
        return f"scores must be floating, got {scores.dtype}"
    finite = scores.isfinite()
    if bool(finite.all()):
        return None
    row = int((~finite).any(1).nonzero()[0])
    kind = "NaN" if bool(scores.isnan().any()) else "infinite"
    return (
        f"scores must be finite, got {kind} scores, first in row {row}; "
        "clip probabilities before taking their logarithm"
    )


def _label_fault(labels: Tensor, classes: int) -> str | None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        return f"labels must be integers, got {labels.dtype}"
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        return f"labels must be in 0 ... {classes - 1}, got {low} ... {high}"
    return None
