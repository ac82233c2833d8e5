r"""Certificates of l2 robustness by randomized smoothing.

The smoothed classifier :math:`g(x) = \arg\max_c P(f(x + \sigma\epsilon) = c)`,
:math:`\epsilon \sim \mathcal{N}(0, I)`, is constant within the ball of radius

.. math::
    R = \sigma \Phi^{-1}(p)                                                     \tag{1}

around :math:`x` if its class has probability at least :math:`p > 1/2`. CERTIFY chooses the
class by :math:`n_0` votes and bounds its probability by :math:`n` *other* votes, :math:`k`
of them for that class, with the one-sided limit of Clopper and Pearson

.. math::
    \underline{p} = B^{-1}(\alpha; k, n - k + 1)                                \tag{2}

(the :math:`\alpha` quantile of a beta distribution; 0 at :math:`k = 0`). It abstains at
:math:`\underline{p} \le 1/2`. A certificate is wrong with probability at most
:math:`\alpha`, for any classifier that answers each image by itself. With all votes for one class
:math:`\underline{p} = \alpha^{1/n}`: no certificate can exceed
:math:`\sigma \Phi^{-1}(\alpha^{1/n})`. Radii are rounded down to four decimals. Cost:
:math:`n_0 + n` queries an image.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Alg. 1
    | https://arxiv.org/abs/1902.02918
"""

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Settings",
    "average_certified_radius",
    "bootstrap_interval",
    "certified_accuracy",
    "certify",
    "correct_radii",
    "largest_radius",
    "lower_bound",
    "predict",
    "radius",
    "round_down",
]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

import deepzero_apps
from deepzero_apps.smoothing.answers import Classifier, check_images
from deepzero_apps.smoothing.bounds import (
    Settings,
    largest_radius,
    lower_bound,
    radius,
    round_down,
)
from deepzero_apps.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    average_certified_radius,
    bootstrap_interval,
    certified_accuracy,
    correct_radii,
)
from deepzero_apps.smoothing.fingerprint import fingerprint
from deepzero_apps.smoothing.votes import Draw, Tally, count_votes

_SELECTION, _ESTIMATION, _PREDICTION = range(3)


def certify(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    indices: Sequence[int] | None = None,
    rows: int = 1024,
    device: torch.device | str = "cpu",
) -> Iterator[Certificate]:
    """Certifies images: CERTIFY of Cohen et al.

    What comes out for an image depends on the image, its place, the settings and the type
    of device, not on ``rows``, ``indices`` or the other images, as far as the classifier's
    own answers do not.

    Args:
        classifier: The black box; deterministic, on ``device``.
        images: Images of shape ``(n, channel, height, width)``, floating, in [0, 1].
        labels: True classes of shape ``(n,)``, integer.
        settings: The settings.
        indices: Places of the images to certify, in this order; all by default.
        rows: Rows a call of the classifier, at least 1.
        device: Where noise is drawn and votes are counted.

    Returns:
        An iterator of certificates in the order of ``indices``. Work is done as it is read;
        a certificate comes out with the call that completes its votes.

    Raises:
        TypeError: If ``images`` or ``labels`` is no tensor.
        ValueError: If images, labels, indices or ``rows`` are not as stated.
        ClassifierError: From the iterator, if the classifier raises or its answer cannot
            be used.
    """
    places = _places(images, indices, rows)
    _check_labels(labels, len(images), classifier.classes)
    return _certificates(
        classifier, images, labels, settings, places=places, rows=rows, device=device
    )


