r"""The workers' side of a classifier that many processes hold: what each of them does.

A booth gets the classifier once, by Ray's own means, and refuses one that is not what the asking
process has: another fingerprint, or another version of torch, which may round in another way. It
then answers images, or forms noisy copies of images that it holds and sends back counts alone. A
classifier's errors are answers too: they come with the repetitions that were paid for, and the one
who asks decides what they stop.
"""

__all__ = ["Booth", "Held", "Noisy", "Reply"]

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.adapters import as_one_of, ask, charge_retries
from deepzero_apps.smoothing.answers import Classifier, ClassifierError
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.tallies import Call, Teller
from deepzero_apps.workers import Shared
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """What every booth holds.

    Args:
        classifier: The black box.
        fingerprint: Its fingerprint in the process that asks.
        torch_version: The version of torch there.
        device: The type of device that noise is drawn on and networks run on.
        copies: How many booths there are.
    """

    classifier: Classifier
    fingerprint: str
    torch_version: str
    device: str
    copies: int


@dataclass(frozen=True)
class Noisy:
    """What noisy copies are formed of.

    Args:
        images: All images, an array ``(n, channel, height, width)``.
        settings: Noise and seed.
    """

    images: Shared
    settings: Settings


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What comes back of a call.

    Args:
        answer: The answer, or the classifier's error in its place.
        repeats: Queries that were repeated.
        seconds: Time spent on it.
    """

    answer: T | ClassifierError | BudgetExhausted
    repeats: int
    seconds: float


class Booth:
    """A worker's object: answers for the classifier that it is sent.

    Args:
        folder: Where modules and files of the user's own are found: the working directory of the
            process that asks. A machine that has no such folder does without.
    """

    def __init__(self, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
            sys.path.insert(0, folder)
        self._held: tuple[int, Held] | None = None
        self._teller: tuple[tuple[int, int, Settings], Teller] | None = None

    def answer(self, held: Shared, images: Tensor, repeats: int | None) -> Reply[Tensor]:
        """Answers images.

        Args:
            held: The classifier, a `Held`.
            images: Images ``(n, channel, height, width)`` on the CPU.
            repeats: The most queries that may be repeated; None for no limit.

        Returns:
            The answer, on the CPU.
        """

        def answered(here: Held) -> Tensor:
            return ask(here.classifier, images.to(here.device)).cpu()

        return self._reply(held, answered, repeats)

    def count(
        self, held: Shared, noisy: Noisy, call: Call, repeats: int | None
    ) -> Reply[np.ndarray]:
        """Forms noisy copies, asks, and counts.

        Args:
            held: The classifier, a `Held`.
            noisy: Images and noise.
            call: Which votes.
            repeats: The most queries that may be repeated; None for no limit.

        Returns:
            Counts, as in `Tally`.
        """

        def counted(here: Held) -> np.ndarray:
            known = held.number, noisy.images.number, noisy.settings
            if self._teller is None or self._teller[0] != known:
                images, device = noisy.images.value(), torch.device(here.device)
                teller = Teller(here.classifier, images, noisy.settings, device=device)
                self._teller = known, teller
            _, teller = self._teller
            return teller.count(teller.form(call), call)

        return self._reply(held, counted, repeats)

    def _reply(self, held: Shared, work: Callable[[Held], T], repeats: int | None) -> Reply[T]:
        started, meter = time.perf_counter(), Meter(repeats)
        answer: T | ClassifierError | BudgetExhausted
        try:
            here = self._opened(held)
            charge_retries(here.classifier, meter)
            answer = work(here)
        except (ClassifierError, BudgetExhausted) as error:
            answer = error
        return Reply(answer, meter.spent, time.perf_counter() - started)

    def _opened(self, held: Shared) -> Held:
        """Gives what is held; opens it at the first call."""
        if self._held is not None and self._held[0] == held.number:
            return self._held[1]
        try:
            found: Held = held.value()
        except Exception as error:  # whatever a module of the user's own raises when it is run
            raise ClassifierError(
                f"a worker cannot open the classifier: {type(error).__name__}: {error}; modules "
                "and files that it needs must be on every machine, in the same place"
            ) from error
        for what, here, there in (
            ("fingerprint", found.classifier.fingerprint, found.fingerprint),
            ("torch version", str(torch.__version__), found.torch_version),
        ):
            if here != there:
                raise ClassifierError(
                    f"the classifier of a worker must have {what} {there}, got {here}; install "
                    "the same versions, and the same files, on every machine"
                )
        as_one_of(found.classifier, found.copies, threads=torch.get_num_threads())
        self._held = held.number, found
        return found
