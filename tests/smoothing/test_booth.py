"""What a worker does with the classifier that it is sent; the last tests in real processes."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.blackbox import SklearnClassifier, TorchClassifier
from deepzero_apps.smoothing.booth import Booth, Held, Noisy
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.certify import certify, source_of
from deepzero_apps.smoothing.labels import LabelsOnly
from deepzero_apps.smoothing.noise import noise_blocks
from deepzero_apps.smoothing.services import HttpClassifier, Service
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.smoothing.tallies import Stretch
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, read_votes
from deepzero_apps.workers import Pool, Shared, Where
from deepzero_apps.zeroth_order.oracle import BudgetExhausted
from tests.smoothing.polling_places import LocalPool, Slow

CLASSIFIER = TorchClassifier(Slow(), classes=2)
SETTINGS = Settings(sigma=0.5, n0=40, n=800)


def sent(classifier: Adapter = CLASSIFIER, **other: object) -> Shared:
    held = Held(classifier, classifier.fingerprint, str(torch.__version__), "cpu", 2)
    return LocalPool(1).share(replace(held, **other))  # type: ignore[arg-type, return-value]


class Told(Adapter):
    """Answers of how many copies it was told that it is one, as a class."""

    classes, name, fingerprint, copies = 5, "told", "t", 0

    def become_one_of(self, copies: int, *, threads: int) -> None:
        assert threads == torch.get_num_threads()
        self.copies = copies

    def _answer(self, images: Tensor) -> Tensor:
        return torch.full((len(images),), self.copies)


class Charging(Adapter):
    """Charges one repetition for each image."""

    classes, name, fingerprint = 2, "charging", "c"

    def _answer(self, images: Tensor) -> Tensor:
        assert self.meter is not None
        self.meter.charge(len(images))
        return torch.zeros(len(images), dtype=torch.int64)


def test_counts_are_of_the_noisy_copies_that_were_asked_for() -> None:
    images = np.random.default_rng(0).random((3, 1, 2, 2), dtype=np.float32)
    noisy = Noisy(LocalPool(1).share(images), SETTINGS)  # type: ignore[arg-type]
    call = (Stretch(2, 1, 40, 70), Stretch(0, 0, 3, 5))

    found = Booth("no such folder").count(sent(), noisy, call, None)

    for place, part in enumerate(call):
        blocks = noise_blocks((1, 2, 2), seed=0, index=part.index, phase=part.phase, device="cpu")
        noise = torch.cat([next(blocks) for _ in range(4)])[part.start : part.start + part.rows]
        sums = (torch.from_numpy(images[part.index]) + 0.5 * noise).flatten(1).sum(1)
        ones = int((sums > 2).sum())
        assert isinstance(found.answer, np.ndarray)
        assert found.answer[place].tolist() == [0, part.rows - ones, ones]


def test_a_booth_that_was_asked_for_others_counts_as_a_new_one() -> None:
    pool, asked = LocalPool(1), Booth("no such folder")
    dark, bright = (np.full((1, 1, 2, 2), level, dtype=np.float32) for level in (0.0, 1.0))
    call, held = (Stretch(0, 1, 0, 50),), sent()
    shared = [pool.share(dark), pool.share(bright)]
    noisy = [Noisy(images, SETTINGS) for images in shared]  # type: ignore[arg-type]
    noisy.append(replace(noisy[1], settings=replace(SETTINGS, sigma=2.0)))

    found = [asked.count(held, one, call, None).answer.tolist() for one in noisy]  # type: ignore[union-attr]

    fresh = [Booth("no such folder").count(held, one, call, None).answer for one in noisy]
    assert found == [answer.tolist() for answer in fresh]  # type: ignore[union-attr]
    assert found[0] != found[1] != found[2]


def test_a_classifier_is_told_how_many_there_are() -> None:
    reply = Booth("no such folder").answer(sent(Told()), torch.rand(3, 1, 2, 2), None)

    assert reply.answer.tolist() == [2, 2, 2]  # type: ignore[union-attr]


def test_repetitions_come_back_beside_the_answer() -> None:
    reply = Booth("no such folder").answer(sent(Charging()), torch.rand(6, 1, 2, 2), 6)

    assert (reply.repeats, reply.seconds > 0) == (6, True)


def test_repetitions_that_are_not_allowed_are_an_answer_too() -> None:
    reply = Booth("no such folder").answer(sent(Charging()), torch.rand(6, 1, 2, 2), 5)

    assert isinstance(reply.answer, BudgetExhausted)
    assert reply.repeats == 0


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"fingerprint": "f00"}, "must have fingerprint f00, got .*the same files"),
        ({"torch_version": "1.0"}, r"must have torch version 1\.0, got .*the same versions"),
    ],
)
def test_another_classifier_than_that_of_the_one_who_asks_is_refused(
    other: dict[str, str], words: str
) -> None:
    reply = Booth("no such folder").answer(sent(**other), torch.rand(1, 1, 2, 2), None)

    with pytest.raises(ClassifierError, match=words):
        raise reply.answer  # type: ignore[misc]


def test_a_classifier_that_cannot_be_opened_is_named() -> None:
    class Absent:
        number = 1

        def value(self) -> None:
            raise ModuleNotFoundError("No module named 'of_the_user'")

    reply = Booth("no such folder").answer(Absent(), torch.rand(1, 1, 2, 2), None)  # type: ignore[arg-type]

    with pytest.raises(ClassifierError, match=r"cannot open .*'of_the_user'; modules and files"):
        raise reply.answer  # type: ignore[misc]


def test_a_booth_stands_where_the_one_who_asks_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.syspath_prepend("")

    Booth(str(tmp_path))

    assert Path.cwd() == tmp_path
    assert sys.path[0] == str(tmp_path)


def test_an_estimator_takes_the_threads_of_its_worker() -> None:
    points = np.random.default_rng(0).random((20, 4))
    estimator = LogisticRegression().fit(points, np.arange(20) % 2)
    classifier = LabelsOnly(SklearnClassifier(estimator, threads=2))

    classifier.become_one_of(3, threads=1)

    assert classifier.classifier.threads == 1  # type: ignore[attr-defined]


def test_a_service_is_shared_at_its_rate() -> None:
    service = Service(
        url="http://localhost:1/", classes=("a", "b"), rate=10, concurrency=5, retries=7
    )
    with HttpClassifier(service) as classifier:
        before = classifier.fingerprint
        classifier.become_one_of(4, threads=1)

        assert (classifier.service.rate, classifier.service.concurrency) == (2.5, 1)
        assert classifier.fingerprint == before
        assert classifier.repeats == 7
        classifier.become_one_of(4, threads=1)
        assert classifier.service.concurrency == 1


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    if find_spec("ray") is None:
        pytest.skip("workers are processes of Ray, an extra")
    with Pool(partial(Booth, str(Path.cwd())), Where(2)) as pool:
        yield pool


def certified(classifier: Adapter) -> list[Certificate]:
    images = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.ones(12, dtype=torch.int64)
    found = certify(classifier, images, labels, SETTINGS, rows=128)
    return sorted((replace(c, seconds=0.0) for c in found), key=lambda c: c.index)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_no_certificate(pool: Pool, tmp_path: Path) -> None:
    slow = TorchClassifier(Slow(0.02), classes=2)
    images = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.ones(12, dtype=torch.int64)
    with VoteLog(tmp_path, SETTINGS, source_of(slow)) as log:
        held = Spread(slow, pool)
        reading = certify(held, images, labels, SETTINGS, rows=128, meter=Ledger(log), log=log)
        found = [next(reading)]
        os.kill(pool.processes()[0], signal.SIGKILL)
        found += reading

    assert pool.lost == 1
    votes = read_votes(tmp_path)
    assert sum(e.rows for e in votes.entries) == 12 * 840
    assert votes.unanswered in (0, 128)  # it was between two calls, or at work
    found = sorted((replace(c, seconds=0.0) for c in found), key=lambda c: c.index)
    assert [replace(c, source=found[0].source) for c in certified(CLASSIFIER)] == found


def test_estimators_and_images_travel(pool: Pool) -> None:
    points = np.random.default_rng(0).random((40, 4))
    estimator = LogisticRegression().fit(points, np.arange(40) % 3)
    classifier = SklearnClassifier(estimator)
    batch = torch.rand(300, 1, 2, 2)

    assert torch.equal(Spread(classifier, pool)(batch), classifier(batch))
    assert certified(Spread(classifier, pool)) == certified(classifier)
