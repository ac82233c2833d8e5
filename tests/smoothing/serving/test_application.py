"""The service over HTTP: right answers, one way for all refusals, limits at the door."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.bounds import lower_bound, radius, round_down
from deepzero_apps.smoothing.certify import certify, predict
from deepzero_apps.smoothing.serving import Limits
from deepzero_apps.smoothing.serving.application import application
from deepzero_apps.smoothing.serving.worker import Worker
from tests.smoothing.serving.subjects import DARK, GRAY, LIGHT, HalfSpace, png, subject

PNG = png(np.full((2, 2), 230, dtype=np.uint8))
JSON = {"Content-Type": "application/json"}
TENSOR = {"name": "image", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0.9] * 4}


class Client:
    """Asks an application without a network, each question in an event loop of its own."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._send("GET", path))

    def post(self, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401 - httpx's
        return asyncio.run(self._send("POST", path, **content))

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **content)


@contextmanager
def served(
    function: HalfSpace | None = None, seed: int | None = None, **limits: float
) -> Iterator[tuple[Client, Worker]]:
    function = function or HalfSpace()
    what = subject(function)
    bounds = Limits(**{"images": 3, "body": 4096, **limits})  # type: ignore[arg-type]
    worker = Worker(what.classifier, places=bounds.queue, rows=bounds.rows, seed=seed)
    try:
        yield Client(application(what, bounds, worker)), worker
    finally:
        function.open.set()
        worker.close()
        worker.expire()
        assert worker.join(20)


def test_predictions_are_those_of_the_library_with_the_noise_told() -> None:
    with served() as (client, worker):
        answer = client.post("/v1/predict", json={"images": [LIGHT, PNG, DARK], "n": 60})

        assert answer.status_code == 200
        found = answer.json()
        assert [p["class"] for p in found["predictions"]] == ["light", "light", "dark"]
        assert [p["index"] for p in found["predictions"]] == [1, 1, 0]
        (seed,) = {p["noise"]["seed"] for p in found["predictions"]}
        assert [p["noise"]["place"] for p in found["predictions"]] == [0, 1, 2]
        assert found["classifier"] == subject().classifier.fingerprint
        assert worker.counts.votes == 180

    settings = replace(subject().settings, n=60, seed=seed)
    pages = torch.tensor([LIGHT, [[[230 / 255] * 2] * 2], DARK], dtype=torch.float32)
    assert predict(subject().classifier, pages, settings).tolist() == [1, 1, 0]


def test_an_image_on_the_boundary_is_abstained_from() -> None:
    # Both classes have probability 1/2: an answer would be wrong with probability alpha = .01,
    # and this seed's is not.
    with served(seed=0) as (client, _):
        (one,) = client.post("/v1/predict", json={"images": [GRAY]}).json()["predictions"]
        infer = client.post(
            "/v2/models/halves/infer", json={"inputs": [TENSOR | {"data": [0.5] * 4}]}
        )
    assert (one["class"], one["index"]) == (None, None)
    assert infer.json()["outputs"][0]["data"] == [-1]


def test_a_certificate_comes_back_whole_and_can_be_made_again() -> None:
    with served() as (client, _):
        found = client.post("/v1/certify", json={"image": LIGHT, "label": "light"}).json()

    made = found["certificate"]
    assert found["class"] == "light"
    assert made["radius"] == round_down(radius(lower_bound(made["votes"], 400, 0.01), 0.5)) > 0
    settings = replace(subject().settings, seed=made["settings"]["seed"])
    page = torch.tensor([LIGHT], dtype=torch.float32)
    (expected,) = certify(subject().classifier, page, torch.tensor([1]), settings)
    assert made["votes"] == expected.votes
    assert made["image"] == expected.image
    assert made["correct"] is True


