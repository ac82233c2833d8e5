"""Processes that hold an object each, are asked, die and are replaced.

A *worker* is an object made once in a process of its own: a network with its images, a simulator,
a classifier. It answers *calls*, whose answers must depend on their arguments alone, for a call
whose worker dies (its process is killed, its machine goes) is made again by another. So a
caller sees every answer once, late perhaps, and never a part of one.

Ray places the processes, starts them, notices deaths and moves bytes. What stays here is a queue: a
worker gets its next call when it has answered the last, so that fast ones do more. A lost worker is
replaced as soon as the cluster has room for another; until then the others do its work.
"""

__all__ = ["Pool", "Shared", "WorkersLost"]

import logging
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any, Self

from deepzero_apps.workers.where import Connection, Where

_log = logging.getLogger(__name__)

_DEATHS = 8
"""Workers that may die of one call before we give up."""

_FAILED_STARTS = 10
"""Workers that may die at their start, without any success in between, before we give up."""

_LOOK = 5.0
"""Seconds between looks at a cluster that has no worker to offer."""


class WorkersLost(RuntimeError):
    """No worker is left, or workers die of one call again and again."""


@dataclass(frozen=True)
class Shared:
    """A value that travels once to each machine, however often it is an argument.

    Attributes:
        number: Tells values of one pool apart.
    """

    number: int
    _reference: tuple[Any, ...]

    def value(self) -> Any:  # noqa: ANN401 - whatever was shared
        """Returns the value, inside of a worker; numpy arrays in it are read-only."""
        import ray

        return ray.get(self._reference[0])


@dataclass
class _Call:
    number: int
    method: str
    arguments: tuple[Any, ...]
    deaths: int = 0


@dataclass(eq=False, frozen=True)
class _Worker:
    actor: Any


