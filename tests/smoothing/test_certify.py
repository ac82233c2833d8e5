"""Certificates of classifiers whose smoothed decision is known in closed form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from deepzero_apps.smoothing.bounds import (
    Procedure,
    Settings,
    lower_bound,
    radius,
    round_down,
)
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.certify import certify, predict, source_of
from deepzero_apps.smoothing.sequences import lower_bound_anytime
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, read_votes
from deepzero_apps.zeroth_order.oracle import Meter


class HalfSpace(nn.Module):
    """Class 1 where w.x > 1, w = (1, 1, 1, 1) / 2: unit length, boundary through mid-gray."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1).sum(1) / 2 - 1
        return torch.stack((-side, side), dim=1)


HALF_SPACE = TorchClassifier(HalfSpace(), classes=2)


class Losing:
    """Class 1 where the first pixel is above one half, no answer where the second is above a."""

    classes, fingerprint, name, may_lose = 2, "f0", "losing", True

    def __init__(self, a: float = float("inf"), meter: Meter | None = None) -> None:
        self.a, self.meter, self.lost = a, meter, 0

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        lost = pixels[:, 1] > self.a
        self.lost += int(lost.sum())
        if self.meter is not None:
            self.meter.charge(2 * int(lost.sum()))  # retries, which no retry helped
        return (pixels[:, 0] > 0.5).long().masked_fill(lost, -1)


class Scripted:
    """Answers given labels, one after another."""

    classes, fingerprint, name, may_lose = 3, "f1", "scripted", True

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __call__(self, images: Tensor) -> Tensor:
        answer, self.labels = self.labels[: len(images)], self.labels[len(images) :]
        return torch.tensor(answer)


def settings_of(procedure: Procedure, **other: object) -> Settings:
    radii = (0.1, 0.25) if procedure in ("decide", "adaptive") else ()
    fields = {"sigma": 0.5, "n0": 20, "n": 320, "radii": radii, **other}
    return Settings(procedure=procedure, **fields)  # type: ignore[arg-type]


procedures = pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide", "anytime"])


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
        assert (c.settings, c.asked, c.lost, c.stop) == (settings, 230, 0, "complete")
        source = (c.source.dtype, c.source.device, c.source.classifier)
        assert source == ("float32", "cpu", network().fingerprint)


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


def test_predict_s_test_is_two_sided_and_of_the_leaders_alone() -> None:
    settings = Settings(sigma=0.5, n=120, alpha=0.05)

    def said(first: int, second: int, third: int = 0, lost: int = 0) -> int:
        script = [2] * first + [0] * second + [1] * third + [-1] * lost
        return int(predict(Scripted(script), torch.rand(1, 1, 2, 2), settings))

    enough = int(binom.isf(0.025, 120, 0.5)) + 1  # of 120; the one-sided test needs fewer
    assert binom.sf(enough - 2, 120, 0.5) < 0.05
    assert said(enough, 120 - enough) == 2
    assert said(enough - 1, 121 - enough) == ABSTAIN
    # 60 to 40 is significant, 20 votes for the third do not enter
    assert said(61, 39, 20) == 2
    # and queries without an answer might all have been votes for the second
    assert said(enough, 0, 0, 120 - enough) == 2
    assert said(enough - 1, 0, 0, 121 - enough) == ABSTAIN
    assert said(61, 39, 0, 20) == ABSTAIN


@procedures
def test_queries_without_an_answer_are_counted_and_count_against(procedure: Procedure) -> None:
    settings = settings_of(procedure)
    images = torch.tensor([0.9, 0.5]).expand(5, 1, 1, 2)  # 4 in 5 for class 1, half are lost
    classifier = Losing(0.5)

    found = list(certify(classifier, images, torch.ones(5, dtype=torch.int64), settings))

    assert sum(c.lost for c in found) == classifier.lost > 0
    for c in found:
        n = c.votes + c.other_votes
        bound = lower_bound_anytime if settings.is_sequential else lower_bound
        assert c.p_lower == (bound(c.votes, n, settings.alpha) if n else 0.0)
        assert (c.predicted, c.radius) == (ABSTAIN, 0.0)  # .4 at most, though .8 of the answers
        assert c.asked >= 20 + n
        assert sum(c.selection_counts) < 20


