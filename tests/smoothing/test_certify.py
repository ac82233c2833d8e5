"""Certificates of classifiers whose smoothed decision is known in closed form."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

from deepzero_apps.smoothing.blackbox import (
    CallableClassifier,
    ClassifierError,
    Defended,
    TorchClassifier,
)
from deepzero_apps.smoothing.bounds import Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.certify import certify, predict


class HalfSpace(nn.Module):
    """Class 1 where w.x > 1, w = (1, 1, 1, 1) / 2: unit length, boundary through mid-gray."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1).sum(1) / 2 - 1
        return torch.stack((-side, side), dim=1)


HALF_SPACE = TorchClassifier(HalfSpace(), classes=2)


def at_distance(distances: Tensor) -> Tensor:
    """Images of 2 x 2 equal pixels at a signed distance from the boundary, in [-1, 1]."""
    return (0.5 + distances / 2).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def network() -> TorchClassifier:
    torch.manual_seed(1)
    return TorchClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), classes=3)


def timeless(certificates: list[Certificate]) -> list[Certificate]:
    return [replace(c, seconds=0.0) for c in certificates]


def test_false_certificates_are_as_rare_as_the_binomial_says() -> None:
    # The true radius is the distance; a certificate is false if the bound exceeds
    # p = Phi(distance / sigma): if the count reaches the least k whose tail is at most alpha.
    m, n, alpha, sigma = 3_000, 100, 0.05, 0.5
    distances = torch.linspace(0.25, 0.9, m)
    labels = torch.ones(m, dtype=torch.int64)
    settings = Settings(sigma=sigma, n0=50, n=n, alpha=alpha)

    found = list(certify(HALF_SPACE, at_distance(distances), labels, settings, rows=10_000))

    p = norm.cdf(distances.numpy() / sigma)
    tails = binom.sf(np.arange(n + 1)[:, None] - 1, n, p)
    expected = np.where(tails <= alpha, tails, 0).max(0)
    false = np.array([c.radius > d for c, d in zip(found, distances.tolist(), strict=True)])
    standard_error = (expected * (1 - expected)).sum() ** 0.5 / m
    assert abs(false.mean() - expected.mean()) < 5 * standard_error
    assert false.mean() < alpha + 5 * (alpha * (1 - alpha) / m) ** 0.5


def test_radii_approach_the_true_distance_from_below() -> None:
    distances = torch.linspace(0.1, 0.6, 30)
    labels = torch.ones(30, dtype=torch.int64)

    gaps = []
    for n in (100, 10_000):
        settings = Settings(sigma=0.5, n0=200, n=n)
        found = certify(HALF_SPACE, at_distance(distances), labels, settings, rows=10_000)
        gaps.append(np.mean([d - c.radius for c, d in zip(found, distances, strict=True)]))

    # The gap falls as 1 / sqrt(n); abstentions and discreteness at n = 100 change it by less
    # than half.
    assert 0 < gaps[1] < gaps[0]
    assert 5 < gaps[0] / gaps[1] < 20


def test_a_certificate_is_the_arithmetic_of_its_counts() -> None:
    settings = Settings(sigma=0.25, n0=30, n=200, alpha=0.01, seed=5)
    labels = torch.tensor([0, 1, 2, 0])

    for c in certify(network(), torch.rand(4, 1, 2, 2), labels, settings):
        p_lower = lower_bound(c.votes, 200, 0.01)
        assert c.votes + c.other_votes == 200
        assert sum(c.selection_counts) == 30
        assert c.selection_counts[c.selected] == max(c.selection_counts)
        assert c.p_lower == p_lower
        assert c.predicted == (c.selected if p_lower > 0.5 else ABSTAIN)
        assert c.radius == round_down(radius(p_lower, 0.25))
        assert c.correct == (c.predicted == c.label == int(labels[c.index]))
        assert (c.sigma, c.n0, c.n, c.alpha, c.seed) == (0.25, 30, 200, 0.01, 5)
        assert (c.dtype, c.device, c.classifier) == ("float32", "cpu", network().fingerprint)


def test_an_image_on_the_boundary_is_abstained_from() -> None:
    # At p = 1/2 the bound exceeds 1/2 with probability at most alpha for either class.
    m, alpha = 1_000, 0.05
    settings = Settings(sigma=0.5, n0=10, n=100, alpha=alpha)
    labels = torch.zeros(m, dtype=torch.int64)

    found = list(certify(HALF_SPACE, at_distance(torch.zeros(m)), labels, settings, rows=10_000))

    abstained = np.array([c.predicted == ABSTAIN for c in found])
    assert 1 - abstained.mean() < alpha + 5 * (alpha * (1 - alpha) / m) ** 0.5
    assert all(c.radius == 0 and not c.correct for c in found if c.predicted == ABSTAIN)


@pytest.mark.parametrize("rows", [7, 1000])
def test_rows_order_and_company_change_nothing(rows: int) -> None:
    images, labels = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    settings = Settings(sigma=0.5, n0=20, n=150)
    whole = timeless(list(certify(network(), images, labels, settings)))

    for places in ([0, 1, 2, 3, 4, 5], [5, 0, 3, 1, 4, 2], [4], []):
        part = certify(network(), images, labels, settings, indices=places, rows=rows)
        assert timeless(list(part)) == [whole[place] for place in places]


