"""A classifier held by workers: the same answers and votes, whoever answers first or dies."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.blackbox import CallableClassifier, TorchClassifier
from deepzero_apps.smoothing.bounds import Procedure, Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.certify import certify, source_of
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, read_votes
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from tests.smoothing.polling_places import LocalPool

IMAGES = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
LABELS = torch.ones(9, dtype=torch.int64)
TOLD: list[int] = []
"""The rows that classifiers of this module were asked for."""


class HalfSpace(nn.Module):
    """Class 1 where w.x > 1, w = (1, 1, 1, 1) / 2."""

    def forward(self, x: Tensor) -> Tensor:
        TOLD.append(len(x))
        side = x.flatten(1).sum(1) / 2 - 1
        return torch.stack((-side, side), dim=1)


class Repeating(Adapter):
    """A service that loses every fifth image after three repetitions, and may fail for good."""

    classes, name, may_lose, fingerprint, repeats = 2, "repeating", True, "f" * 64, 3

    def __init__(self, fails_at: float = float("inf")) -> None:
        self.fails_at, self.sent = fails_at, 0

    def _answer(self, images: Tensor) -> Tensor:
        lost = images[:, 0, 0, 0] % 0.05 < 0.01
        TOLD.append(len(images))
        for _ in range(self.repeats):
            if self.meter is not None:
                self.meter.charge(int(lost.sum()))
            TOLD.append(int(lost.sum()))
        if bool((images[:, 0, 0, 0] > self.fails_at).any()):
            raise ClassifierError("the service is down")
        return (images.flatten(1).sum(1) > 2).long().masked_fill(lost, -1)


def settings_of(procedure: Procedure, **other: object) -> Settings:
    radii = (0.1, 0.25) if procedure in ("decide", "adaptive") else ()
    fields = {"sigma": 0.5, "n0": 20, "n": 320, "radii": radii, **other}
    return Settings(procedure=procedure, **fields)  # type: ignore[arg-type]


def half_space() -> TorchClassifier:
    return TorchClassifier(HalfSpace(), classes=2)


def spread(workers: int, classifier: Adapter | None = None, **lots: int) -> Spread:
    return Spread(classifier or half_space(), LocalPool(workers, **lots))


def certified(classifier: Adapter, settings: Settings, **other: object) -> list[Certificate]:
    found = certify(classifier, IMAGES, LABELS, settings, rows=48, **other)  # type: ignore[arg-type]
    return [replace(c, seconds=0.0) for c in found]


def by_index(certificates: list[Certificate]) -> dict[int, Certificate]:
    return {c.index: c for c in certificates}


procedures = pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide", "anytime"])


@pytest.mark.parametrize("images", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_answered_in_their_order_whoever_is_first(images: int, workers: int) -> None:
    batch = torch.rand(images, 1, 2, 2)

    assert torch.equal(spread(workers)(batch), half_space()(batch))


def test_pieces_do_not_depend_on_the_number_of_workers() -> None:
    sizes = []
    for workers in (1, 2, 5):
        TOLD.clear()
        spread(workers)(torch.rand(1000, 1, 2, 2))
        sizes.append(sorted(TOLD))

    assert sizes[0] == sizes[1] == sizes[2] == [8] + 31 * [32]


@procedures
@pytest.mark.parametrize(("workers", "deaths"), [(1, 0), (2, 0), (4, 3), (11, 0)])
def test_certificates_are_those_of_one_process(
    procedure: Procedure, workers: int, deaths: int
) -> None:
    settings = settings_of(procedure)

    found = certified(spread(workers, seed=workers, deaths=deaths), settings)

    assert by_index(found) == by_index(certified(half_space(), settings))


@pytest.mark.parametrize("budget", [None, 1, 333, 1800])
def test_the_log_does_not_depend_on_the_number_of_workers(
    tmp_path: Path, budget: int | None
) -> None:
    entries, spent = [], []
    for workers in (1, 2, 4):
        folder, settings = tmp_path / str(workers), settings_of("decide")
        with VoteLog(folder, settings, source_of(half_space())) as log:
            meter = Ledger(log, budget)
            certified(spread(workers, seed=workers), settings, meter=meter, log=log)
        votes = read_votes(folder)
        entries.append([replace(e, seconds=0.0) for e in votes.entries])
        spent.append(
            (meter.spent, votes.spent, votes.unanswered, sum(e.rows for e in entries[-1]))
        )

    assert entries[0] == entries[1] == entries[2]
    whole = spent[0][0]
    assert spent == 3 * [(whole, whole, 0, whole)]
    assert budget is None or whole <= budget


def test_calls_are_about_as_full_as_those_of_one_process() -> None:
    calls = []
    for classifier in (half_space(), spread(1), spread(4)):
        TOLD.clear()
        certified(classifier, settings_of("decide", n=3000))
        calls.append(len(TOLD))

    # nine images cannot fill four calls with looks of 32 votes, but nearly
    assert calls[0] <= calls[1] == calls[2] < 1.4 * calls[0]


def test_with_a_budget_all_images_advance_together() -> None:
    settings = settings_of("anytime", n=10_000)

    found = certified(spread(3), settings, meter=Meter(9 * 20 + 9 * 64))

    assert sum(c.asked for c in found) == 9 * 20 + 9 * 64
    assert {c.asked for c in found if c.stop == "budget"} <= set(range(20 + 32, 20 + 128))


def test_the_end_of_a_budget_is_a_look_at_all_votes() -> None:
    settings = settings_of("anytime", n=10_000)
    always = Failing(brightest=float("inf"))  # class 0, and the more votes, the larger the bound

    for classifier in (always, spread(3, always)):
        found = certified(classifier, settings, meter=Meter(9 * 20 + 9 * 45))

        assert sum(c.votes for c in found) == 9 * 45
        assert all(c.votes == c.asked - 20 and c.stop == "budget" for c in found)


@pytest.mark.parametrize("first", [1, 3])
def test_a_run_is_continued_by_any_number_of_workers(tmp_path: Path, first: int) -> None:
    settings = settings_of("decide")
    whole = by_index(certified(half_space(), settings))
    for classifier, budget in ((spread(first), 700), (half_space(), 1500), (spread(2), None)):
        with VoteLog(tmp_path, settings, source_of(half_space())) as log:
            found = certified(classifier, settings, meter=Ledger(log, budget), log=log)

    assert {c.index: (c.votes, c.radius) for c in found} == {
        index: (c.votes, c.radius) for index, c in whole.items()
    }
    assert read_votes(tmp_path).unanswered == 0


def test_what_a_dead_worker_was_asked_is_charged_again(tmp_path: Path) -> None:
    settings = settings_of("fixed")
    TOLD.clear()
    with VoteLog(tmp_path, settings, source_of(half_space())) as log:
        found = certified(spread(2, seed=5, deaths=4), settings, meter=Ledger(log), log=log)

    votes = read_votes(tmp_path)
    assert sum(e.rows for e in votes.entries) == 9 * 340
    assert votes.unanswered == 4 * 48
    assert votes.spent == 9 * 340 + 4 * 48 >= sum(TOLD)
    assert by_index(found) == by_index(certified(half_space(), settings))


@pytest.mark.parametrize("budget", [100, 500, 1000])
def test_a_budget_holds_when_workers_die(tmp_path: Path, budget: int) -> None:
    settings = settings_of("anytime")
    for seed in range(10):
        TOLD.clear()
        with VoteLog(tmp_path / str(seed), settings, source_of(half_space())) as log:
            classifier = spread(3, seed=seed, deaths=5)
            certified(classifier, settings, meter=Ledger(log, budget), log=log)

        votes = read_votes(tmp_path / str(seed))
        assert sum(TOLD) <= votes.spent <= budget
        assert sum(e.rows for e in votes.entries) + votes.unanswered == votes.spent


@pytest.mark.parametrize("budget", [None, 60, 800, 2000])
def test_repetitions_are_charged(tmp_path: Path, budget: int | None) -> None:
    settings = settings_of("anytime")
    for workers in (1, 3):
        TOLD.clear()
        service, folder = Repeating(), tmp_path / str(workers)
        with VoteLog(folder, settings, source_of(service)) as log:
            meter = Ledger(log, budget)
            service.meter = meter
            certified(spread(workers, service), settings, meter=meter, log=log)

        votes, sent = read_votes(folder), sum(TOLD)
        assert meter.spent == votes.spent
        if budget is None:
            assert votes.spent == sent
            assert votes.unanswered == 0  # repetitions went into votes, too
        else:  # what was advanced for repetitions may be left, of two calls a worker
            assert sent <= votes.spent <= min(budget, sent + 2 * workers * 3 * 48)
            assert votes.spent > 0.9 * budget or workers > 1


def test_what_a_dead_worker_may_have_repeated_is_charged_without_a_budget_too(
    tmp_path: Path,
) -> None:
    settings, service = settings_of("fixed"), Repeating()
    for seed in range(5):
        TOLD.clear()
        with VoteLog(tmp_path / str(seed), settings, source_of(service)) as log:
            classifier = spread(2, service, seed=seed, deaths=6)
            certified(classifier, settings, meter=Ledger(log), log=log)

        votes = read_votes(tmp_path / str(seed))
        assert votes.spent >= sum(TOLD)
        assert 0 < votes.unanswered <= 6 * 48 * (1 + 3)
        assert votes.unanswered % (1 + 3) == 0  # three repetitions of each


def test_repetitions_do_not_end_a_run_that_the_budget_covers() -> None:
    settings = settings_of("fixed")
    alone = by_index(certified(Repeating(), settings))
    price = 9 * 340 * 4  # all of them, three times again

    assert by_index(certified(spread(3, Repeating()), settings, meter=Meter(price))) == alone


def test_a_failing_classifier_stops_the_asking_and_what_was_paid_is_written(
    tmp_path: Path,
) -> None:
    settings, service = settings_of("fixed"), Repeating(fails_at=2.2)
    pool = LocalPool(3)
    with VoteLog(tmp_path, settings, source_of(service)) as log:
        meter = Ledger(log)
        classifier = Spread(service, pool)  # type: ignore[arg-type]
        with pytest.raises(ClassifierError, match="the service is down"):
            certified(classifier, settings, meter=meter, log=log)

    votes = read_votes(tmp_path)
    assert pool.waiting == pool.abandoned == 0  # all that was asked was waited for
    assert meter.spent == votes.spent
    assert 0 < sum(e.rows for e in votes.entries) < votes.spent
    for index in range(9):
        for phase in (0, 1):  # no vote without those before it
            own = [e for e in votes.entries if (e.index, e.phase) == (index, phase)]
            assert all(a.start + a.rows == b.start for a, b in pairwise(own))
    with VoteLog(tmp_path, settings, source_of(service)) as log:  # and it can be continued
        found = certified(Repeating(), settings, meter=Ledger(log), log=log)
    assert by_index(found) == by_index(certified(Repeating(), settings))


class Failing(Adapter):
    """Fails on bright images."""

    classes, name, fingerprint = 2, "failing", "f" * 64

    def __init__(self, brightest: float) -> None:
        self.brightest = brightest

    def _answer(self, images: Tensor) -> Tensor:
        if float(images.max()) > self.brightest:
            raise ClassifierError("too bright")
        return torch.zeros(len(images), dtype=torch.int64)


@pytest.mark.parametrize("brightest", [1.8, 2.0, 2.2])
def test_the_log_tells_what_became_of_every_query_after_a_failure(
    tmp_path: Path, brightest: float
) -> None:
    settings, failing = settings_of("fixed"), Failing(brightest)
    for seed in range(5):
        with (
            VoteLog(tmp_path / str(seed), settings, source_of(failing)) as log,
            pytest.raises(ClassifierError, match="too bright"),
        ):
            certified(spread(3, failing, seed=seed), settings, meter=Ledger(log), log=log)

        votes = read_votes(tmp_path / str(seed))
        assert sum(e.rows for e in votes.entries) + votes.unanswered == votes.spent > 0


def test_nothing_is_asked_after_a_failure() -> None:
    pool = LocalPool(1)
    with pytest.raises(ClassifierError, match="too bright"):
        certified(Spread(Failing(-9), pool), settings_of("fixed"))  # type: ignore[arg-type]

    assert pool.put_ever == 2  # the call that failed, and the one that waited for the worker


def test_a_reader_who_stops_leaves_no_call_behind() -> None:
    pool = LocalPool(2)
    classifier = Spread(half_space(), pool)  # type: ignore[arg-type]
    reading = certify(classifier, IMAGES, LABELS, settings_of("fixed"), rows=48)
    next(reading)
    reading.close()  # type: ignore[attr-defined]

    assert pool.waiting == 0 < pool.abandoned
    assert torch.equal(classifier(IMAGES), half_space()(IMAGES))


@pytest.mark.parametrize("budget", [None, 5000])
def test_images_pay_for_their_repetitions(budget: int | None) -> None:
    classifier, batch = spread(3, Repeating()), torch.rand(100, 1, 2, 2)
    lost = int((batch[:, 0, 0, 0] % 0.05 < 0.01).sum())
    assert lost > 0
    classifier.meter = Meter(budget)

    answer = classifier(batch)

    assert classifier.meter.spent == 3 * lost
    assert torch.equal(answer, Repeating()(batch))


@pytest.mark.parametrize("budget", [5, 12, 100])  # pieces of 8 images ask for 24 each
def test_images_whose_repetitions_are_not_covered_are_refused(budget: int) -> None:
    classifier = spread(2, Repeating())
    classifier.meter = Meter(budget)
    TOLD.clear()

    with pytest.raises(BudgetExhausted, match="the budget of"):
        classifier(torch.full((40, 1, 2, 2), 0.051))

    assert sum(TOLD) - 40 == classifier.meter.spent <= budget


def test_an_error_of_the_classifier_is_that_of_the_workers() -> None:
    def broken(images: np.ndarray) -> np.ndarray:
        raise RuntimeError(f"no answer to {len(images)}")

    classifier = spread(2, Portable(broken))
    with pytest.raises(ClassifierError, match=r"raised RuntimeError on images.*no answer to 8"):
        classifier(torch.rand(20, 1, 2, 2))


class Portable(CallableClassifier):
    """A function of a test, which pickle cannot find, taken along."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(function, classes=2, name="portable")

    def __reduce__(self) -> tuple[object, ...]:
        return _found, (_kept(self.function),)


_KEPT: list[Callable[[np.ndarray], np.ndarray]] = []


def _kept(function: Callable[[np.ndarray], np.ndarray]) -> int:
    _KEPT.append(function)
    return len(_KEPT) - 1


def _found(place: int) -> CallableClassifier:
    return CallableClassifier(_KEPT[place], classes=2, name="portable")


def test_a_classifier_that_cannot_travel_is_refused() -> None:
    with pytest.raises(
        ClassifierError, match=r"can be sent to workers, got .*by functions and cl"
    ):
        spread(1, CallableClassifier(lambda x: x, classes=2, name="local"))


def test_noise_of_another_kind_of_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device must be of the workers' type, cpu, got meta"):
        certified(spread(1), settings_of("fixed"), device="meta")


def test_what_stands_for_the_classifier_describes_it_as_it_is() -> None:
    service = Repeating()
    service.meter = Meter()
    held = spread(2, service)

    assert service.meter == Meter()  # it was sent without, and has it again
    assert (held.classes, held.may_lose, held.repeats) == (2, True, 3)
    assert held.fingerprint == service.fingerprint
    assert held.largest_call == service.largest_call
    assert held.name == "repeating held by workers"
