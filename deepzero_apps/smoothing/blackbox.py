r"""Classifiers that can be asked and not differentiated.

A black box is a batched function :math:`f`: images of shape ``(n, channel, height, width)``
to scores ``(n, classes)``, read as logits, or to labels ``(n,)``. Three adapters make one of
a torch module, a scikit-learn estimator or any callable (files are in ``runtimes``, services in
``services``), and `Defended` puts a denoiser :math:`D` in front:

.. math::
    f_D(x) = f(\mathrm{clip}_{[0, 1]}(D(x)))                                    \tag{1}

Whatever the kind, images and answers pass one door, `ask`. It refuses what is no batch of
images, turns an exception of the black box into a `ClassifierError`, and checks number of
rows, number of scores, dtype and finiteness, so that a broken answer is never counted as a
vote. The answer carries no gradient.

References:
    | Denoised Smoothing: A Provable Defense for Pretrained Classifiers (Salman et al., 2020)
    | https://arxiv.org/abs/2003.01908
"""

__all__ = [
    "CallableClassifier",
    "Classifier",
    "ClassifierError",
    "Defended",
    "SklearnClassifier",
    "TorchClassifier",
    "ask",
    "charge_retries",
    "labels_of",
]

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.adapters import Adapter, Wrapper, ask, charge_retries, class_count
from deepzero_apps.smoothing.answers import (
    Classifier,
    ClassifierError,
    check_images,
    labels_of,
)
from deepzero_apps.smoothing.fingerprint import fingerprint

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

_SMALLEST_PROBABILITY = 1e-6
_ROWS_WORTH_A_THREAD = 128


class TorchClassifier(Adapter):
    """A torch module as a black box: evaluation mode, no gradient.

    Each call switches the module to evaluation mode and puts every flag back. Images are
    cast to the dtype of the module's first floating parameter; the module must already be
    on the device of the images. The fingerprint covers the module's printed structure,
    parameters and buffers as they are when it is read.

    Args:
        module: The network, images to scores ``(n, classes)``.
        classes: The number of classes, at least 2.

    Raises:
        TypeError: If ``module`` is no module.
        ValueError: If ``classes`` is below 2.
    """

    def __init__(self, module: nn.Module, *, classes: int) -> None:
        self.module = _module(module, "module")
        self.classes = class_count(classes)
        self.name = type(module).__name__

    @property
    def fingerprint(self) -> str:
        """A sha256 over structure, parameters and buffers."""
        return fingerprint("torch", self.module, self.classes)

    def _answer(self, images: Tensor) -> Tensor:
        return _evaluate(self.module, images)


