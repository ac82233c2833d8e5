"""Votes against a slow reference, in full calls, to the query of a budget."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing import tallies
from deepzero_apps.smoothing.blackbox import CallableClassifier, ClassifierError, TorchClassifier
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import source_of
from deepzero_apps.smoothing.noise import BLOCK, noise_blocks
from deepzero_apps.smoothing.vote_log import Entry, Ledger, VoteLog, read_votes
from deepzero_apps.smoothing.votes import Ballot, Count, Polling, poll
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

SETTINGS = Settings(sigma=0.5)
WISHES = [(0, 0, 5), (2, 0, 300), (2, 1, BLOCK), (1, 1, 2 * BLOCK)]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double()


def counts(wishes: Iterable[tuple[int, int, int]], classes: int = 3) -> list[Count]:
    zeros = np.zeros(classes, dtype=np.int64)
    return [Count(index, phase, votes, zeros.copy()) for index, phase, votes in wishes]


def asked(polling: Polling, ballots: list[Count]) -> list[Ballot]:
    return list(poll(polling, ballots))


class Eager:
    """A ballot that looks after every ``step`` votes, ``looks`` times."""

    phase = 0

    def __init__(self, index: int, step: int, looks: int) -> None:
        self.index, self.step, self.looks = index, step, looks
        self.seen, self.wanted = 0, step
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        assert entry.rows <= self.wanted
        assert entry.start == self.seen
        self.entries.append(entry)
        self.seen += entry.rows
        self.wanted -= entry.rows
        if self.wanted == 0 and self.seen < self.step * self.looks:
            self.wanted = self.step


def test_votes_are_those_of_one_noisy_copy_at_a_time() -> None:
    images, module, ballots = torch.rand(3, 2, 3, 3), network(), counts(WISHES)
    asked(Polling(TorchClassifier(network(), classes=3), images, SETTINGS, rows=64), ballots)

    for ballot, (index, phase, votes) in zip(ballots, WISHES, strict=True):
        blocks = noise_blocks((2, 3, 3), seed=0, index=index, phase=phase, device="cpu")
        noise = torch.cat([next(blocks) for _ in range(10)])[:votes]
        noisy = images[index].float() + 0.5 * noise
        labels = [int(module(x[None].double()).argmax()) for x in noisy]
        assert ballot.counts.tolist() == np.bincount(labels, minlength=3).tolist()


@pytest.mark.parametrize("rows", [1, 7, 31, 32, 33, 5_000])
@pytest.mark.parametrize("together", [False, True])
def test_rows_a_call_and_company_change_nothing(rows: int, together: bool) -> None:
    images, found = torch.rand(3, 2, 3, 3), []
    for size, all_at_once in ((rows, together), (64, False)):
        ballots = counts(WISHES)
        classifier = TorchClassifier(network(), classes=3)
        polling = Polling(classifier, images, SETTINGS, rows=size, together=all_at_once)
        assert len(asked(polling, ballots)) == len(WISHES)
        found.append(np.stack([ballot.counts for ballot in ballots]))

    np.testing.assert_array_equal(*found)
    assert found[0].sum(1).tolist() == [votes for _, _, votes in WISHES]


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "_WORTH_THREADS", 1)
    images, found = torch.rand(3, 2, 3, 3), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ballots = counts(WISHES)
            asked(
                Polling(TorchClassifier(network(), classes=3), images, SETTINGS, rows=99), ballots
            )
            found.append(np.stack([ballot.counts for ballot in ballots]))
    finally:
        torch.set_num_threads(before)

    np.testing.assert_array_equal(*found)


class Recorder(nn.Module):
    """Answers class 0 and keeps the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return torch.eye(4)[torch.zeros(len(x), dtype=torch.int64)]


def test_calls_are_full_and_mix_images() -> None:
    recorder = Recorder()
    polling = Polling(
        TorchClassifier(recorder, classes=4), torch.rand(10, 1, 2, 2), SETTINGS, rows=32
    )
    asked(polling, counts([(i, 0, 10) for i in range(10)], classes=4))

    assert recorder.sizes == [32, 32, 32, 4]


@pytest.mark.parametrize("together", [False, True])
def test_ballots_that_look_often_still_fill_the_calls(together: bool) -> None:
    recorder = Recorder()
    polling = Polling(
        TorchClassifier(recorder, classes=4),
        torch.rand(12, 1, 2, 2),
        SETTINGS,
        rows=64,
        together=together,
    )
    over = list(poll(polling, [Eager(i, step=16, looks=4) for i in range(12)]))

    assert len(over) == 12
    assert recorder.sizes == [64] * 12


def test_with_a_budget_all_advance_together() -> None:
    polling = Polling(
        TorchClassifier(Recorder(), classes=4),
        torch.rand(6, 1, 2, 2),
        SETTINGS,
        rows=64,
        meter=Meter(budget=6 * 32 + 7),
        together=True,
    )
    ballots = [Eager(i, step=16, looks=100) for i in range(6)]

    assert list(poll(polling, ballots)) == []
    assert sorted(ballot.seen for ballot in ballots) == [32, 32, 32, 32, 32, 39]