def predict(
    classifier: Classifier,
    images: Tensor,
    settings: Settings,
    *,
    indices: Sequence[int] | None = None,
    rows: int = 1024,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Predicts with the smoothed classifier: PREDICT of Cohen et al.

    Of ``settings.n`` votes the two leading classes get k1 and k2; the leader is returned if
    a two-sided binomial test rejects, at alpha, that both are equally likely. So an answer
    other than that of the smoothed classifier has probability at most alpha.

    Args:
        classifier: The black box; deterministic, on ``device``.
        images: Images of shape ``(n, channel, height, width)``, floating, in [0, 1].
        settings: The settings; ``n0`` is not used.
        indices: Places of the images to predict, in this order; all by default.
        rows: Rows a call of the classifier, at least 1.
        device: Where noise is drawn and votes are counted.

    Returns:
        Classes of shape ``(len(indices),)``, int64; -1 for abstention.

    Raises:
        TypeError: If ``images`` is no tensor.
        ValueError: If images, indices or ``rows`` are not as stated.
        ClassifierError: If the classifier raises or its answer cannot be used.
    """
    draws = [Draw(i, _PREDICTION, settings.n) for i in _places(images, indices, rows)]
    tallies = _tallies(classifier, images, draws, settings, rows=rows, device=device)
    leaders = [_leader(tally.counts, settings.alpha) for tally in tallies]
    return torch.tensor(leaders, dtype=torch.int64)


def _leader(counts: np.ndarray, alpha: float) -> int:
    first, second = np.argsort(-counts, kind="stable")[:2]
    trials = int(counts[first] + counts[second])
    p_value = binomtest(int(counts[first]), trials, 0.5).pvalue
    return int(first) if p_value <= alpha else ABSTAIN


def _certificates(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    places: Sequence[int],
    rows: int,
    device: torch.device | str,
) -> Iterator[Certificate]:
    source: dict[str, Any] = {
        **asdict(settings),
        "classifier": classifier.fingerprint,
        "dtype": "float32",
        "device": torch.device(device).type,
        "package_version": deepzero_apps.__version__,
        "torch_version": str(torch.__version__),
    }
    phases = ((_SELECTION, settings.n0), (_ESTIMATION, settings.n))
    draws = (Draw(place, phase, votes) for place in places for phase, votes in phases)
    tallies = _tallies(classifier, images, draws, settings, rows=rows, device=device)
    for place, selection, estimation in zip(places, tallies, tallies, strict=True):
        yield Certificate(
            index=place,
            label=int(labels[place]),
            image=fingerprint(images[place].float()),
            **_verdict(int(labels[place]), selection, estimation, settings),
            **source,
        )


def _tallies(
    classifier: Classifier,
    images: Tensor,
    draws: Iterable[Draw],
    settings: Settings,
    *,
    rows: int,
    device: torch.device | str,
) -> Iterator[Tally]:
    return count_votes(
        classifier,
        images,
        draws,
        sigma=settings.sigma,
        seed=settings.seed,
        rows=rows,
        device=torch.device(device),
    )


def _verdict(
    label: int, selection: Tally, estimation: Tally, settings: Settings
) -> dict[str, Any]:
    selected = int(selection.counts.argmax())
    votes = int(estimation.counts[selected])
    p_lower = lower_bound(votes, settings.n, settings.alpha)
    predicted = selected if p_lower > 0.5 else ABSTAIN
    return {
        "predicted": predicted,
        "radius": round_down(radius(p_lower, settings.sigma)),
        "correct": predicted == label,
        "seconds": selection.seconds + estimation.seconds,
        "selected": selected,
        "selection_counts": tuple(selection.counts.tolist()),
        "votes": votes,
        "other_votes": settings.n - votes,
        "p_lower": p_lower,
    }


def _places(images: Tensor, indices: Sequence[int] | None, rows: int) -> list[int]:
    """Checks images, indices and rows; gives the indices as a list."""
    check_images(images)
    low, high = (float(end) for end in images.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ValueError(
            f"images must be in [0, 1], got {low:g} ... {high:g}; divide 8-bit images by 255"
        )
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    places = list(range(len(images))) if indices is None else [int(i) for i in indices]
    wrong = [place for place in places if not 0 <= place < len(images)]
    if wrong:
        raise ValueError(f"indices must be in 0 ... {len(images) - 1}, got {wrong[0]}")
    return places


def _check_labels(labels: Tensor, images: int, classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch tensor, got {type(labels).__name__}")
    if tuple(labels.shape) != (images,) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape ({images},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0 ... {classes - 1}, got {low} ... {high}")
