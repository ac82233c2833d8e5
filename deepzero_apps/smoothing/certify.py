r"""Certificates of l2 robustness by randomized smoothing.

The smoothed classifier :math:`g(x) = \arg\max_c P(f(x + \sigma\epsilon) = c)`,
:math:`\epsilon \sim \mathcal{N}(0, I)`, is constant within the ball of radius

.. math::
    R = \sigma \Phi^{-1}(p)                                                     \tag{1}

around :math:`x` if its class has probability at least :math:`p > 1/2`. CERTIFY chooses the
class by :math:`n_0` votes and bounds its probability by :math:`n` *other* votes, :math:`k`
of them for that class. By the fixed procedure, with the one-sided limit of Clopper and Pearson

.. math::
    \underline{p} = B^{-1}(\alpha; k, n - k + 1)                                \tag{2}

(the :math:`\alpha` quantile of a beta distribution; 0 at :math:`k = 0`). It abstains at
:math:`\underline{p} \le 1/2`. An image gets a wrong certificate with probability at most
:math:`\alpha`, for any classifier that answers each image by itself. With all votes for one class
:math:`\underline{p} = \alpha^{1/n}`: no certificate can exceed
:math:`\sigma \Phi^{-1}(\alpha^{1/n})`. Radii are rounded down to four decimals. Cost:
:math:`n_0 + n` queries an image. The other procedures (``rules``) draw fewer: they stop as soon as
the radii asked for are decided, or whenever the budget ends, with a bound that allows it.

A query that a service did not answer is a vote for no class: it counts against the selected one.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Alg. 1
    | https://arxiv.org/abs/1902.02918
"""

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Settings",
    "Source",
    "average_certified_radius",
    "bootstrap_interval",
    "certified_accuracy",
    "certify",
    "correct_radii",
    "largest_radius",
    "lower_bound",
    "population_bound",
    "predict",
    "radius",
    "round_down",
    "source_of",
]

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

import deepzero_apps
from deepzero_apps.smoothing.answers import Classifier, check_images
from deepzero_apps.smoothing.ballots import Candidate
from deepzero_apps.smoothing.bounds import (
    Settings,
    lower_bound,
    radius,
    round_down,
)
from deepzero_apps.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    Source,
    average_certified_radius,
    bootstrap_interval,
    certified_accuracy,
    correct_radii,
    population_bound,
)
from deepzero_apps.smoothing.fingerprint import fingerprint
from deepzero_apps.smoothing.procedures import largest_radius
from deepzero_apps.smoothing.rules import rule_of
from deepzero_apps.smoothing.vote_log import Ledger, Pictured, VoteLog, VoteLogError
from deepzero_apps.smoothing.votes import Count, Polling, poll
from deepzero_apps.zeroth_order.oracle import Meter

_PREDICTION = 2


def certify(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    indices: Sequence[int] | None = None,
    rows: int = 1024,
    device: torch.device | str = "cpu",
    meter: Meter | None = None,
    log: VoteLog | None = None,
) -> Iterator[Certificate]:
    """Certifies images: CERTIFY of Cohen et al., or with fewer votes.

    What comes out for an image depends on the image, its place, the settings and the type
    of device, not on ``rows``, ``indices``, workers or the other images, as far as the classifier's
    own answers do not, and no budget ends it. With a budget it also depends on ``rows``, and on
    whether workers ask, but not on how many.

    Args:
        classifier: The black box; deterministic, on ``device``. One that workers hold, a `Spread`,
            has several calls under way at a time.
        images: Images of shape ``(n, channel, height, width)``, floating, in [0, 1].
        labels: True classes of shape ``(n,)``, integer.
        settings: The settings.
        indices: Places of the images to certify; all by default.
        rows: Rows a call of the classifier, at least 1.
        device: Where noise is drawn and votes are counted.
        meter: Counts the queries; its budget is hard, to the query. With a log it must be a
            `Ledger` of it, and one without budget is made by default. When it is spent, the
            procedures ``decide`` and ``anytime`` give a certificate for every image that they
            have begun, the others for those that are complete.
        log: An open log of votes: those in it are not asked again, new ones are written
            before they count.

    Returns:
        An iterator of certificates in the order in which they are complete. Work is done as it
        is read; a certificate comes out with the call that completes its votes.

    Raises:
        TypeError: If ``images`` or ``labels`` is no tensor.
        ValueError: If images, labels, indices, ``rows`` or ``meter`` are not as stated.
        ClassifierError: From the iterator, if the classifier raises or its answer cannot
            be used.
        VoteLogError: From the iterator, if votes cannot be written, or those in the log are of
            other images.
    """
    places = _places(images, indices, rows)
    _check_labels(labels, len(images), classifier.classes)
    polling = Polling(
        classifier,
        images,
        settings,
        rows=rows,
        device=torch.device(device),
        meter=_meter(meter, log),
        log=log,
        together=settings.is_sequential and meter is not None and meter.budget is not None,
    )
    return _certificates(polling, labels, places)