@pytest.mark.parametrize(
    "wishes",
    [
        {"procedure": "decide", "radii": [0.1, 0.4]},
        {"procedure": "adaptive", "radii": [0.25]},
        {"procedure": "anytime"},
    ],
)
def test_a_request_may_choose_its_procedure(wishes: dict[str, object]) -> None:
    with served() as (client, worker):
        answer = client.post("/v1/certify", json={"image": LIGHT, **wishes})

        assert answer.status_code == 200, answer.text
        made = answer.json()["certificate"]
        assert made["settings"]["procedure"] == wishes["procedure"]
        assert made["asked"] == worker.counts.votes <= 410
        assert 0 < made["radius"] < 0.8  # the distance to the boundary


def test_the_open_inference_protocol_is_spoken() -> None:
    with served() as (client, worker):
        assert client.get("/v2").json()["name"] == "deepzero-apps"
        assert client.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/halves/ready", "/v1/health"):
            assert client.get(path).json()["ready"] is True
        assert client.get("/v2/models/halves").json()["inputs"][0]["shape"] == [-1, 1, 2, 2]
        answer = client.post("/v2/models/halves/infer", json={"id": "a", "inputs": [TENSOR]})
        assert answer.json()["outputs"] == [
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]}
        ]
        for path in ("/v2/models/other", "/v2/models/other/ready"):
            assert client.get(path).status_code == 404
        other = client.post("/v2/models/other/infer", json={"inputs": [TENSOR]})
        assert other.json() == {"error": "the model must be halves, got 'other'"}
        worker.close()
        for path in ("/v2/health/ready", "/v2/models/halves/ready", "/v1/health"):
            assert client.get(path).status_code == 503
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"{}", {}, 415, "Content-Type must be application/json, got ''"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type must be application/json"),
        (b"{}", JSON | {"Content-Encoding": "gzip"}, 415, "Content-Encoding must be none"),
        (b"x" * 4097, JSON, 413, "the body must be at most 4096 bytes, got 4097"),
        (b"", JSON | {"Content-Length": "9" * 50}, 413, "the body must be at most 4096 bytes"),
        (b"\xff\xfe\x00", JSON, 400, "the body must be JSON in UTF-8"),
        (b"[" * 4000, JSON, 400, "the body must be JSON in UTF-8"),
        (b'{"images": [[[[NaN, 0], [0, 0]]]]}', JSON, 422, "images.0.0.0.0 must be a finite"),
        (b'{"images": []}', JSON, 422, "images: List should have at least 1 item"),
    ],
)
def test_refusals_are_json_and_name_the_fault(
    content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    with served() as (client, worker):
        answer = client.post("/v1/predict", content=content, headers=headers)

        assert answer.status_code == status
        assert answer.json()["error"].startswith(said)
        assert answer.headers["content-type"] == "application/json"
        assert (worker.counts.votes, worker.inside) == (0, 0)
        assert client.get("/metrics").json()["by_status"] == {str(status): 1}


def test_a_body_without_a_length_is_stopped_while_it_streams_in() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 1_000_000:
            read += 1000
            yield b" " * 1000

    with served() as (client, _):
        answer = client.post("/v1/predict", content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["error"] == "the body must be at most 4096 bytes, got more"
    assert read == 5000


def test_unknown_paths_and_methods_are_refused_as_json() -> None:
    with served() as (client, _):
        assert client.get("/nothing").json() == {"error": "Not Found"}
        answer = client.get("/v1/predict")
        assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})
        assert answer.headers["allow"] == "POST"


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    function = HalfSpace()
    with served(function, queue=1) as (client, worker):
        answers = []
        with function.held():
            first = Thread(
                target=lambda: answers.append(client.post("/v1/predict", json={"images": [LIGHT]}))
            )
            first.start()
            assert function.asked.wait(20)
            refused = client.post("/v1/predict", json={"images": [LIGHT]})
            assert client.get("/metrics").json()["inside"] == 1
            assert client.get("/v2/health/ready").status_code == 200  # the loop is not blocked
        first.join(20)
        assert refused.status_code == 503
        assert refused.json()["error"].startswith("all places are taken")
        assert int(refused.headers["retry-after"]) >= 1
        assert answers[0].json()["predictions"][0]["class"] == "light"
        assert client.get("/metrics").json()["by_status"] == {"200": 1, "503": 1}
        assert worker.inside == 0


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    function = HalfSpace()
    with served(function, timeout=0.2, rows=100) as (client, worker):
        with function.held():
            answer = client.post("/v1/predict", json={"images": [LIGHT], "n": 400})
        assert answer.status_code == 503
        assert "took more than 0.2 s" in answer.json()["error"]
        assert answer.headers["retry-after"] == "5"
        assert worker.inside == 0
        assert client.post("/v1/predict", json={"images": [LIGHT]}).status_code == 200
    assert function.calls == [100, 50]  # three calls that nobody waited for were not made


