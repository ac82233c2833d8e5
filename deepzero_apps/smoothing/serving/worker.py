"""One thread that asks the classifier, for many requests at once where that pays.

*Packing.* Predictions that wait and agree in their settings share a call until their votes fill
it: ten requests of 100 votes cost one call of 1,000 rows instead of ten. A certificate runs alone.

*Noise.* A certificate holds with probability 1 - alpha over the noise, for an image that was
chosen without knowing it. So nobody may foresee it: by default each call draws a fresh secret
seed, and images have places in the call. With a seed given, an image's own seed is a keyed hash
of its pixels: the same image always meets the same noise, another image independent one, and
who does not know the key can foresee neither. (A counter would be foreseeable from one answer,
and would let a client ask again until the answer pleases.) Either way the answer tells seed and
place, from which `predict` and `certify` give it again.

*Bound.* Whoever submits holds a place; there are as many as the queue is long.
"""

__all__ = ["Abandoned", "Closing", "Counts", "Overloaded", "Worker"]

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import Classifier, ClassifierError
from deepzero_apps.smoothing.blackbox import ask
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.certify import certify, predict
from deepzero_apps.smoothing.serving.jobs import Answer, Certifying, Predicting
from deepzero_apps.zeroth_order.oracle import BudgetExhausted

_SEED_BITS = 53
"""Exact in every JSON reader, also one whose numbers are all floating."""

_MEMORY = 0.8
"""Weight of the past in the running cost of a vote."""

_LONGEST_WAIT = 600


