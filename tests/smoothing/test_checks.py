"""Checks of the black box find what they are for, and nothing where there is nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from torch import Tensor

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.checks import canaries, changes, drift, repeats
from deepzero_apps.smoothing.noise import noise_blocks
from deepzero_apps.smoothing.vote_log import Entry, Votes
from tests.smoothing.certificate_examples import SOURCE

SETTINGS = Settings(sigma=0.5)
IMAGES = torch.rand(9, 1, 4, 4)


class Box:
    """A classifier made of one function of a batch."""

    classes, fingerprint, name, may_lose = 3, "f0", "box", True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.asked = function, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.function(images)


def scores(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :3].double()


def labels(images: Tensor) -> Tensor:
    return scores(images).argmax(1)


def lossy(images: Tensor) -> Tensor:
    return torch.where(scores(images)[:, :1] > 0.5, torch.nan, scores(images))


@pytest.mark.parametrize("function", [scores, labels, lossy])
def test_a_function_of_one_image_is_clean(function: Callable[[Tensor], Tensor]) -> None:
    box, images = Box(function), canaries(IMAGES, SETTINGS, 8)

    known, findings = repeats(box, images)

    assert findings == changes(box, known) == []
    assert box.asked == 8 * 3 + 8


def test_an_answer_that_is_lost_is_no_other_answer() -> None:
    calls = iter(range(100))
    box = Box(lambda x: torch.where(torch.arange(len(x)) == next(calls), -1, labels(x)))

    known, findings = repeats(box, canaries(IMAGES, SETTINGS, 8))

    assert findings == changes(box, known) == []


def test_canaries_are_noisy_copies_of_the_first_images() -> None:
    made = canaries(IMAGES, SETTINGS, 4)

    noise = made - IMAGES[:4].float()
    assert made.shape == (4, 1, 4, 4)
    # 64 numbers: the standard deviation's standard error is sigma / sqrt(128)
    assert abs(float(noise.std()) - 0.5) < 5 * 0.5 / 128**0.5
    assert len(canaries(IMAGES, SETTINGS, 100)) == 9


def test_canaries_are_no_copies_that_vote() -> None:
    made = canaries(IMAGES, SETTINGS, 1)

    for phase in range(3):  # selection, estimation, prediction
        blocks = noise_blocks((1, 4, 4), seed=0, index=0, phase=phase, device="cpu")
        copies = IMAGES[0].float() + 0.5 * next(blocks)
        assert (copies - made).abs().amax((1, 2, 3)).min() > 0.1


def test_lots_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    box = Box(lambda x: torch.randint(3, (len(x),), generator=generator))

    _, findings = repeats(box, canaries(IMAGES, SETTINGS, 8))

    assert len(findings) == 1
    assert findings[0].startswith("repeats: the same images asked twice")


def test_an_answer_that_depends_on_its_company_is_found() -> None:
    box = Box(lambda x: labels(x) if len(x) == 8 else (labels(x) + 1) % 3)

    _, findings = repeats(box, canaries(IMAGES, SETTINGS, 8))

    assert len(findings) == 1
    assert "batches: " in findings[0]
    assert "NO certificate holds" in findings[0]


def test_batch_normalization_over_the_batch_shows_in_the_scores() -> None:
    box = Box(lambda x: scores(x - x.mean(0)))

    _, findings = repeats(box, canaries(IMAGES, SETTINGS, 8))

    assert len(findings) == 1
    assert findings[0].startswith("batches: ")


def test_rounding_of_another_batch_size_is_no_finding() -> None:
    box = Box(lambda x: scores(x) + 1e-7 * len(x))

    assert repeats(box, canaries(IMAGES, SETTINGS, 8))[1] == []


def test_a_model_that_is_replaced_is_found() -> None:
    box = Box(scores)
    known, _ = repeats(box, canaries(IMAGES, SETTINGS, 8))

    box.function = lambda x: -scores(x)

    (finding,) = changes(box, known)
    assert finding.startswith("change: canaries got other answers")


def votes(p: np.ndarray, *, batches: int = 8, procedure: str = "fixed") -> Votes:
    """Votes of 20 images, `batches` batches of 50 each, with p of shape (batches,)."""
    radii = (0.5,) if procedure in ("decide", "adaptive") else ()
    settings = Settings(sigma=0.5, n0=10, n=50 * batches, procedure=procedure, radii=radii)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    entries = []
    for index in range(20):
        entries.append(Entry(index, 0, 0, {1: 9, 2: 1}))
        for batch in range(batches):
            k = int(generator.binomial(50, p[batch]))
            counts = {label: n for label, n in ((1, k), (2, 49 - k)) if n > 0}
            entries.append(Entry(index, 1, 50 * batch, counts, 50 - sum(counts.values())))
    return Votes(settings, SOURCE, entries=entries)


def test_steady_votes_do_not_drift() -> None:
    assert drift(votes(np.full(8, 0.8))) == []
    assert drift(votes(np.full(8, 1.0))) == []
    assert drift(votes(np.full(1, 0.8), batches=1)) == []


def test_votes_that_fall_off_are_found_with_the_z_of_the_hypergeometric() -> None:
    falling = votes(np.repeat([0.85, 0.7], 4))

    (finding,) = drift(falling)

    # sum of first halves less half the sums, over sqrt(sum of k (n - k) m (n - m) / n^2 (n - 1))
    halves = np.zeros((20, 2))
    for entry in falling.entries:
        if entry.phase == 1:
            halves[entry.index, entry.start // 200] += entry.counts[1]
    k = halves.sum(1)
    expected = (halves[:, 0] - k / 2).sum() / (
        k * (400 - k) * 200**2 / (400**2 * 399)
    ).sum() ** 0.5
    assert f"(z = {expected:.1f})" in finding
    assert "less often" in finding


def test_votes_that_rise_are_found_too() -> None:
    (finding,) = drift(votes(np.repeat([0.7, 0.85], 4)))

    assert "more often" in finding


def test_pairs_of_votes_have_the_variance_of_pairs() -> None:
    # Of two votes one is for the class, the first: d = 1 / 2 and V = 1 / 4 an image.
    entries = []
    for index in range(40):
        entries.append(Entry(index, 0, 0, {1: 10}))
        entries.append(Entry(index, 1, 0, {1: 1}))
        entries.append(Entry(index, 1, 1, {2: 1}))
    settings = Settings(sigma=0.5, n0=10, n=2, alpha=0.4)

    (finding,) = drift(Votes(settings, SOURCE, entries=entries))

    assert f"(z = {20 / 10**0.5:.1f})" in finding


def test_one_vote_in_a_small_first_batch_is_no_finding() -> None:
    # The only vote against the class falls among the first 10 of 2,000: once in 200 runs, and
    # z = -.995 * 2000 / (10 * 1990)^.5 = -14.1.
    entries = [Entry(0, 0, 0, {1: 10})]
    for start, rows, won in ((0, 10, 9), (10, 1_000, 1_000), (1_010, 990, 990)):
        counts = {label: n for label, n in ((1, won), (2, rows - won)) if n}
        entries.append(Entry(0, 1, start, counts))

    assert drift(Votes(Settings(sigma=0.5, n0=10, n=2_000), SOURCE, entries=entries)) == []


def test_few_votes_against_are_a_finding_once_in_a_hundred_thousand_runs() -> None:
    # 500 images with 40 of 2,000 votes each in the first batch: of 50 votes against, one is
    # expected there, and their number is nearly Poisson.
    def run(first: int, later: int) -> Votes:
        entries = []
        for index in range(500):
            lost = int(index < first), int(index < later)
            entries.append(Entry(index, 0, 0, {1: 10}))
            entries.append(Entry(index, 1, 0, {1: 40 - lost[0]}, lost[0]))
            entries.append(Entry(index, 1, 40, {1: 1_960 - lost[1]}, lost[1]))
        return Votes(Settings(sigma=0.5, n0=10, n=2_000), SOURCE, entries=entries)

    found = next(first for first in range(1, 50) if drift(run(first, 49)))

    assert poisson.sf(found - 1, 1.0) < 1e-5 < poisson.sf(found - 4, 1.0)


def test_halves_of_votes_that_decided_when_to_stop_are_not_compared() -> None:
    assert drift(votes(np.repeat([0.85, 0.7], 4), procedure="decide")) == []