@procedures
def test_a_run_continued_after_budgets_is_the_run_in_one_go(
    procedure: Procedure, tmp_path: Path
) -> None:
    images = torch.stack((torch.linspace(0.5, 1, 8), torch.zeros(8)), dim=1).reshape(8, 1, 1, 2)
    labels, settings = torch.ones(8, dtype=torch.int64), settings_of(procedure)
    whole = {c.index: c for c in timeless(list(certify(Losing(0.4), images, labels, settings)))}

    parts: dict[int, Certificate] = {}
    for budget in (90, 333, 334, 1_100, 10_000):
        with VoteLog(tmp_path, settings, source_of(Losing())) as log:
            meter = Ledger(log, budget)
            part = certify(Losing(0.4), images, labels, settings, rows=70, meter=meter, log=log)
            parts |= {c.index: c for c in timeless(list(part))}
        assert meter.spent == read_votes(tmp_path).spent <= budget

    assert parts == whole
    assert meter.spent == sum(c.asked for c in whole.values())  # nothing is asked twice
    streams = {(e.index, e.phase): e.start + e.rows for e in read_votes(tmp_path).entries}
    assert streams == {
        (index, phase): votes
        for index, c in whole.items()
        for phase, votes in ((0, 20), (1, c.asked - 20))
        if votes
    }


@procedures
def test_at_the_end_of_a_budget_only_sequences_speak(procedure: Procedure) -> None:
    images = torch.tensor([0.9, 0.0]).expand(4, 1, 1, 2)
    settings, meter = settings_of(procedure, n=3_000), Meter(4 * 20 + 4 * 50)

    found = list(
        certify(Losing(), images, torch.ones(4, dtype=torch.int64), settings, meter=meter, rows=64)
    )

    assert meter.remaining == 0
    assert [c.index for c in found] == ([0, 1, 2, 3] if settings.is_sequential else [])
    for c in found:
        assert c.stop == "budget"
        assert c.p_lower == lower_bound_anytime(c.votes, c.votes + c.other_votes, 0.001)
    assert sum(c.asked for c in found) == (280 if found else 0)


@procedures
def test_no_end_of_a_budget_makes_false_certificates_more_frequent(
    procedure: Procedure, tmp_path: Path
) -> None:
    # A certificate is false if its bound exceeds the probability of the class it selected. Of
    # three runs, two of which a budget ends, each image counts if any one was false; the retries
    # of lost votes make the end of the budget depend on the votes themselves.
    m, a, alpha = 300, 1.1, 0.05
    settings = settings_of(procedure, n=160, alpha=alpha)
    pixels = torch.linspace(0.7, 0.85, m)  # Phi(.4 ... .7): around those of the radii
    images = torch.stack((pixels, torch.full((m,), 0.3)), dim=1).reshape(m, 1, 1, 2)
    p = norm.cdf((pixels.numpy() - 0.5) / 0.5) * norm.cdf((a - 0.3) / 0.5)

    false = np.zeros(m, dtype=bool)
    for budget in (10_000, 22_000, 10**7):
        with VoteLog(tmp_path, settings, source_of(Losing())) as log:
            meter = Ledger(log, budget)
            labels = torch.ones(m, dtype=torch.int64)
            for c in certify(
                Losing(a, meter), images, labels, settings, rows=4_096, meter=meter, log=log
            ):
                share = p[c.index] if c.selected == 1 else 1 - p[c.index]
                false[c.index] |= c.p_lower > share

    assert 0 < false.mean() <= alpha + 5 * (alpha * (1 - alpha) / m) ** 0.5


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