class Overloaded(Exception):
    """No place is free.

    Args:
        retry_after: Seconds until what waits will be answered, about.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"all places are taken; ask again in about {retry_after} s")
        self.retry_after = retry_after


class Closing(Exception):
    """The service stops, and this request will not be answered."""


class Abandoned(ClassifierError):
    """Nobody waits for the votes any more, so that no more are asked for."""


@dataclass
class Counts:
    """What a worker has done.

    Args:
        votes: Rows shown to the classifier.
        packs: Packs of jobs answered together.
        jobs: Jobs in them.
        seconds: Time spent on them.
        failures: Packs that the classifier failed.
    """

    votes: int = 0
    packs: int = 0
    jobs: int = 0
    seconds: float = 0.0
    failures: int = 0


class Worker:
    """Answers jobs in a thread of its own, first come first served, packed.

    Args:
        classifier: The black box, on ``device``.
        places: The most jobs inside at once, at least 1.
        rows: Rows a call, at least 1.
        device: Where noise is drawn and votes are counted.
        seed: Makes answers a function of the images alone; secret entropy by default.

    Raises:
        ValueError: If ``places``, ``rows`` or ``seed`` is out of range.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        places: int,
        rows: int = 1024,
        device: str = "cpu",
        seed: int | None = None,
    ) -> None:
        if places < 1 or rows < 1:
            raise ValueError(f"places and rows must be at least 1, got {places} and {rows}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.counts = Counts()
        self._classifier = _Watched(classifier, self)
        self._places, self._rows, self._device, self._seed = places, rows, device, seed
        self._inside, self._closing, self._expired = 0, False, False
        self._vote_seconds = 0.0
        self._changed = Condition()
        self._waiting: deque[Predicting | Certifying] = deque()
        self._running: list[Predicting | Certifying] = []
        self._thread = Thread(target=self._run, name="votes", daemon=True)
        self._thread.start()

    @property
    def fingerprint(self) -> str:
        """The classifier's fingerprint when the worker was made."""
        return self._classifier.fingerprint

    @property
    def closing(self) -> bool:
        """Whether new jobs are refused for good."""
        return self._closing

    @property
    def inside(self) -> int:
        """The places that are taken."""
        return self._inside

    @contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place for as long as the context lasts.

        Raises:
            Overloaded: If none is free.
            Closing: If the worker is closing.
        """
        with self._changed:
            if self._closing:
                raise Closing("the service is stopping")
            if self._inside >= self._places:
                raise Overloaded(self._wait())
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()  # a closing worker waits for the last one to leave

    def submit(self, job: Predicting | Certifying) -> None:
        """Queues a job; its future gets the answer, or the error.

        Args:
            job: The job; its submitter holds a place.

        Raises:
            Closing: If a closing worker has given up its jobs.
        """
        with self._changed:
            if self._expired:
                raise Closing("the service is stopping")
            self._waiting.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """Refuses places from now on; what is inside is still answered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def expire(self) -> None:
        """Gives up what is still unanswered, with `Closing`."""
        with self._changed:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
            self._expired = True
            self._changed.notify_all()
        for job in left:
            job.fail(Closing("the service stopped before the votes were counted"))
            job.abandoned = True

    def join(self, timeout: float) -> bool:
        """Waits for the thread of a closed worker.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it ended.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abandoned(self) -> bool:
        """Says whether nobody waits for what is being asked."""
        return all(job.abandoned for job in self._running)

    def _wait(self) -> int:
        votes = sum(job.votes for job in (*self._waiting, *self._running))
        return min(max(1, math.ceil(votes * self._vote_seconds)), _LONGEST_WAIT)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._expired or (self._closing and self._inside == 0):
                        return
                    self._changed.wait()
                self._running = self._pack()
            if self._running:
                self._answer(self._running)
            with self._changed:
                self._running = []

    def _pack(self) -> list[Predicting | Certifying]:
        """Takes the first job, and predictions that may share its call."""
        head = self._waiting.popleft()
        if head.abandoned:
            return []
        if isinstance(head, Certifying) or self._seed is not None:
            return [head]
        pack: list[Predicting | Certifying] = [head]
        votes = head.votes
        for job in tuple(self._waiting):
            alike = isinstance(job, Predicting) and job.settings == head.settings
            if alike and not job.abandoned and votes + job.votes <= self._rows:
                votes += job.votes
                pack.append(job)
                self._waiting.remove(job)
        return pack

    def _answer(self, pack: list[Predicting | Certifying]) -> None:
        start, votes = time.perf_counter(), self.counts.votes
        outcome: list[Any] | Exception
        try:
            outcome = self._outcome(pack)
        except Exception as error:
            self.counts.failures += not isinstance(error, Abandoned)
            if not isinstance(error, ClassifierError | BudgetExhausted):
                logging.getLogger(__name__).error("votes were not counted", exc_info=error)
            outcome = error  # for those who wait; the thread lives on
        self._charge(len(pack), self.counts.votes - votes, time.perf_counter() - start)
        for place, job in enumerate(pack):
            if isinstance(outcome, Exception):
                job.fail(outcome)
            else:
                job.succeed(outcome[place])

    def _outcome(self, pack: list[Predicting | Certifying]) -> list[Any]:
        head = pack[0]
        return [self._certificate(head)] if isinstance(head, Certifying) else self._predict(pack)

    def _charge(self, jobs: int, votes: int, seconds: float) -> None:
        self.counts.packs += 1
        self.counts.jobs += jobs
        self.counts.seconds += seconds
        if votes:
            past = self._vote_seconds or seconds / votes
            self._vote_seconds = _MEMORY * past + (1 - _MEMORY) * seconds / votes

    def _predict(self, pack: Sequence[Predicting | Certifying]) -> list[list[Answer]]:
        images, settings = torch.cat([job.images for job in pack]), pack[0].settings
        if self._seed is None:
            answers = self._predictions(images, settings, secrets.randbits(_SEED_BITS))
        else:
            answers = [
                self._predictions(image[None], settings, self._seed_of(image))[0]
                for image in images
            ]
        left = iter(answers)
        return [list(islice(left, len(job.images))) for job in pack]

    def _predictions(self, images: Tensor, settings: Settings, seed: int) -> list[Answer]:
        labels = predict(
            self._classifier,
            images,
            replace(settings, seed=seed),
            rows=self._rows,
            device=self._device,
        )
        return [Answer(int(label), seed, place) for place, label in enumerate(labels)]

    def _certificate(self, job: Certifying) -> Certificate:
        seed = secrets.randbits(_SEED_BITS) if self._seed is None else self._seed_of(job.images[0])
        certificates = certify(
            self._classifier,
            job.images,
            torch.tensor([job.label or 0]),
            replace(job.settings, seed=seed),
            rows=self._rows,
            device=self._device,
        )
        for certificate in certificates:
            return certificate
        raise BudgetExhausted("the budget ended before the votes were complete")

    def _seed_of(self, image: Tensor) -> int:
        key = str(self._seed).encode()
        digest = hmac.new(key, image.contiguous().numpy().tobytes(), hashlib.sha256).digest()
        return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


class _Watched:
    """A classifier that counts its rows, keeps its fingerprint and stops when nobody waits."""

    def __init__(self, classifier: Classifier, worker: Worker) -> None:
        self._classifier, self._worker = classifier, worker
        self.classes = classifier.classes
        self.fingerprint = classifier.fingerprint  # hashing weights at every request would cost

    def __getattr__(self, name: str) -> object:
        return getattr(self._classifier, name)

    def __call__(self, images: Tensor, /) -> Tensor:
        if self._worker.abandoned():
            raise Abandoned("nobody waits for these votes")
        answer = ask(self._classifier, images)
        self._worker.counts.votes += len(images)
        return answer