def test_who_hangs_up_is_not_worked_for() -> None:
    function = HalfSpace()

    async def asked_and_left(app: FastAPI) -> list[dict[str, Any]]:
        body = json.dumps({"images": [LIGHT], "n": 400}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            assert await asyncio.to_thread(function.asked.wait, 20)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/predict",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope, receive, send)
        return sent

    with served(function, rows=100) as (client, worker):
        with function.held():
            sent = asyncio.run(asked_and_left(client.app))
        assert client.post("/v1/predict", json={"images": [LIGHT]}).status_code == 200
        assert client.get("/metrics").json()["by_status"] == {"200": 1, "499": 1}
        assert worker.inside == 0
    assert sent[0]["status"] == 499
    assert function.calls == [100, 50]


def test_a_stopping_service_refuses_with_503() -> None:
    with served() as (client, worker):
        worker.close()
        answer = client.post("/v1/predict", json={"images": [LIGHT]})
    assert (answer.status_code, answer.json()) == (503, {"error": "the service is stopping"})


def test_what_the_classifier_says_of_its_failure_is_for_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(HalfSpace):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            raise ClassifierError(f"secret.example did not take {len(images)} images")

    with served(Broken()) as (client, _):
        for path, body in (("/v1/predict", {"images": [LIGHT]}), ("/v1/certify", {"image": DARK})):
            answer = client.post(path, json=body)
            assert answer.status_code == 502
            assert "secret" not in answer.text
    assert "secret.example" in caplog.text


def test_a_defect_of_ours_is_500_as_json_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as (client, worker):
        monkeypatch.setattr(worker, "submit", None)
        answer = client.post("/v1/predict", json={"images": [LIGHT]})
        assert answer.status_code == 500
        assert answer.json() == {"error": "a defect of the service; its log says where"}
        assert client.get("/metrics").json()["by_status"] == {"500": 1}
        assert worker.inside == 0


def test_the_description_for_machines_has_the_fields_of_requests() -> None:
    with served() as (client, _):
        document = client.get("/openapi.json").json()

    bodies = {
        path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in document["paths"].items()
        if "post" in methods
    }
    assert set(bodies["/v1/predict"]["properties"]) == {"images", "n", "alpha"}
    assert bodies["/v1/certify"]["required"] == ["image"]
    assert bodies["/v2/models/{name}/infer"]["properties"]["inputs"]["items"]["required"]
    assert "$ref" not in json.dumps(bodies)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1:8000@evil.example", 421),
        ("", 421),
    ],
)
def test_what_is_sent_to_another_name_is_refused(host: str, status: int) -> None:
    with served() as (_, worker):
        own = ("localhost", "127.0.0.1", "::1")
        client = Client(application(subject(), Limits(), worker, hosts=own))

        answer = client.post("/v1/predict", json={"images": [LIGHT]}, headers={"Host": host})

        assert answer.status_code == status
        if status == 421:
            assert answer.json()["error"].startswith("Host must be a name of this service")
            assert worker.counts.votes == 0


def test_a_page_of_another_origin_cannot_ask() -> None:
    with served() as (client, worker):
        body = json.dumps({"images": [LIGHT]})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            # the only types that a browser sends elsewhere without asking first
            asked = client.post("/v1/predict", content=body, headers={"Content-Type": kind})
            assert asked.status_code == 415
        answer = client.post("/v1/predict", content=body, headers=JSON | {"Origin": "http://evil"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert worker.counts.votes == 50
