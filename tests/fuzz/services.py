"""Readers of what comes over HTTP: answers of a service, its description, requests to ours."""

__all__ = ["ENTRIES"]

import atexit
import base64
import io
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

from deepzero_apps.smoothing.blackbox import CallableClassifier
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.services.decoding import Garbage, Reader
from deepzero_apps.smoothing.services.service import Service
from deepzero_apps.smoothing.serving import Limits, Subject
from deepzero_apps.smoothing.serving.application import application
from deepzero_apps.smoothing.serving.inference_protocol import infer_job
from deepzero_apps.smoothing.serving.pixels import Refused
from deepzero_apps.smoothing.serving.process import listening, server_of
from deepzero_apps.smoothing.serving.questions import certify_job, predict_job
from deepzero_apps.smoothing.serving.worker import Worker
from tests.fuzz.mutations import mutated, mutated_json

CLASSES = ("cat", "dog", "eel")
ROWS = 2
IMAGE = [[[0.1, 0.2], [0.3, 1.0]]]

_SCORES = [[0.1, 0.7, 0.2], [3, -1e4, 2]]
_TOP = [[{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]] * ROWS
_ANSWERS: list[tuple[dict[str, Any], Any]] = [
    ({}, {"predictions": _SCORES}),
    ({"answer": "probabilities"}, {"predictions": [[0.1, 0.7, 0.2], {"cat": 1, "dog": 0, "eel": 0}]}),
    ({"answer": "label"}, {"predictions": ["cat", 2]}),
    ({"answer": "label", "classes": ["7", "1"]}, {"predictions": [7, "1"]}),
    ({"answer": "top-k", "answers": "a.b[0]", "row": "found"}, {"a": {"b": [[{"found": each} for each in _TOP]]}}),
    ({"row": "[ceil(max(@)), sum(@), to_number(to_string(avg(@)))]"}, {"predictions": _SCORES}),
    ({"row": "[abs(@[0]), floor(@[1]), length(to_string(@))]"}, {"predictions": _SCORES}),
    ({"answer": "label", "row": "sort_by(@, &score)[-1].label"}, {"predictions": _TOP}),
    ({"request": {"x": "$image"}, "batch": 1, "answers": "join('', keys(@))"}, {"cat": 1}),
    (
        {"protocol": "open-inference"},
        {"outputs": [{"name": "y", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]},
    ),
    (
        {"protocol": "open-inference", "answer": "label", "output": "y"},
        {"outputs": [{"name": "y", "shape": [2], "datatype": "INT64", "data": [0, 2]}]},
    ),
]  # fmt: skip


@cache
def _readers() -> list[Reader]:
    shared = {"url": "http://h/p", "classes": list(CLASSES)}
    return [Reader(Service.model_validate({**shared, **fields})) for fields, _ in _ANSWERS]


def _answers() -> list[bytes]:
    """The first byte says to which service an answer belongs."""
    return [bytes([i]) + json.dumps(body).encode() for i, (_, body) in enumerate(_ANSWERS)]


def _mutated_answer(random: Random, data: bytes) -> bytes:
    return data[:1] + mutated_json(random, data[1:])


def _read_answer(data: bytes, _: Path) -> None:
    which = data[0] % len(_ANSWERS) if data else 0
    rows = 1 if _ANSWERS[which][0].get("batch") == 1 else ROWS
    values = _readers()[which](data[1:], rows).values
    lost = np.isnan(values).all(-1) if values.ndim == 2 else values == -1
    assert (np.isfinite(values.reshape(rows, -1)).all(-1) | lost).all()


def _descriptions() -> list[bytes]:
    whole = {
        "url": "https://h.example/v1?a=b", "classes": ["cat", "dog"], "encoding": "png", "layout": "hwc",
        "request": {"instances": "$images"}, "image": {"b64": "$image"}, "answers": "a.b", "row": "@",
        "answer": "top-k", "label": "l", "score": "s", "headers": {"Authorization": "Bearer ${KEY}", "X-A": "b"},
        "batch": 32, "concurrency": 4, "timeout": 3.5, "retries": 4, "backoff": 0.5, "longest_wait": 60,
        "rate": 10, "give_up": 5,
    }  # fmt: skip
    tensor = {
        "url": "http://h",
        "classes": ["1", "2"],
        "protocol": "open-inference",
        "output": "y",
    }
    plain = b"url: http://h:80/p\nclasses: [cat, dog]  # in order\nanswer: label\nrate: .5\n"
    return [json.dumps(whole).encode(), json.dumps(tensor).encode(), plain]


def _read_description(data: bytes, folder: Path) -> None:
    refused: list[ValueError] = []
    for name in ("service.yaml", "service.json"):
        (folder / name).write_bytes(data)
        try:
            Service.read(folder / name).identity()
        except ValueError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


@cache
def _subject() -> Subject:
    def halves(images: np.ndarray) -> np.ndarray:
        labels: np.ndarray = (images.reshape(len(images), -1).sum(1) > 2).astype(np.int64)
        return labels

    return Subject(
        name="halves",
        classifier=CallableClassifier(halves, classes=2, name="halves"),
        classes=("dark", "light"),
        shape=(1, 2, 2),
        settings=Settings(sigma=0.5, n0=10, n=400, alpha=0.01),
        n=50,
    )


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).save(file, "PNG")
    return file.getvalue()


def _requests() -> list[bytes]:
    picture = base64.b64encode(_png()).decode()
    tensor = {
        "name": "image",
        "shape": [1, 1, 2, 2],
        "datatype": "FP32",
        "data": [0, 0.5, 1, 0.25],
    }
    bodies = [
        {"images": [IMAGE, picture], "n": 60, "alpha": 0.01},
        {
            "image": picture,
            "label": "dark",
            "n": 300,
            "n0": 10,
            "alpha": 0.01,
            "procedure": "fixed",
        },
        {"image": IMAGE, "label": 1, "procedure": "decide", "radii": [0.1, 0.2]},
        {"id": "7", "inputs": [tensor], "outputs": [{"name": "label"}], "parameters": {"n": 60}},
        {"inputs": [{**tensor, "data": [IMAGE]}]},
    ]
    return [json.dumps(body).encode() for body in bodies]


def _read_request(data: bytes, _: Path) -> None:
    limits = Limits(images=3)
    asked: tuple[Callable[[], Any], ...] = (
        lambda: predict_job(data, _subject(), limits).images,
        lambda: certify_job(data, _subject()).images,
        lambda: infer_job(data, _subject(), limits)[0].images,
    )
    refusals = []
    for ask in asked:
        try:
            images = ask()
        except Refused as error:
            refusals.append(error)
            continue
        assert 1 <= len(images) <= 3
        assert bool(((images >= 0) & (images <= 1)).all())
    if len(refusals) == len(asked):
        raise refusals[0]


def _read_png(data: bytes, folder: Path) -> None:
    _read_request(json.dumps({"image": base64.b64encode(data).decode()}).encode(), folder)


def _conversations() -> list[bytes]:
    """Requests as they travel, heads and all."""
    made = [b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]
    for path, body in zip(("/v1/predict", "/v1/certify"), _requests()[:2], strict=True):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\nContent-Type: application/json\r\n"
        made.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        made.append(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
    return made


@cache
def _port() -> int:
    """A service in a thread of this process, until the process ends."""
    subject = _subject()
    worker = Worker(subject.classifier, places=8)
    hosts = ("localhost", "127.0.0.1")
    server = server_of(application(subject, Limits(), worker, hosts=hosts), worker, grace=0)
    listener = listening("127.0.0.1", 0)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)
        worker.expire()

    atexit.register(stop)
    return int(listener.getsockname()[1])


def _read_conversation(data: bytes, _: Path) -> None:
    said = b""
    with (
        socket.create_connection(("127.0.0.1", _port()), timeout=0.1) as client,
        suppress(ConnectionError, TimeoutError),  # it waits for what is missing
    ):
        client.sendall(data)
        while part := client.recv(65_536):
            said += part
    statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", said, re.MULTILINE)]
    assert 500 not in statuses
    if 200 not in statuses:
        raise Refused(f"{statuses}")


ENTRIES = [
    ("service answers", _answers, _mutated_answer, _read_answer, (Garbage,), 250),
    ("service descriptions", _descriptions, mutated_json, _read_description, (ValueError,), 40),
    ("requests to serve", _requests, mutated_json, _read_request, (Refused,), 250),
    (
        "conversations with serve",
        _conversations,
        mutated,
        _read_conversation,
        (Refused,),
        6,
    ),
    ("pictures in requests", lambda: [_png()], mutated, _read_png, (Refused,), 60),
]