@pytest.mark.parametrize("budget", [0, 1, 31, 200, 337, 10_000])
def test_a_budget_is_spent_to_the_query(budget: int) -> None:
    recorder, meter, ballots = Recorder(), Meter(budget=budget), counts(WISHES, classes=4)
    polling = Polling(
        TorchClassifier(recorder, classes=4), torch.rand(3, 1, 2, 2), SETTINGS, 50, meter=meter
    )
    over = asked(polling, ballots)

    total = sum(votes for _, _, votes in WISHES)
    assert sum(recorder.sizes) == meter.spent == min(budget, total)
    assert sum(int(ballot.counts.sum()) for ballot in ballots) == meter.spent
    assert (len(over) == len(WISHES)) is (budget >= total)


class Forgetful:
    """Answers class 1, and nothing to every third image."""

    classes, fingerprint, may_lose, name = 2, "f0", True, "forgetful"

    def __call__(self, images: Tensor) -> Tensor:
        answer = torch.ones(len(images), dtype=torch.int64)
        answer[::3] = -1
        return answer


def test_a_vote_without_an_answer_is_for_no_class() -> None:
    ballots = counts([(0, 0, 90), (1, 1, 30)], classes=2)
    asked(Polling(Forgetful(), torch.rand(2, 1, 2, 2), SETTINGS, rows=30), ballots)

    assert [(b.counts.tolist(), b.lost) for b in ballots] == [([0, 60], 30), ([0, 20], 10)]


def test_votes_are_written_before_they_count(tmp_path: Path) -> None:
    class Watching(Eager):
        def add(self, entry: Entry) -> None:
            assert entry.index == read_votes(tmp_path).entries[-1].index
            super().add(entry)

    classifier = TorchClassifier(Recorder(), classes=4)
    with VoteLog(tmp_path, SETTINGS, source_of(classifier)) as log:
        images, meter = torch.rand(2, 1, 2, 2), Ledger(log)
        polling = Polling(classifier, images, SETTINGS, rows=16, meter=meter, log=log)
        assert len(list(poll(polling, [Watching(i, 16, 3) for i in range(2)]))) == 2

    votes = read_votes(tmp_path)
    assert votes.spent == 96
    assert votes.unanswered == 0
    assert [(e.start, e.counts) for e in votes.entries if e.index == 1] == [
        (0, {0: 16}),
        (16, {0: 16}),
        (32, {0: 16}),
    ]


class Retrying:
    """A service whose every call pays for one retry of each row, and fails in the end."""

    classes, fingerprint, name, may_lose = 2, "f1", "retrying", True

    def __init__(self, fault: type[Exception] | None) -> None:
        self.meter, self.fault, self.calls = Meter(), fault, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.meter.charge(len(images))
        if self.fault is not None and self.calls == 2:
            raise self.fault("gone")
        return torch.zeros(len(images), dtype=torch.int64)


def test_retries_are_paid_from_the_same_budget(tmp_path: Path) -> None:
    service, ballots = Retrying(None), counts([(0, 0, 80)], classes=2)
    with VoteLog(tmp_path, SETTINGS, source_of(service)) as log:
        meter = service.meter = Ledger(log, 100)
        polling = Polling(service, torch.rand(1, 1, 2, 2), SETTINGS, 30, meter=meter, log=log)
        assert asked(polling, ballots) == []

    # 30 + 30 and 20 + 20 would be 100, but the last call takes 30 rows and cannot pay for retries
    assert ballots[0].seen == 30
    assert meter.spent == read_votes(tmp_path).spent == 90
    assert read_votes(tmp_path).unanswered == 30


def test_what_a_failing_call_cost_is_remembered(tmp_path: Path) -> None:
    service = Retrying(ClassifierError)
    with VoteLog(tmp_path, SETTINGS, source_of(service)) as log:
        meter = service.meter = Ledger(log)
        polling = Polling(service, torch.rand(1, 1, 2, 2), SETTINGS, 30, meter=meter, log=log)
        with pytest.raises(ClassifierError, match="gone"):
            asked(polling, counts([(0, 0, 80)], classes=2))

    votes = read_votes(tmp_path)
    assert meter.spent == votes.spent == 120
    assert votes.unanswered == 60
    assert sum(entry.rows for entry in votes.entries) == 30


def test_a_budget_that_a_classifier_keeps_for_itself_ends_the_polling() -> None:
    def function(images: np.ndarray) -> np.ndarray:
        raise BudgetExhausted(f"no more than 0 of {len(images)}")

    polling = Polling(
        CallableClassifier(function, classes=2, name="own"), torch.rand(1, 1, 2, 2), SETTINGS
    )
    assert asked(polling, counts([(0, 0, 80)], classes=2)) == []


def test_seconds_are_shared_by_rows() -> None:
    short, long = counts([(0, 0, 10), (1, 0, 30)])
    images = torch.rand(3, 2, 3, 3)
    asked(Polling(TorchClassifier(network(), classes=3), images, SETTINGS, rows=40), [short, long])

    assert long.seconds == pytest.approx(3 * short.seconds)
