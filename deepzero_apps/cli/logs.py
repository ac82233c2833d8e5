"""What is told on standard error: log lines, warnings and progress bars, by one console.

A bar is drawn again below every line that its own console prints; one that anybody else prints
would tear it. So all of them ask `console()`. Modules log to ``logging.getLogger(__name__)``;
`logging_on` shows the records of this package and of the solvers, one line a record::

    14:02:11 info deepzero_apps.cli.driving: continues after step 120
"""

__all__ = ["console", "logging_on", "one_console", "timed"]

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console

from deepzero_apps.foreign import printable

_PACKAGES = ("deepzero_apps", "solvers")
_SHARED: ContextVar[Console | None] = ContextVar("console of standard error", default=None)


def console() -> Console:
    """Returns the console of standard error that the running command shares."""
    return _SHARED.get() or _new()


@contextmanager
def one_console() -> Iterator[Console]:
    """Makes one console of standard error for the time of a command; warnings go there too."""
    shared = _new()
    token = _SHARED.set(shared)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _warn(shared, message)
        try:
            yield shared
        finally:
            _SHARED.reset(token)


@contextmanager
def logging_on(level: str) -> Iterator[None]:
    """Shows the package's log records from a level on, for the time of a command.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; the latter silences warnings too.
    """
    handler = _Lines(console())  # other threads must not look for it: they have no context
    loggers = [logging.getLogger(name) for name in _PACKAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


@contextmanager
def timed(logger: logging.Logger, what: str) -> Iterator[None]:
    """Logs, for debugging, how long a block took.

    Args:
        logger: Where to.
        what: What the block did.
    """
    started = time.perf_counter()
    yield
    logger.debug("%s took %.3f s", what, time.perf_counter() - started)


class _Lines(logging.Handler):
    """Prints a record in one line, however narrow the terminal, above any bar."""

    def __init__(self, shared: Console) -> None:
        super().__init__()
        self._shared = shared

    def emit(self, record: logging.LogRecord) -> None:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        try:
            text = f"{at} {record.levelname.lower()} {record.name}: {record.getMessage()}"
            self._shared.print(text, markup=False, highlight=False)
        except Exception:  # noqa: BLE001 - what cannot be told must not stop what is done
            self.handleError(record)


def _warn(shared: Console, message: Warning | str) -> None:
    if logging.getLogger(_PACKAGES[0]).isEnabledFor(logging.WARNING):
        shared.print(f"warning: {message}", markup=False)


def _new() -> Console:
    return _Guarded(stderr=True, soft_wrap=True, emoji=False)


class _Guarded(Console):
    """Shows what files and services say, and obeys none of it."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - rich's
        shown = (printable(each) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)
