"""The worker: right answers however requests are packed, a bound that holds, an end that comes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.smoothing.blackbox import CallableClassifier, ClassifierError
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import certify, predict
from deepzero_apps.smoothing.serving.jobs import Answer, Certifying, Predicting
from deepzero_apps.smoothing.serving.worker import Closing, Overloaded, Worker
from tests.smoothing.serving.subjects import DARK, GRAY, LIGHT, HalfSpace

SETTINGS = Settings(sigma=0.5, n0=10, n=40, alpha=0.01)
PAGES = torch.tensor([LIGHT, GRAY, DARK], dtype=torch.float32)


def classifier(function: HalfSpace) -> CallableClassifier:
    return CallableClassifier(function, classes=2, name="half-space")


@contextmanager
def working(function: HalfSpace, **options: int) -> Iterator[Worker]:
    worker = Worker(classifier(function), **{"places": 4, "rows": 128, **options})
    try:
        yield worker
    finally:
        function.open.set()
        worker.close()
        worker.expire()
        assert worker.join(20)


def wish(images: Tensor = PAGES, settings: Settings = SETTINGS) -> Predicting:
    return Predicting(images=images, settings=settings)


def again(function: HalfSpace, images: Tensor, answers: list[Answer]) -> list[int]:
    """What `predict` says itself with the noise that the answers tell of."""
    found = []
    for image, answer in zip(images, answers, strict=True):
        row = image.expand(answer.place + 1, *image.shape)
        settings = replace(SETTINGS, seed=answer.seed)
        (label,) = predict(classifier(function), row, settings, indices=[answer.place]).tolist()
        found.append(label)
    return found


def test_waiting_predictions_share_a_full_call_and_are_told_apart() -> None:
    function = HalfSpace()
    with working(function) as worker:
        with function.held():
            worker.submit(first := wish())
            assert function.asked.wait(20)
            jobs = [wish(PAGES[:1]), wish(PAGES[2:]), wish(PAGES[:1]), wish(PAGES[1:2])]
            for job in jobs:
                worker.submit(job)
        answers = [job.future.result(20) for job in (first, *jobs)]

    # 3 images of 40 votes; then as many predictions of 40 as 128 rows hold; then the last
    assert function.calls == [120, 120, 40]
    assert [a.label for a in answers[0]][::2] == [1, 0]
    assert [a[0].label for a in answers[1:4]] == [1, 0, 1]
    assert [a[0].place for a in answers[1:]] == [0, 1, 2, 0]
    for job, found in zip((first, *jobs), answers, strict=True):
        assert [a.label for a in found] == again(HalfSpace(), job.images, found)


def test_other_settings_and_certificates_do_not_share() -> None:
    function = HalfSpace()
    with working(function) as worker:
        with function.held():
            worker.submit(first := wish())
            assert function.asked.wait(20)
            other = wish(PAGES[:1], replace(SETTINGS, n=41))
            certificate = Certifying(images=PAGES[:1], settings=SETTINGS)
            mate = wish(PAGES[:1])
            for job in (wish(PAGES[:1]), other, certificate, mate):
                worker.submit(job)
        for job in (first, other, certificate, mate):
            job.future.result(20)

    assert function.calls[:2] == [120, 80]  # the mate passes those that it cannot join
    assert function.calls[2] == 41
    assert sum(function.calls[3:]) == 50


def test_secret_noise_is_fresh_and_seeded_noise_a_function_of_the_image() -> None:
    def seeds(worker: Worker, images: Tensor) -> list[int]:
        worker.submit(job := wish(images))
        return [a.seed for a in job.future.result(20)]

    with working(HalfSpace()) as secret:
        assert seeds(secret, PAGES[:1]) != seeds(secret, PAGES[:1])
    with working(HalfSpace(), seed=3) as one, working(HalfSpace(), seed=4) as other:
        found = seeds(one, PAGES)
        assert len(set(found)) == 3
        assert seeds(one, PAGES.flip(0)) == found[::-1]
        assert not set(seeds(other, PAGES)) & set(found)
        assert all(0 <= seed < 2**53 for seed in found)


@pytest.mark.parametrize("options", [{}, {"seed": 11}])
def test_a_certificate_is_the_one_that_certify_gives_with_its_seed(
    options: dict[str, int],
) -> None:
    function = HalfSpace()
    with working(function, **options) as worker:
        worker.submit(job := Certifying(images=PAGES[:1], settings=SETTINGS, label=1))
        made = job.future.result(20)

    settings = replace(SETTINGS, seed=made.settings.seed)
    (expected,) = certify(classifier(HalfSpace()), PAGES[:1], torch.tensor([1]), settings)
    assert replace(made, seconds=0.0) == replace(expected, seconds=0.0)
    assert made.predicted == 1
    assert made.radius > 0


def test_there_are_as_many_places_as_were_asked_for() -> None:
    with working(HalfSpace(), places=2) as worker:
        with worker.place(), worker.place():
            assert worker.inside == 2
            with pytest.raises(Overloaded, match="ask again in about 1 s"), worker.place():
                pass
        assert worker.inside == 0
        worker.close()
        with pytest.raises(Closing), worker.place():
            pass


def test_the_wait_is_told_from_the_votes_that_wait() -> None:
    class Slow(HalfSpace):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            time.sleep(0.005 * len(images))
            return super().__call__(images)

    function = Slow()
    with working(function, places=1) as worker:
        worker.submit(first := wish(PAGES[:1]))
        first.future.result(20)
        with function.held(), worker.place():
            worker.submit(wish(PAGES, replace(SETTINGS, n=200)))
            with pytest.raises(Overloaded) as caught, worker.place():
                pass
    assert 3 <= caught.value.retry_after <= 6  # 600 votes of 5 ms, and what a busy machine adds


def test_nobody_s_votes_are_not_asked_for() -> None:
    function = HalfSpace()
    long = wish(PAGES, replace(SETTINGS, n=1_000))
    with working(function) as worker:
        with function.held():
            worker.submit(long)
            assert function.asked.wait(20)
            worker.submit(late := wish())
            long.abandoned = late.abandoned = True
        worker.submit(last := wish(PAGES[:1]))
        assert last.future.result(20)[0].label == 1

    assert function.calls == [128, 40]
    assert worker.counts.failures == 0


def test_a_failing_classifier_fails_its_requests_and_not_the_worker() -> None:
    class Broken(HalfSpace):
        def __call__(self, images: object) -> object:  # type: ignore[override]
            if not self.calls:
                self.calls.append(0)
                raise RuntimeError("out of order")
            return super().__call__(images)  # type: ignore[arg-type]

    with working(Broken()) as worker:
        worker.submit(first := wish())
        with pytest.raises(ClassifierError, match="out of order"):
            first.future.result(20)
        worker.submit(second := wish(PAGES[:1]))
        assert second.future.result(20)[0].label == 1
        assert worker.counts.failures == 1


def test_a_defect_reaches_who_waits_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with working(HalfSpace()) as worker:
        worker.submit(bad := wish(PAGES.flatten(1)))
        with pytest.raises(ValueError, match="images must be floating, of shape"):
            bad.future.result(20)
        worker.submit(good := wish(PAGES[:1]))
        assert good.future.result(20)[0].label == 1
    assert "votes were not counted" in caplog.text


def test_a_closing_worker_finishes_what_is_inside_and_ends() -> None:
    function = HalfSpace()
    worker = Worker(classifier(function), places=4, rows=128)
    with function.held(), worker.place():
        worker.submit(first := wish())
        worker.submit(second := wish())
        worker.close()
        assert worker.closing
        function.open.set()
        assert len(first.future.result(20)) == len(second.future.result(20)) == 3
        assert not worker.join(0.05)  # whoever is inside may still submit
        worker.submit(third := wish())
        assert len(third.future.result(20)) == 3
    assert worker.join(20)


def test_an_expired_worker_refuses_what_is_left_and_ends() -> None:
    function = HalfSpace()
    worker = Worker(classifier(function), places=4, rows=128)
    with worker.place(), function.held():
        worker.submit(first := wish(PAGES, replace(SETTINGS, n=1_000)))
        assert function.asked.wait(20)
        worker.submit(second := wish())
        worker.close()
        worker.expire()
        for job in (first, second):
            with pytest.raises(Closing, match="the service stopped"):
                job.future.result(20)
        with pytest.raises(Closing):
            worker.submit(wish())
    assert worker.join(20)
    assert function.calls == [128]


def test_many_threads_lose_and_mix_up_nothing() -> None:
    function = HalfSpace()
    found: dict[tuple[int, int], list[int]] = {}
    with working(function, places=8) as worker:

        def ask(caller: int) -> None:
            order = [(caller + i) % 3 for i in range(20)]
            for turn, page in enumerate(order):
                with worker.place():
                    worker.submit(job := wish(PAGES[[page, 2 - page]]))
                    answers = job.future.result(20)
                found[caller, turn] = [a.label for a in answers]
                assert found[caller, turn] == again(HalfSpace(), job.images, answers)

        threads = [Thread(target=ask, args=(caller,)) for caller in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert len(found) == 80
    assert worker.counts.jobs == 80
    assert worker.counts.votes == 80 * 2 * 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"places": 0}, "places and rows must be at least 1, got 0"),
        ({"places": 1, "rows": 0}, "places and rows must be at least 1"),
        ({"places": 1, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_a_worker_out_of_range_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Worker(classifier(HalfSpace()), **options)  # type: ignore[arg-type]
