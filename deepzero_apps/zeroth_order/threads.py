"""Independent pieces of work in threads, results in order.

Each thread computes with one thread of torch's own: whole pieces side by side use the cores
better than every small operation cut up, and results do not depend on the number of threads.
"""

__all__ = ["in_order"]

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> Generator[Result, None, None]:
    """Applies a function to items, a few ahead of the consumer.

    Args:
        function: What to apply; it must not use torch's random numbers.
        items: The items.
        workers: The number of threads; as many as torch is set to use by default.

    Yields:
        The results, in the order of the items.
    """
    workers = torch.get_num_threads() if workers is None else workers
    if workers == 1:
        yield from map(function, items)
        return
    with _one_thread_each(), ThreadPoolExecutor(workers, initializer=_alone) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(_without_gradients, function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _without_gradients(function: Callable[[Item], Result], item: Item) -> Result:
    with torch.no_grad():  # a setting of each thread
        return function(item)


def _alone() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