def test_every_noisy_copy_is_new_and_of_the_stated_spread() -> None:
    seen: list[np.ndarray] = []

    def function(images: np.ndarray) -> np.ndarray:
        seen.append(images.copy())
        return np.zeros(len(images), dtype=np.int64)

    classifier = CallableClassifier(function, classes=2, name="zero")
    images = torch.full((3, 1, 4, 4), 0.5)
    settings = Settings(sigma=0.3, n0=100, n=300)
    list(certify(classifier, images, torch.zeros(3, dtype=torch.int64), settings))

    noise = np.concatenate(seen).reshape(1200, 16).astype(np.float64) - 0.5
    assert len(np.unique(noise, axis=0)) == 1200
    # a standard deviation from m normal numbers has the standard error sigma / sqrt(2 m)
    assert abs(noise.std() - 0.3) < 5 * 0.3 / (2 * noise.size) ** 0.5


def test_another_seed_gives_other_votes() -> None:
    images, labels = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)
    one, other = (
        [c.votes for c in certify(network(), images, labels, Settings(sigma=1, n=500, seed=seed))]
        for seed in (0, 1)
    )

    assert one != other


def test_an_identity_denoiser_of_a_clipping_classifier_is_the_plain_classifier() -> None:
    class Clipping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return HalfSpace()(x.clamp(0, 1))

    images, labels = torch.rand(5, 1, 2, 2), torch.ones(5, dtype=torch.int64)
    settings = Settings(sigma=0.5, n=200)
    plain = certify(TorchClassifier(Clipping(), classes=2), images, labels, settings)
    defended = certify(Defended(nn.Identity(), HALF_SPACE), images, labels, settings)

    for one, other in zip(plain, defended, strict=True):
        assert (one.votes, one.selection_counts) == (other.votes, other.selection_counts)


def test_predict_answers_far_from_the_boundary_and_abstains_on_it() -> None:
    # On the boundary the two-sided test rejects with probability at most alpha.
    m, alpha = 1_000, 0.05
    settings = Settings(sigma=0.5, n=100, alpha=alpha)
    far = predict(HALF_SPACE, at_distance(torch.tensor([-0.9, 0.9, 0.9])), settings)
    near = predict(HALF_SPACE, at_distance(torch.zeros(m)), settings, rows=10_000)

    assert far.tolist() == [0, 1, 1]
    assert (near != ABSTAIN).double().mean() < alpha + 5 * (alpha * (1 - alpha) / m) ** 0.5


def test_predict_of_nothing_is_empty() -> None:
    answer = predict(network(), torch.rand(2, 1, 2, 2), Settings(sigma=1.0), indices=[])

    assert answer.tolist() == []
    assert answer.dtype == torch.int64


def test_nothing_is_changed_and_nothing_global_is_drawn() -> None:
    images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    before, state = images.clone(), torch.get_rng_state()

    list(certify(HALF_SPACE, images, labels, Settings(sigma=1)))

    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.full((len(x), 3), np.nan), r"box.*finite, got NaN"),
        (lambda x: np.zeros((len(x), 4)), r"box.*got shape \(64, 4\)"),
        (lambda x: x[10**6], r"box raised IndexError on images of shape \(64, 1, 2, 2\)"),
    ],
)
def test_a_broken_classifier_ends_certification_by_name(
    answer: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    classifier = CallableClassifier(answer, classes=3, name="box")
    certificates = certify(
        classifier, torch.rand(1, 1, 2, 2), torch.tensor([0]), Settings(sigma=1.0), rows=64
    )

    with pytest.raises(ClassifierError, match=message):
        next(certificates)


GOOD = {"images": torch.zeros(2, 1, 2, 2), "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"images": torch.zeros(2, 4)}, ValueError, r"images must be floating.*\(2, 4\)"),
        ({"images": 255 * torch.ones(2, 1, 2, 2)}, ValueError, r"in \[0, 1\], got 255.*by 255"),
        ({"images": -torch.ones(2, 1, 2, 2)}, ValueError, r"in \[0, 1\], got -1 ... -1"),
        ({"images": torch.full((2, 1, 2, 2), torch.nan)}, ValueError, r"\[0, 1\], got nan"),
        ({"labels": torch.tensor([0])}, ValueError, r"integers of shape \(2,\), got .*\(1,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, ValueError, r"labels must be integers"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"labels must be in 0 ... 2, got 0 ... 3"),
        ({"labels": [0, 1]}, TypeError, r"labels must be a torch tensor, got list"),
        ({"indices": [2]}, ValueError, r"indices must be in 0 ... 1, got 2"),
        ({"indices": [0, -1]}, ValueError, r"indices must be in 0 ... 1, got -1"),
        ({"rows": 0}, ValueError, r"rows must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_before_any_query(
    bad: dict[str, object], error: type[Exception], message: str
) -> None:
    def function(images: np.ndarray) -> np.ndarray:
        raise AssertionError(f"asked for {len(images)} rows")

    classifier = CallableClassifier(function, classes=3, name="never asked")
    with pytest.raises(error, match=message):
        certify(classifier, settings=Settings(sigma=1.0), **{**GOOD, **bad})  # type: ignore[arg-type]
