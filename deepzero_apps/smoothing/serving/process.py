"""Listens on a port, and stops gracefully: a service as a process.

On SIGTERM or SIGINT no connection is accepted any more and no question taken; what is inside is
answered for at most the seconds of grace, the rest refused with 503; then the process ends with
success. A second SIGINT ends it at once.

Whoever connects must ask within seconds, in headers of at most 16 KiB; whoever only holds a
connection open is hung up on.
"""

__all__ = ["listening", "serve", "server_of"]

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from deepzero_apps.smoothing.serving.worker import Worker

_KEEP_ALIVE = 30
"""Seconds that an idle connection is kept: longer than usual clients keep theirs."""

_BACKLOG = 2048

_LARGEST_HEADERS = 16 * 1024
_PATIENCE = 10.0
"""Seconds that a connection may take from its first byte to the end of its headers."""

_FAREWELL = 1
"""Seconds after the grace for the last refusals to be written."""


def listening(host: str, port: int) -> socket.socket:
    """Binds a port and listens.

    Args:
        host: A name or address of this machine.
        port: The port; 0 for a free one.

    Returns:
        The socket; ``getsockname()`` tells the port.

    Raises:
        OSError: If that cannot be.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # The protocol by its number: asyncio turns off Nagle's algorithm, which costs 40 ms an
    # answer, only on connections that say that they are TCP.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def serve(
    app: FastAPI,
    worker: Worker,
    listener: socket.socket,
    *,
    grace: float,
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        app: The application.
        worker: Its worker, closed in the end.
        listener: From `listening`; closed in the end.
        grace: Seconds for what is inside when the service stops, at least 0.
        announce: Called once, when signals already stop the service gracefully.
    """
    server = server_of(app, worker, grace=grace)
    with _signals_to(server):
        announce()
        server.run(sockets=[listener])
    worker.close()
    worker.expire()
    worker.join(_FAREWELL)


def server_of(app: FastAPI, worker: Worker, *, grace: float) -> uvicorn.Server:
    """Makes the server that `serve` runs; the arguments are the same."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        http=_Impatient,
        h11_max_incomplete_event_size=_LARGEST_HEADERS,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(grace) + _FAREWELL,
    )
    return _Server(config, worker, grace)


class _Impatient(H11Protocol):
    """Hangs up on who does not finish a request's headers, or a body that was refused, in time."""

    _ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._judge()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._judge()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def _judge(self) -> None:
        """Hurries whoever has begun something that nobody here works on; lets others be."""
        cycle: RequestResponseCycle | None = self.cycle
        working = cycle is not None and not cycle.response_complete
        between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if not working and not between:
            self._hurry()
        elif cycle is not None:
            self._relax()

    def _hurry(self) -> None:
        if self._ending is None and not self.transport.is_closing():
            self._ending = self.loop.call_later(_PATIENCE, self.transport.close)

    def _relax(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None


class _Server(uvicorn.Server):
    """Tells the worker first when the service stops."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float) -> None:
        super().__init__(config)
        self._worker, self._grace = worker, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.close()
        asyncio.get_running_loop().call_later(self._grace, self._worker.expire)
        await super().shutdown(sockets)


@contextmanager
def _signals_to(server: uvicorn.Server) -> Iterator[None]:
    """Ends a stopped service with success: uvicorn raises the signal again, to this handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - fixed by `signal`
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
