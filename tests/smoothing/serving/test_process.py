"""A port that strangers may try: who does not ask is hung up on, who asks too much is refused."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from deepzero_apps.smoothing.serving import Limits, process
from deepzero_apps.smoothing.serving.application import application
from deepzero_apps.smoothing.serving.process import listening
from deepzero_apps.smoothing.serving.worker import Worker
from tests.smoothing.serving.subjects import LIGHT, subject

PATIENCE = 0.4


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A service in a thread of this process."""
    monkeypatch.setattr(process, "_PATIENCE", PATIENCE)
    what = subject()
    worker = Worker(what.classifier, places=4)
    server = process.server_of(application(what, Limits(), worker), worker, grace=0)
    listener = listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    worker.expire()
    assert worker.join(20)


def held(port: int, text: bytes, pause: float = 0.0) -> tuple[bytes, float]:
    """What comes back, and the seconds until the service hangs up."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        said = b""
        try:
            for byte in [text] if not pause else [text[i : i + 1] for i in range(len(text))]:
                client.sendall(byte)
                time.sleep(pause)
            while part := client.recv(65_536):
                said += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return said, time.monotonic() - started


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        (b"", 0.0),
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n", 0.0),
        (b"GET /v1/health HTTP/1.1\r\nX-Slow: " + b"y" * 1000, 0.01),
    ],
)
def test_who_does_not_finish_to_ask_is_hung_up_on(port: int, text: bytes, pause: float) -> None:
    said, seconds = held(port, text, pause)

    assert said == b""
    assert seconds < 5


def test_after_an_answer_the_same_holds(port: int) -> None:
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(whole)
        said = b""
        while not said.endswith(b"}"):
            said += client.recv(65_536)
        assert said.startswith(b"HTTP/1.1 200")
        client.sendall(whole[:20])
        started = time.monotonic()
        assert client.recv(65_536) == b""
        assert time.monotonic() - started < 5


def test_a_refused_body_that_does_not_end_is_not_waited_for(port: int) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 99999"

    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head + b"\r\n\r\nyyy")
        started = time.monotonic()
        said = b""
        while part := client.recv(65_536):
            said += part
        assert time.monotonic() - started < 5
    assert said.startswith(b"HTTP/1.1 415")


def test_after_a_refused_body_that_ended_there_is_time_to_ask_again(port: int) -> None:
    def from_where(response: httpx.Response) -> object:
        return response.extensions["network_stream"].get_extra_info("client_addr")

    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        refused = client.post("/v1/predict", content=b"y" * 3_000_000)
        assert refused.status_code == 415
        time.sleep(2 * PATIENCE)
        assert from_where(client.get("/v2/health/live")) == from_where(refused)


def test_headers_beyond_their_limit_are_refused(port: int) -> None:
    said, _ = held(port, b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000)

    assert said.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v2/models/..%2f"]
)
def test_no_path_leads_to_a_file(port: int, path: str) -> None:
    said, _ = held(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    assert said.startswith(b"HTTP/1.1 404")
    assert b"root" not in said


def test_who_takes_long_for_a_body_or_between_questions_is_waited_for(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            answer = client.post("/v1/predict", json={"images": [LIGHT]})
            assert answer.status_code == 200
            time.sleep(2 * PATIENCE)

        def slowly() -> Iterator[bytes]:
            yield b'{"images": ['
            time.sleep(2 * PATIENCE)
            yield b"[[[1, 1], [1, 1]]]]}"

        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/predict", content=slowly(), headers=headers).status_code == 200
