"""Services that are slow on purpose, or pack too much: an attempt ends when it should."""

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from deepzero_apps.smoothing.services.deadline import Deadline
from deepzero_apps.smoothing.services.service import Service
from deepzero_apps.smoothing.services.transport import Courier, Undelivered

Conversation = Callable[[socket.socket], None]


@contextmanager
def listening(converse: Conversation) -> Iterator[str]:
    """A service that does this with every connection, after it has read a request."""

    def serve() -> None:
        while True:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    converse(connection)
            if listener.fileno() < 0:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)


def delivered(url: str, **settings: float) -> bytes:
    given = {"retries": 0, **settings}
    courier = Courier(Service.model_validate({"url": url, "classes": ["a", "b"], **given}))
    try:
        return courier.deliver(b"{}", bytes, charge=lambda _: None, stop=threading.Event())
    finally:
        courier.close()


def drip(text: bytes, pause: float) -> Conversation:
    def converse(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(pause)

    return converse


def said(body: bytes, *headers: str) -> Conversation:
    head = "".join(
        f"{line}\r\n" for line in ("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers)
    )
    return lambda connection: connection.sendall(head.encode() + b"\r\n" + body)


@pytest.mark.parametrize(
    "part", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99, b"HTTP/1.1 1" + b"0" * 99]
)
def test_headers_that_come_byte_by_byte_end_with_the_attempt(part: bytes) -> None:
    # Each byte comes within the time of one read; all of them take ten times as long as an attempt.
    with listening(drip(part, 0.05)) as url:
        started = time.monotonic()
        with pytest.raises(Undelivered, match=r"within 0.5 s"):
            delivered(url, timeout=0.5)
        assert time.monotonic() - started < 2


def test_an_answer_within_the_deadline_arrives() -> None:
    with listening(said(b'{"a": 1}')) as url:
        assert delivered(url, timeout=5) == b'{"a": 1}'


def test_a_body_packed_twice_is_not_unpacked() -> None:
    zeros = gzip.compress(gzip.compress(bytes(200 * 2**20)))  # 200 MiB in less than 1 KiB
    assert len(zeros) < 2**10
    with listening(said(zeros, "Content-Encoding: gzip, gzip")) as url:
        tracemalloc.start()
        try:
            with pytest.raises(Undelivered, match="packed in a way that was not asked for"):
                delivered(url)
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        finally:
            tracemalloc.stop()


def test_a_body_packed_once_is_cut_off_at_its_limit() -> None:
    body = gzip.compress(bytes(100 * 2**20))
    with (
        listening(said(body, "Content-Encoding: gzip")) as url,
        pytest.raises(Undelivered, match="a body of more than 67,108,864 bytes"),
    ):
        delivered(url, timeout=20)


def test_a_redirect_takes_no_credential_along(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setenv("KEY", "hunter2hunter2")

    def elsewhere(connection: socket.socket) -> None:
        seen.append(b"asked")
        said(b"{}")(connection)

    with listening(elsewhere) as other:
        moved = (
            b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: " + other.encode() + b"\r\n\r\n"
        )
        with listening(lambda connection: connection.sendall(moved)) as url:
            service = {
                "url": url,
                "classes": ["a", "b"],
                "headers": {"Authorization": "Bearer ${KEY}"},
            }
            courier = Courier(Service.model_validate(service))
            with pytest.raises(Exception, match="redirects are not followed"):
                courier.deliver(b"{}", bytes, charge=lambda _: None, stop=threading.Event())
            courier.close()
    assert seen == []


def test_without_a_deadline_a_read_keeps_its_own_time() -> None:
    with httpx.Client() as client:
        deadline = Deadline(client)
        assert deadline.left(3.0) == 3.0
        assert deadline.left(None) is None
        with deadline.within(10):
            left = deadline.left(None)
            assert left is not None
            assert 9 < left <= 10
            assert deadline.left(3.0) == 3.0
