"""Picks the classifier that is defended: built in, or the user's own.

The built-in ones are fitted to the training split at hand, from the seed alone, so that a later
command meets the same one (its fingerprint proves it). One of the user's own is an object in a
module, a model in a file, or a service that a file describes.
"""

__all__ = ["BlackBox", "black_box"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.cli.imported import SERVICES, importing, named
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.adapters import Adapter, Wrapper
from deepzero_apps.smoothing.answers import NO_VOTE
from deepzero_apps.smoothing.blackbox import (
    CallableClassifier,
    Classifier,
    ClassifierError,
    SklearnClassifier,
    TorchClassifier,
    ask,
    labels_of,
)
from deepzero_apps.smoothing.quantized import Quantized
from deepzero_apps.vision import Images, Splits, adjustable_cnn, load_weights, normalized, resnet
from deepzero_apps.zeroth_order.gradients import FirstOrder
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation, Training, minibatch

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

_EXPORTED = (".pt2", ".pt", ".ts")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BlackBox:
    """A classifier that can be asked, and its network where there is one.

    Attributes:
        classifier: What is asked.
        white_box: The same as a differentiable network, for ``fo-ds`` alone; None if it has no
            gradients. Of a quantized classifier the network behind the rounding.
        scores: Whether it answers scores; labels otherwise.
        asked: Queries that finding this out took.
    """

    classifier: Classifier
    white_box: nn.Module | None
    scores: bool = True
    asked: int = 0


def black_box(
    name: str,
    splits: Splits,
    *,
    weights: Path | None,
    seed: int,
    device: str,
    bits: int | None = None,
) -> BlackBox:
    """Builds, imports or opens a classifier.

    Args:
        name: ``svc`` or ``forest`` (scikit-learn), ``cnn`` (a small network), ``resnetN``
            (needs weights), or one of your own: ``service.yaml`` or ``.json`` for a service
            behind HTTP, ``model.onnx``, ``model.pt2``, ``.pt`` or ``.ts`` for a program exported by
            torch, and ``module:object`` for a torch module, a fitted scikit-learn estimator, one of
            the library's adapters, or a function of a float32 array ``(n, c, h, w)`` to scores or
            labels. One of your own is shown one image first, outside of any budget, so that
            what cannot answer is refused before any work.
        splits: The data; built-in classifiers are fitted to ``splits.train``.
        weights: A safetensors file for ``cnn`` and ``resnetN``.
        seed: The seed of the fit.
        device: Where networks run.
        bits: Bits of a pixel that the classifier is shown, from 1 to 16; None for no rounding.

    Returns:
        The black box.

    Raises:
        Misuse: If the name is none of these, or its weights, import or file fail.
        ValueError: If ``bits`` is out of range, or a file is no such model.
    """
    kind = Path(name).suffix.lower()
    if ":" in name or kind in (*SERVICES, *_EXPORTED, ".onnx"):
        found = _own(name, splits.train.classes, device=device)
        box = _quantized(found, bits)
        return _probed(box, splits.train.pixels(slice(0, 1)).to(device))
    if name in ("svc", "forest"):
        svc = SklearnClassifier(_fitted(name, splits.train, seed), threads=2)
        return _quantized(BlackBox(svc, None), bits)
    network = _network(name, splits, weights=weights, seed=seed).to(device)
    network.eval().requires_grad_(False)
    classifier = TorchClassifier(network, classes=len(splits.train.classes))
    return _quantized(BlackBox(classifier, network), bits)


def _quantized(box: BlackBox, bits: int | None) -> BlackBox:
    if bits is None:
        return box
    return replace(box, classifier=Quantized(box.classifier, bits=bits))


def _fitted(name: str, train: Images, seed: int) -> "BaseEstimator":
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    estimator = {
        "svc": lambda: CalibratedClassifierCV(SVC(C=10, gamma=0.05), ensemble=False),
        "forest": lambda: RandomForestClassifier(100, random_state=seed),
    }[name]()
    estimator.fit(train.pixels().flatten(1).double().numpy(), train.labels.numpy())
    return estimator


def _network(name: str, splits: Splits, *, weights: Path | None, seed: int) -> nn.Module:
    channels, classes = splits.train.shape[0], len(splits.train.classes)
    if name == "cnn":
        generator = generator_for(seed, "classifier")
        network = adjustable_cnn(
            2, width=32, channels=channels, classes=classes, generator=generator
        )
        if weights is None:
            return _trained(network, splits.train, seed)
        load_weights(network, weights)
        return network
    if not (name.startswith("resnet") and name.removeprefix("resnet").isdigit()):
        raise Misuse(
            "--classifier must be svc, forest, cnn, resnet20/32/44/56/110, module:object, "
            f"service.yaml, model.onnx or model.pt2, got {name}"
        )
    if weights is None:
        raise Misuse(f"--weights must name a safetensors file for --classifier {name}, got none")
    network = resnet(int(name.removeprefix("resnet")), classes=classes, channels=channels)
    load_weights(network, weights)
    if channels != 3:
        return network
    return normalized(network, _IMAGENET_MEAN, _IMAGENET_STD)


def _trained(network: nn.Module, train: Images, seed: int, *, epochs: int = 30) -> nn.Module:
    """Fits by backpropagation: Adam 1e-3, batches of 64."""
    pixels = train.pixels()

    def gradient(step: int) -> Observation:
        rows = minibatch(step, samples=len(train), size=min(64, len(train)), seed=seed)

        def head(outputs: Tensor) -> Tensor:
            return functional.cross_entropy(outputs[0], train.labels[rows], reduction="none")[None]

        return FirstOrder()(network, pixels[rows], head, step=step)

    run = Training(network, torch.optim.Adam(network.parameters(), 1e-3), gradient, seed=seed)
    for _ in run.run(epochs * max(1, len(train) // 64)):
        pass
    return network


def _own(name: str, classes: Sequence[str], *, device: str) -> BlackBox:
    kind = Path(name).suffix.lower()
    try:
        if kind in SERVICES:
            return BlackBox(_service(name, classes), None)
        if kind in (*_EXPORTED, ".onnx"):
            return BlackBox(_file(name, len(classes), device), None)
    except (ImportError, ValueError, ClassifierError) as error:
        raise Misuse(f"--classifier {name}: {error}") from error
    if name.startswith(("http://", "https://")):
        raise Misuse(
            f"--classifier must name a file that describes the service, got the address {name}; "
            "write it to service.yaml as `url:`, with `classes:`"
        )
    return _imported(name, len(classes), device)


def _service(name: str, classes: Sequence[str]) -> Classifier:
    """Opens a service; its classes take the order of the data's, where they are the same."""
    from deepzero_apps.smoothing.services import HttpClassifier, Service

    service = Service.read(name)
    shared = set(service.classes) & set(classes)
    if shared == set(classes) == set(service.classes):
        return HttpClassifier(service, order=classes)
    if shared:
        raise ValueError(
            f"classes must be those of the data, {', '.join(classes)}, or in their order with "
            f"names that all differ from them, got {', '.join(service.classes)}"
        )
    return HttpClassifier(service)


def _file(name: str, classes: int, device: str) -> Classifier:
    from deepzero_apps.smoothing.runtimes import ExportedClassifier, OnnxClassifier

    if Path(name).suffix.lower() == ".onnx":
        return OnnxClassifier(name, classes=classes)
    return ExportedClassifier(name, classes=classes, device=device)


def _imported(name: str, classes: int, device: str) -> BlackBox:
    with importing("--classifier", "module:object", name):
        found = named(name)
    if isinstance(found, nn.Module):
        found = found.to(device).eval().requires_grad_(False)
        return BlackBox(TorchClassifier(found, classes=classes), found)
    if _is_estimator(found):
        return BlackBox(SklearnClassifier(found, threads=2), None)
    if isinstance(found, Adapter):
        return BlackBox(found, None)
    if not callable(found) or isinstance(found, type):
        kind = "a class" if isinstance(found, type) else type(found).__name__
        raise Misuse(f"--classifier must name a function, a network or an estimator, got {kind}")
    return BlackBox(CallableClassifier(found, classes=classes, name=name), None)


def _probed(box: BlackBox, image: Tensor) -> BlackBox:
    try:
        answer = ask(box.classifier, image)
    except ClassifierError as error:
        raise Misuse(f"--classifier: {error}") from error
    if bool((labels_of(answer) == NO_VOTE).any()):
        raise Misuse(
            f"--classifier must answer a first image, got no usable answer from {box.classifier}; "
            "check its url, classes, answer, answers and row, and what it logs"
        )
    return replace(box, scores=answer.ndim == 2, asked=_sent(box.classifier))


def _sent(classifier: Classifier) -> int:
    """How many images a classifier was shown by one question: a service repeats what fails."""
    while isinstance(classifier, Wrapper):
        classifier = classifier.classifier
    return int(getattr(classifier, "sent", 1))


def _is_estimator(value: object) -> bool:
    from sklearn.base import BaseEstimator

    return isinstance(value, BaseEstimator)
