"""The flags of verbs that evaluate: how many workers, and where."""

__all__ = ["SideBySideFlags", "WorkersFlags", "batch_of_runs"]

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import joblib
from pydantic import Field, model_validator

from deepzero_apps.cli.allocator import keep_freed_memory
from deepzero_apps.cli.settings import CommonSettings, Misuse

if TYPE_CHECKING:
    from deepzero_apps.workers import Pool, Where


class WorkersFlags(CommonSettings):
    """Fields of every verb that evaluates."""

    workers: int | None = Field(None, ge=1, le=100_000)
    """Evaluate in this many processes, by Ray; with --cluster all that it has room for."""

    cluster: str | None = None
    """Evaluate on a running Ray cluster: auto, HOST:PORT or ray://HOST:PORT."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.cluster is not None and not self.cluster.strip():
            raise ValueError("--cluster must be auto, HOST:PORT or ray://HOST:PORT, got nothing")
        most = max(16, 8 * (os.cpu_count() or 1))
        if self.cluster is None and self.workers is not None and self.workers > most:
            raise ValueError(
                f"--workers must be at most {most} on this machine, which has {os.cpu_count()} "
                f"cores, got {self.workers}; each is a process of some 400 MB"
            )
        return self

    @property
    def spreads(self) -> bool:
        """Whether work goes to workers."""
        return self.workers is not None or self.cluster is not None

    def where(self) -> "Where":
        """Says where workers run."""
        from deepzero_apps.workers import Where

        return Where(self.workers, self.cluster, self.threads, self.device)

    @contextmanager
    def pool(self, make: Callable[[], object]) -> Iterator["Pool | None"]:
        """Opens workers for the time of a block; None if there are to be none.

        Args:
            make: Makes each worker's object, in its process.

        Raises:
            Misuse: If Ray is not installed, no cluster answers, it has no GPU, or a GPU is asked
                for by its number.
        """
        if not self.spreads:
            yield None
            return
        from deepzero_apps.workers import Pool

        kind, _, number = self.device.partition(":")
        if number not in ("", "0"):
            raise Misuse(
                f"--device must be {kind} with workers, which get one each, got {self.device}"
            )
        try:
            pool = Pool(partial(_made, make), self.where())
        except (ModuleNotFoundError, ConnectionError, ValueError) as error:
            raise Misuse(f"--workers: {error}") from error
        with pool:
            yield pool


class SideBySideFlags(WorkersFlags):
    """Fields of verbs that compare: whole runs go side by side."""

    workers: int | None = Field(None, ge=1, le=100_000)
    """Runs at a time, each in a process of its own; 2 by default, with --cluster all that it has room for."""

    cluster: str | None = None
    """Run on a Ray cluster, whose machines share what runs write: auto, HOST:PORT or ray://HOST:PORT."""


def _made(make: Callable[[], object]) -> object:
    """Makes a worker's object, in its process."""
    keep_freed_memory()
    return make()


Run = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function with its arguments, as `joblib.delayed` notes it down."""


class _Runner:
    """A worker that runs whole commands."""

    def run(self, function: Callable[..., Any], *arguments: object, **named: object) -> Any:  # noqa: ANN401
        return function(*arguments, **named)


@contextmanager
def batch_of_runs(
    settings: SideBySideFlags, *, usual: int = 2, ordered: bool = True
) -> Iterator[Callable[[Iterable[Run]], Iterable[Any]]]:
    """Gives what runs whole commands side by side: in processes here, or on a Ray cluster.

    Runs must be able to go on where they were: one whose worker dies is made again.

    Args:
        settings: How many, and where.
        usual: How many by default.
        ordered: Whether results are a list in the order of the runs, or come each when it is there.

    Yields:
        What takes runs (`joblib.delayed`) and gives their results.

    Raises:
        Misuse: If a cluster is asked for and Ray is not installed or does not answer.
    """
    if settings.cluster is None:
        count = settings.workers or usual
        as_what = "list" if ordered else "generator_unordered"
        yield joblib.Parallel(n_jobs=count, batch_size=1, pre_dispatch=count, return_as=as_what)
        return
    with settings.pool(_Runner) as pool:
        assert pool is not None  # a cluster was asked for

        def results(runs: Iterable[Run]) -> Iterable[Any]:
            calls = [(partial(f, **named), *arguments) for f, arguments, named in runs]
            answers = pool.ask("run", calls)
            return dict(sorted(answers)).values() if ordered else (a for _, a in answers)

        yield results