class SklearnClassifier(Adapter):
    """A fitted scikit-learn classifier as a black box; sees images as flat float64 rows.

    A pipeline is a classifier: noise is added to the raw pixels, before its scaler.

    Scores are the logarithm of ``predict_proba``, clipped at 1e-6, where the estimator has
    it, else its ``decision_function`` (of a binary one, minus and plus half of it). For some
    estimators, an SVC among them, the highest score and ``predict`` differ on a few images:
    ask for ``answer="labels"`` where ``predict`` is what is deployed. The fingerprint covers
    class, hyperparameters and fitted attributes, except times, ``n_jobs`` and ``verbose``.

    Args:
        estimator: The fitted estimator. Labels are places in its ``classes_``.
        answer: ``"scores"`` or ``"labels"``.
        threads: Threads that share a large batch, at least 1. Worth having where the
            estimator releases Python's lock, as an SVC does.

    Raises:
        TypeError: If ``estimator`` is no fitted classifier of one output.
        ValueError: If ``answer`` or ``threads`` is out of range, or it cannot give scores.
    """

    def __init__(
        self,
        estimator: "BaseEstimator",
        *,
        answer: Literal["scores", "labels"] = "scores",
        threads: int = 1,
    ) -> None:
        if answer not in ("scores", "labels"):
            raise ValueError(f"answer must be 'scores' or 'labels', got {answer!r}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.name = type(estimator).__name__
        places = getattr(estimator, "classes_", None)
        if not isinstance(places, np.ndarray) or places.ndim != 1:
            raise TypeError(
                f"estimator must be a fitted classifier of one output, got {self.name} without "
                "classes_; call its fit first"
            )
        self.estimator, self.threads = estimator, threads
        self.classes = class_count(len(places))
        self.answer = answer
        self._places = places
        self._method = _method(estimator, answer)

    @property
    def fingerprint(self) -> str:
        """A sha256 over class, hyperparameters, fitted attributes and the kind of answer."""
        return fingerprint("sklearn", self.estimator, self._method)

    def become_one_of(self, copies: int, *, threads: int) -> None:  # noqa: ARG002 - no service
        """Answers with so many threads."""
        self.threads = threads

    def _answer(self, images: Tensor) -> Tensor:
        rows = images.to("cpu", torch.float64).flatten(1).numpy()
        parts = max(1, min(self.threads, len(rows) // _ROWS_WORTH_A_THREAD))
        if parts == 1:
            return torch.from_numpy(self._predict(rows))
        with ThreadPoolExecutor(parts) as pool:
            answers = list(pool.map(self._predict, np.array_split(rows, parts)))
        return torch.from_numpy(np.concatenate(answers))

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        answer: np.ndarray = np.asarray(getattr(self.estimator, self._method)(rows))
        if self._method == "predict":
            # classes_ is sorted, as scikit-learn's convention has it
            return np.searchsorted(self._places, answer).astype(np.int64)
        if self._method == "predict_proba":
            answer = np.log(np.clip(answer, _SMALLEST_PROBABILITY, None))
            return answer
        return np.stack((-answer / 2, answer / 2), 1) if answer.ndim == 1 else answer


class CallableClassifier(Adapter):
    """Any function as a black box: numpy images in, scores or labels out.

    Args:
        function: Gets a fresh float32 array ``(n, channel, height, width)``; returns an
            array or tensor of float scores ``(n, classes)`` or integer labels ``(n,)``.
        classes: The number of classes, at least 2.
        name: What identifies it, in messages and as fingerprint. Give another name, such as
            one with a version, when the function changes.

    Raises:
        TypeError: If ``function`` cannot be called.
        ValueError: If ``classes`` is below 2 or ``name`` is empty.
    """

    def __init__(
        self, function: Callable[[np.ndarray], np.ndarray | Tensor], *, classes: int, name: str
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        if not name:
            raise ValueError("name must not be empty: it identifies the function")
        self.function = function
        self.classes = class_count(classes)
        self.name = name

    @property
    def fingerprint(self) -> str:
        """A sha256 over the name and the number of classes."""
        return fingerprint("callable", self.name, self.classes)

    def _answer(self, images: Tensor) -> Tensor:
        answer = self.function(images.to("cpu", torch.float32, copy=True).numpy())
        return answer if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))


class Defended(Wrapper):
    """A classifier behind a denoiser, eq. (1), itself a classifier.

    Args:
        denoiser: Images to images of the same shape, used in evaluation mode and without a
            gradient; ``nn.Identity()`` gives the classifier of clipped images.
        classifier: The black box behind it.

    Raises:
        TypeError: If ``denoiser`` is no module.
    """

    def __init__(self, denoiser: nn.Module, classifier: Classifier) -> None:
        self.denoiser = _module(denoiser, "denoiser")
        super().__init__(classifier, name=type(denoiser).__name__)

    @property
    def fingerprint(self) -> str:
        """A sha256 over both fingerprints."""
        return fingerprint("defended", self.denoiser, self.classifier.fingerprint)

    def _changed(self, images: Tensor) -> Tensor:
        return self.denoise(images)

    def denoise(self, images: Tensor) -> Tensor:
        """Gives the images that the classifier behind sees, clipped to [0, 1].

        Args:
            images: Images of shape ``(n, channel, height, width)``, floating.

        Returns:
            Images of the same shape and dtype.

        Raises:
            ValueError: If ``images`` is no such batch, or the denoiser changes the shape.
        """
        check_images(images)
        denoised = _evaluate(self.denoiser, images).to(images.dtype)
        if denoised.shape != images.shape:
            raise ValueError(
                f"denoiser must keep the images' shape {tuple(images.shape)}, "
                f"got {tuple(denoised.shape)}"
            )
        return denoised.clamp(0, 1)


@torch.no_grad()
def _evaluate(module: nn.Module, images: Tensor) -> Tensor:
    # A copy, because a module that starts with an in-place operation would change its input.
    parameters = (p.dtype for p in module.parameters() if p.is_floating_point())
    with _evaluating(module):
        output: Tensor = module(images.to(next(parameters, images.dtype), copy=True))
    return output


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True


def _module(module: nn.Module, argument: str) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{argument} must be a torch module, got {type(module).__name__}")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise ValueError(
                f"{argument} must answer each image by itself, got batch norm {name!r} without "
                "running statistics, which mixes the images of a batch: no certificate would hold"
            )
    return module


def _method(estimator: "BaseEstimator", answer: str) -> str:
    """The estimator's method that gives the answer asked for."""
    if answer == "labels":
        return "predict"
    for method in ("predict_proba", "decision_function"):
        if hasattr(estimator, method):
            return method
    raise ValueError(
        f"answer must be 'labels' for {type(estimator).__name__}: it has neither predict_proba "
        "nor decision_function"
    )