def _meter(meter: Meter | None, log: VoteLog | None) -> Meter:
    if log is None:
        return Meter() if meter is None else meter
    if meter is not None and not isinstance(meter, Ledger):
        raise ValueError("meter must be a Ledger of the log where there is one, got a plain meter")
    return Ledger(log) if meter is None else meter


def source_of(classifier: Classifier, device: torch.device | str = "cpu") -> Source:
    """Tells what certificates of a classifier will carry about where they come from.

    Args:
        classifier: The black box.
        device: Where noise is drawn.
    """
    return Source(
        classifier=classifier.fingerprint,
        classes=classifier.classes,
        dtype="float32",
        device=torch.device(device).type,
        package_version=deepzero_apps.__version__,
        torch_version=str(torch.__version__),
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
    other than that of the smoothed classifier has probability at most alpha. Votes without an
    answer count for the second.

    Args:
        classifier: The black box; deterministic, on ``device``.
        images: Images of shape ``(n, channel, height, width)``, floating, in [0, 1].
        settings: The settings; of them ``n``, ``sigma``, ``alpha``, ``seed`` and ``noise``.
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
    polling = Polling(classifier, images, settings, rows=rows, device=torch.device(device))
    counts = [
        Count(place, _PREDICTION, settings.n, np.zeros(classifier.classes, dtype=np.int64))
        for place in _places(images, indices, rows)
    ]
    for _ in poll(polling, counts):
        pass
    leaders = [_leader(count.counts, count.lost, settings.alpha) for count in counts]
    return torch.tensor(leaders, dtype=torch.int64)


def _leader(counts: np.ndarray, lost: int, alpha: float) -> int:
    first, second = np.argsort(-counts, kind="stable")[:2]
    trials = int(counts[first] + counts[second]) + lost
    p_value = binomtest(int(counts[first]), trials, 0.5, alternative="greater").pvalue
    return int(first) if 2 * p_value <= alpha else ABSTAIN


def _certificates(
    polling: Polling, labels: Tensor, places: Sequence[int]
) -> Iterator[Certificate]:
    source = source_of(polling.classifier, polling.device)
    candidates = _candidates(polling, labels, places)
    left = dict(candidates)
    for ballot in poll(polling, candidates.values()):
        yield left.pop(ballot.index).certificate(source)
    if not polling.settings.is_sequential:
        return
    for candidate in left.values():  # the budget has ended
        if candidate.is_open:
            candidate.look()
            yield candidate.certificate(source)


def _candidates(polling: Polling, labels: Tensor, places: Sequence[int]) -> dict[int, Candidate]:
    """A candidate for each place, with the votes that it has in the log."""
    rule = rule_of(polling.settings)
    candidates = {
        place: Candidate(
            Pictured(place, int(labels[place]), fingerprint(polling.images[place].float())),
            polling.classifier.classes,
            polling.settings,
            rule,
        )
        for place in places
    }
    if polling.log is not None:
        for candidate in candidates.values():
            polling.log.picture(candidate.pictured)
        _replay(polling.log, candidates)
    return candidates


def _replay(log: VoteLog, candidates: Mapping[int, Candidate]) -> None:
    for entry in log.votes.entries:
        if entry.index not in candidates:
            continue
        try:
            candidates[entry.index].add(entry)
        except ValueError as error:
            version = log.votes.source.package_version
            raise VoteLogError(
                f"{log.path} does not fit the looks of this version, {deepzero_apps.__version__} "
                f"(it was written by {version}): {error}; make certificates of it by recertify"
            ) from error


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
