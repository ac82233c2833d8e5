"""What answers are worth: cross-entropy of scores, errors of labels, nothing known of lost ones."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from deepzero_apps.smoothing.blackbox import CallableClassifier
from deepzero_apps.smoothing.labels import LabelsOnly
from deepzero_apps.smoothing.objectives import expected_errors, loss_head, losses_of, usable
from deepzero_apps.zeroth_order.estimators import randomized

NAN = math.nan
TARGETS = torch.tensor([2, 0, 1])


def test_labels_are_counted_as_errors_and_lost_ones_too() -> None:
    assert losses_of(torch.tensor([2, 1, -1]), TARGETS).tolist() == [0, 1, 1]


def test_lost_scores_count_as_uniform_ones_and_others_as_they_are() -> None:
    scores = torch.tensor([[1.0, 2, 3], [NAN, NAN, NAN], [0, 1, 0]])

    losses = losses_of(scores, TARGETS)

    rows = scores[[0, 2]]
    expected = functional.cross_entropy(rows, TARGETS[[0, 2]], reduction="none")
    torch.testing.assert_close(losses[[0, 2]], expected)
    assert float(losses[1]) == pytest.approx(math.log(3))
    assert scores.isnan().any()  # the caller's scores are left alone


def test_a_row_that_is_nan_in_part_is_not_made_usable() -> None:
    scores = torch.tensor([[1.0, NAN], [NAN, NAN]])
    assert usable(scores).isnan().tolist() == [[False, True], [False, False]]


def test_expected_errors_are_the_mean_of_errors_of_labels_drawn_from_the_scores() -> None:
    # 20,000 draws: standard error at most .5 / sqrt(20,000) = .0035, five of them
    scores = torch.randn(3, 4)
    n = 20_000
    drawn = torch.multinomial(scores.softmax(1), n, replacement=True)

    errors = (drawn != TARGETS[:, None]).double().mean(1)

    torch.testing.assert_close(expected_errors(scores, TARGETS), errors, rtol=0, atol=0.018)


@pytest.mark.parametrize("mu", [0.1, 0.5])
def test_differences_of_errors_are_the_gradient_of_the_smoothed_error(mu: float) -> None:
    # one pixel decides, at .4: P[z + mu u < .4] = Phi((.4 - z) / mu), whose slope in z is
    # -phi((.4 - z) / mu) / mu; the other pixels have none. A term of the estimate is at most
    # |u| / mu, of variance at most 1 / mu^2: standard error 1 / (mu sqrt(q)), five of them
    z, q = torch.full((1, 1, 2, 2), 0.45), 40_000

    def brighter(images: Tensor) -> Tensor:
        return (images[:, 0, 0, 0] > 0.4).long()

    g = randomized(
        loss_head(brighter, torch.tensor([1])),
        z,
        mu=mu,
        q=q,
        batch_dims=1,
        generator=torch.Generator().manual_seed(1),
    )

    t = (0.4 - 0.45) / mu
    slope = -math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) / mu
    expected = torch.tensor([[slope, 0], [0, 0]])
    torch.testing.assert_close(g[0, 0], expected, rtol=0, atol=5 / mu / q**0.5)


def test_labels_only_hands_on_labels_and_the_fingerprint_differs() -> None:
    scores = torch.tensor([[0.0, 1], [3, 2]])
    box = CallableClassifier(lambda x: scores[: len(x)].numpy(), classes=2, name="two")

    only = LabelsOnly(box)

    assert only(torch.zeros(2, 1, 2, 2)).tolist() == [1, 0]
    assert only.classes == 2
    assert only.fingerprint != box.fingerprint
    assert only.fingerprint == LabelsOnly(box).fingerprint