class Pool:
    """Workers that answer calls; a context manager.

    Args:
        make: Makes a worker's object, in its process. It travels by Ray's own means: a function
            or class of a module that the workers can import, or a `functools.partial` of one.
        where: How many workers, and on which machines.
        patience: Seconds to wait for the first worker, or for another when all are lost.

    Attributes:
        count: The number of workers that are wanted.
        lost: How many have died so far.
        again: Told the number of a call before it is made again because its worker died. Set by
            those who pay for calls: if it raises, the call is dropped, and `take` passes the error on.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If no cluster answers at the address.

    Example:
        >>> with Pool(list, Where(2)) as pool:  # doctest: +SKIP
        ...     answers = pool.ask("__len__", [(), ()])
    """

    def __init__(
        self, make: Callable[[], object], where: Where, *, patience: float = 300.0
    ) -> None:
        self._connection = Connection(where)
        self._ray = self._connection.ray
        self.count = self._connection.count
        self.lost = 0
        self.again: Callable[[int], None] | None = None
        self._patience = patience
        self._made = self._ray.put(make)
        self._kind = self._ray.remote(**self._connection.options)(_Member)
        self._threads = where.threads
        self._numbers = count()
        self._queue: deque[_Call] = deque()
        self._starting: dict[Any, _Worker] = {}
        self._idle: list[_Worker] = []
        self._running: dict[Any, tuple[_Worker, _Call]] = {}
        self._abandoned: set[int] = set()
        self._failed_starts = 0
        self._warned: set[str] = set()
        self._interrupted = False
        self._before: Any = None
        for _ in range(self.count):
            self._start()

    def close(self) -> None:
        """Ends all workers, and the Ray that was started for them."""
        for worker in self._workers():
            self._kill(worker)
        self._idle, self._starting, self._running = [], {}, {}
        self._queue.clear()
        self._connection.close()

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self.close()

    def _interrupt(self, *_: object) -> None:
        # where Python runs a finalizer at that moment, the error is lost: `take` raises it again
        self._interrupted = True
        raise KeyboardInterrupt

    @property
    def waiting(self) -> int:
        """The number of calls without an answer yet."""
        running = sum(call.number not in self._abandoned for _, call in self._running.values())
        return len(self._queue) + running

    def share(self, value: object) -> Shared:
        """Puts a value where all workers can have it; it lives as long as what is returned."""
        return Shared(next(self._numbers), (self._ray.put(value),))

    def put(self, method: str, *arguments: object) -> int:
        """Queues a call.

        Args:
            method: The name of a method of the workers' objects.
            *arguments: Its arguments; what is large or repeated should be `Shared`.

        Returns:
            The call's number, by which `take` names its answer.
        """
        call = _Call(next(self._numbers), method, arguments)
        self._queue.append(call)
        self._hand_out()
        return call.number

    def take(self) -> tuple[int, Any]:
        """Waits for the next answer, of whichever call.

        Returns:
            The number of the call, and the answer.

        Raises:
            LookupError: If no call is waiting.
            WorkersLost: If no worker could be had, or several died of one call.
            Exception: What the worker's method, or the making of its object, raised.
        """
        if not self.waiting:
            raise LookupError("take must follow put: no call is waiting for an answer")
        idle_since = time.monotonic()
        while True:
            if self._interrupted:
                self._interrupted = False
                raise KeyboardInterrupt
            self._hand_out()
            watched = [*self._running, *self._starting]
            ready, _ = self._ray.wait(watched, num_returns=1, timeout=_LOOK)
            if self._running or ready:
                idle_since = time.monotonic()
            self._wait_for_room(time.monotonic() - idle_since)
            for reference in ready:
                if reference in self._starting:
                    self._started(reference)
                else:
                    answered = self._answered(reference)
                    if answered is not None:
                        self._hand_out()  # nobody waits for whoever reads the answer
                        return answered

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        """Makes calls and passes answers on as they come.

        Args:
            method: The name of a method of the workers' objects.
            calls: The arguments of each call.

        Yields:
            The place of a call in ``calls``, and its answer.

        Raises:
            WorkersLost: As `take`.
            Exception: As `take`.
        """
        places = {self.put(method, *arguments): place for place, arguments in enumerate(calls)}
        try:
            while places:
                number, answer = self.take()
                yield places.pop(number), answer
        finally:
            self.abandon(places)

    def abandon(self, numbers: Collection[int] | None = None) -> None:
        """Forgets calls that wait for an answer: what workers still do of them is not looked at.

        Args:
            numbers: The calls; all by default.
        """
        queued = [] if numbers is None else [c for c in self._queue if c.number not in numbers]
        running = {call.number for _, call in self._running.values()}
        self._queue = deque(queued)
        self._abandoned |= running if numbers is None else running.intersection(numbers)

    def processes(self) -> list[int]:
        """Returns the process ids of the workers that are at hand, on whichever machines."""
        at_hand = [w for w in self._workers() if w not in self._starting.values()]
        ids: list[int] = self._ray.get([w.actor.process.remote() for w in at_hand])
        return ids

    def _workers(self) -> list[_Worker]:
        running = {id(w): w for w, _ in self._running.values()}
        return [*self._starting.values(), *self._idle, *running.values()]

    def _start(self) -> None:
        actor = self._kind.remote()
        self._starting[actor.start.remote([self._made], self._threads, sys.path)] = _Worker(actor)

    def _started(self, reference: Any) -> None:  # noqa: ANN401 - Ray's reference
        worker = self._starting.pop(reference)
        try:
            self._told(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, self._ray.exceptions.RayError):
                raise WorkersLost(
                    f"workers must be able to import what they hold: {_last_line(cause)}"
                ) from None
            raise cause from None
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise WorkersLost(
                    f"workers must start, got {_FAILED_STARTS} that died at it in a row: "
                    f"{_first_line(error)}"
                ) from error
            self._replace(worker)
            return
        self._failed_starts = 0
        self._idle.append(worker)

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            worker, call = self._idle.pop(), self._queue.popleft()
            reference = worker.actor.answer.remote(call.method, *call.arguments)
            self._running[reference] = worker, call

    def _wait_for_room(self, seconds: float) -> None:
        if seconds > self._patience:
            raise WorkersLost(
                f"workers must have room in the cluster, got none within {self._patience:.0f} s; "
                "add nodes, or ask for fewer threads or GPUs"
            )
        if seconds > _LOOK:
            _log.warning("no worker is ready since %.0f s; waiting", seconds)

    def _answered(self, reference: Any) -> tuple[int, Any] | None:  # noqa: ANN401 - Ray's reference
        worker, call = self._running.pop(reference)
        wanted = call.number not in self._abandoned
        self._abandoned.discard(call.number)
        try:
            answer = self._told(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            if wanted:
                raise _cause(error) from None
            return None
        except self._ray.exceptions.RayError as error:
            self._replace(worker)
            if wanted:
                self._make_again(call, error)
            return None
        self._idle.append(worker)
        return (call.number, answer) if wanted else None

    def _make_again(self, call: _Call, error: Exception) -> None:
        call.deaths += 1
        if call.deaths >= _DEATHS:
            raise WorkersLost(
                f"a worker must survive a call of {call.method}, got {_DEATHS} that died of the "
                f"same one: {_first_line(error)}"
            ) from error
        if self.again is not None:
            self.again(call.number)
        _log.info("a worker is lost (%s); its work is done again", _first_line(error))
        self._queue.appendleft(call)

    def _replace(self, worker: _Worker) -> None:
        self.lost += 1
        self._kill(worker)  # one that is only out of reach must not come back
        self._start()

    def _kill(self, worker: _Worker) -> None:
        try:
            self._ray.kill(worker.actor, no_restart=True)
        except (self._ray.exceptions.RayError, ValueError, RuntimeError):
            _log.debug("a lost worker could not be told to end", exc_info=True)

    def _told(self, answer: tuple[Any, list[tuple[str, type[Warning]]]]) -> Any:  # noqa: ANN401
        """Passes on what a worker warned of, once, and returns its answer."""
        value, warned = answer
        for text, kind in warned:
            if text not in self._warned:
                self._warned.add(text)
                warnings.warn(text, kind, stacklevel=4)
        return value


class _Member:
    """A worker's process: makes the object, and answers for it."""

    def start(self, made: list[Any], threads: int, path: list[str]) -> tuple[None, list[Any]]:
        import ray
        import torch

        torch.set_num_threads(threads)
        sys.path += [place for place in path if place not in sys.path]

        def begin() -> None:
            self._object = ray.get(made[0])()

        return _with_warnings(begin)

    def answer(self, method: str, *arguments: object) -> tuple[Any, list[Any]]:
        return _with_warnings(lambda: getattr(self._object, method)(*arguments))

    def process(self) -> int:
        import os

        return os.getpid()


def _with_warnings(work: Callable[[], Any]) -> tuple[Any, list[tuple[str, type[Warning]]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            answer = work()
        except SystemExit as stop:  # which Ray would take for the death of the worker
            raise ValueError(
                f"a function that was asked left the program (SystemExit: {stop}); it must "
                "return or raise an error"
            ) from None
    return answer, [(str(w.message), w.category) for w in caught]


def _cause(error: Any) -> BaseException:  # noqa: ANN401 - Ray's wrapper of the worker's error
    cause: BaseException = error.cause if isinstance(error.cause, BaseException) else error
    cause.add_note("raised in a worker:\n" + "".join(traceback.format_exception_only(error)))
    return cause


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
