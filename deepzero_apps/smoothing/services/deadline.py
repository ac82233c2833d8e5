"""One deadline for a whole exchange over HTTP.

A socket's timeout holds for each read. A service that sends a byte of a header now and then meets
it for ever, and the body does not begin. So every read and write is given what is left.
"""

__all__ = ["Deadline"]

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

import httpcore
import httpx


class Deadline:
    """Hurries the connections of a client; each thread has a deadline of its own.

    Args:
        client: The client, before its first request.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._ends = threading.local()
        # Neither httpx nor its transports have a public way to the streams below.
        for transport in (client._transport, *client._mounts.values()):
            pool = getattr(transport, "_pool", None)
            if pool is not None:
                pool._network_backend = _Backend(self, pool._network_backend)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Gives this thread's exchange so many seconds from now, from its first byte to its last."""
        self._ends.at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._ends.at = math.inf

    def left(self, timeout: float | None) -> float | None:
        """Gives the seconds that one read or write may take: no more than are left.

        Raises:
            httpcore.ReadTimeout: If none is left.
        """
        left = getattr(self._ends, "at", math.inf) - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the deadline is over")
        return timeout if left == math.inf else min(left, math.inf if timeout is None else timeout)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline, inner: httpcore.NetworkBackend) -> None:
        self._deadline, self._inner = deadline, inner

    def connect_tcp(  # noqa: PLR0917 - httpcore's
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,  # noqa: ANN401 - httpcore's
    ) -> httpcore.NetworkStream:
        limit = self._deadline.left(timeout)
        return _Stream(
            self._deadline,
            self._inner.connect_tcp(host, port, limit, local_address, socket_options),
        )

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, deadline: Deadline, inner: httpcore.NetworkStream) -> None:
        self._deadline, self._inner = deadline, inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = self._deadline.left(timeout)
        return _Stream(self._deadline, self._inner.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's
        return self._inner.get_extra_info(info)
