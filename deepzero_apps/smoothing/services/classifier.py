r"""A service as a classifier: batches, requests side by side, lost votes, money.

A batch of images is cut into requests of `Service.batch`, up to `Service.concurrency` of which are
under way at a time; answers keep the order of the images. Three things can become of a request:

- It is answered. Each row stands for itself, and one without a usable answer loses its vote.
- It is not, after all attempts. Its images lose their votes. That is sound, since a lost vote
  counts against every class, and it is expensive, since the votes are paid for.
- It is the `Service.give_up`-th in a row without any answer. Then the service is down, and
  `ClassifierError` stops the work before an outage eats the budget as lost votes.

**Money.** Each image sent is a query, repetitions among them. The caller charges the first attempt
of each image; `meter` is charged for each repetition before it is sent, and where it refuses,
`BudgetExhausted` passes through.
"""

__all__ = ["HttpClassifier"]

import logging
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.answers import NO_VOTE, ClassifierError
from deepzero_apps.smoothing.fingerprint import fingerprint
from deepzero_apps.smoothing.services.decoding import Reader, Reading
from deepzero_apps.smoothing.services.encoding import body
from deepzero_apps.smoothing.services.service import Service
from deepzero_apps.smoothing.services.transport import LARGEST_RESPONSE, Courier, Undelivered

_UNKNOWN_LABELS_NAMED = 10

_log = logging.getLogger(__name__)


class HttpClassifier(Adapter):
    """A prediction service as a black box.

    It answers scores where `Service.scores`, labels otherwise. Its fingerprint covers url,
    protocol, mapping, encoding and classes; neither credentials nor what changes its speed. A
    service that changes behind the same url keeps its fingerprint.

    A copy in another process opens connections of its own, and counts for itself.

    Args:
        service: The description.
        order: The names of the classes in the order in which labels and scores are wanted; that
            of the service by default.
        largest: Bytes that a response may have, unpacked.

    Attributes:
        sent: Images sent so far, repetitions among them.
        failures: Images so far that lost their vote, for whatever reason.
        meter: What repetitions are charged to; set by the caller.

    Raises:
        ValueError: If ``order`` holds other names than the service's.
        ClassifierError: If a variable of the environment that a header needs is missing.
    """

    may_lose = True

    def __init__(
        self,
        service: Service,
        *,
        order: Sequence[str] | None = None,
        largest: int = LARGEST_RESPONSE,
    ) -> None:
        order = service.classes if order is None else tuple(order)
        if sorted(order) != sorted(service.classes):
            raise ValueError(
                f"order must hold the service's classes {service.classes}, got {order}"
            )
        self.service, self.order, self._largest = service, order, largest
        self.classes = len(order)
        self.largest_call = service.batch * service.concurrency
        self.repeats = service.retries
        self.sent = self.failures = 0
        self.meter = None
        self._silent, self._unknown = 0, set[str]()
        self._open()
        self.name = f"service at {self._courier.host}"

    @property
    def fingerprint(self) -> str:
        """A sha256 over what decides the answers, as far as it is known here."""
        return fingerprint("service", self.service.identity(), self.order)

    def become_one_of(self, copies: int, *, threads: int) -> None:  # noqa: ARG002 - it waits
        """Takes its share of the rate, and of the requests at a time, but one at least."""
        rate, concurrency = self.service.rate, max(1, self.service.concurrency // copies)
        share = {"rate": rate and rate / copies, "concurrency": concurrency}
        self.service = self.service.model_copy(update=share)
        self.close()
        self._open()

    def close(self) -> None:
        """Closes the connections."""
        self._courier.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_courier", "_lock", "_reader")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self._courier = Courier(self.service, largest=self._largest)
        self._reader, self._lock = Reader(self.service), threading.Lock()
        weakref.finalize(self, self._courier.close)

    def _answer(self, images: Tensor) -> Tensor:
        parts = images.to("cpu", torch.float32).split(self.service.batch)
        readings = self._readings([part.numpy() for part in parts])
        return torch.from_numpy(self._ordered(np.concatenate([r.values for r in readings])))

    def _readings(self, parts: Sequence[np.ndarray]) -> list[Reading]:
        """Asks for all parts; the first error that stops one of them stops the others."""
        stop = threading.Event()
        with ThreadPoolExecutor(min(self.service.concurrency, len(parts))) as pool:
            futures = [pool.submit(self._sole, part, stop) for part in parts]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()  # raises what stopped it
                return [future.result() for future in futures]
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _sole(self, images: np.ndarray, stop: threading.Event) -> Reading:
        """Asks for one request's images; an error stops the others before their next attempt."""
        try:
            return self._reading(images, stop)
        except BaseException:
            stop.set()
            raise

    def _reading(self, images: np.ndarray, stop: threading.Event) -> Reading:
        """Asks for one request's images."""
        rows, fault = len(images), None

        def charge(attempt: int) -> None:
            with self._lock:
                if attempt > 1 and self.meter is not None:
                    self.meter.charge(rows)
                self.sent += rows

        try:
            reading = self._courier.deliver(
                body(images, self.service),
                lambda content: self._reader(content, rows),
                charge=charge,
                stop=stop,
            )
        except Undelivered as error:
            reading, fault = self._reader.lost(rows), str(error)
        if not stop.is_set():
            self._count(reading, fault)
        return reading

    def _count(self, reading: Reading, fault: str | None) -> None:
        """Counts what is lost; notices that the service is down."""
        lost = int(np.isnan(reading.values[:, 0]).sum()) if self.service.scores else 0
        if not self.service.scores:
            lost = int((reading.values == NO_VOTE).sum())
        with self._lock:
            self.failures += lost
            self._silent = 0 if reading.answered else self._silent + 1
            new = sorted(set(reading.unknown) - self._unknown)
            self._unknown.update(new)
            down = self._silent >= self.service.give_up
        for label in new[: max(0, _UNKNOWN_LABELS_NAMED - len(self._unknown) + len(new))]:
            _log.warning("%s: label %r is no class; its votes are lost", self.name, label)
        if down:
            raise ClassifierError(
                f"the {self.name} does not answer: {self._silent} requests in a row without a "
                f"usable answer, the last with {fault or 'empty rows'}; what was recorded stays, "
                "go on when it is back (--resume)"
            )

    def _ordered(self, values: np.ndarray) -> np.ndarray:
        """Moves the service's classes to the places where they are wanted."""
        if self.order == self.service.classes:
            return values
        if self.service.scores:
            return values[:, [self.service.classes.index(name) for name in self.order]]
        places = np.array([self.order.index(name) for name in self.service.classes] + [NO_VOTE])
        moved: np.ndarray = places[values]  # the last place is that of label -1
        return moved
