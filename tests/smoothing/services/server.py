"""A service of its own process: the digits SVC behind two protocols, well and badly behaved.

Prints its port. ``POST /script`` takes a list of behaviors, one for each request to come, and
``GET /seen`` tells what came since then.
"""

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

app = FastAPI()
script: list[str] = []
seen: list[dict[str, Any]] = []


def fitted() -> SVC:
    x, y = load_digits(return_X_y=True)
    return SVC().fit(x[:500] / 16, y[:500])


svc = fitted()


@app.post("/script")
async def take_script(request: Request) -> None:
    script[:] = await request.json()
    seen.clear()


@app.get("/seen")
async def give_seen() -> list[dict[str, Any]]:
    return seen


@app.post("/{kind}")
@app.post("/v2/models/svc/{kind}")
async def answer(kind: str, request: Request) -> Response:
    sent = await request.json()
    rows = received(kind, sent)
    seen.append(
        {
            "rows": len(rows),
            "time": time.monotonic(),
            "key": request.headers.get("Authorization"),
            "body": sent if len(rows) == 1 else None,
        }
    )
    behavior, _, value = (script.pop(0) if script else "well").partition(":")
    if behavior == "slow":
        await asyncio.sleep(float(value))
    status = {"429": 429, "503": 503, "date": 503}.get(behavior, 0)
    if status:
        after = (
            formatdate(time.time() + float(value), usegmt=True) if behavior == "date" else value
        )
        return Response(status_code=status, headers={"Retry-After": after} if value else {})
    if behavior.isdigit():
        return Response(
            f"Bearer {request.headers.get('Authorization')}", status_code=int(behavior)
        )
    if behavior == "redirect":
        return Response(status_code=307, headers={"Location": "/elsewhere"})
    content = json.dumps(answers(kind, rows, behavior, value)).encode()
    if behavior == "garbage":
        return Response(b"<html>" + content[:20])
    if behavior in ("half", "drip", "huge"):
        return StreamingResponse(pieces(content, behavior), headers=declared(content, behavior))
    return Response(content, media_type="application/json")


def declared(content: bytes, behavior: str) -> dict[str, str]:
    return {"Content-Length": str(len(content))} if behavior == "half" else {}


async def pieces(content: bytes, behavior: str) -> AsyncIterator[bytes]:
    if behavior == "half":
        yield content[: len(content) // 2]
    for _ in range({"drip": 200, "huge": 64}.get(behavior, 0)):
        yield b" " * (1 if behavior == "drip" else 2**16)
        await asyncio.sleep(0.05 if behavior == "drip" else 0)


def received(kind: str, sent: dict[str, Any]) -> np.ndarray:
    """The images of a request, as rows."""
    if kind == "infer":
        tensor = sent["inputs"][0]
        if tensor["datatype"] == "BYTES":
            return np.stack([opened(text) for text in tensor["data"]])
        scale = 255 if tensor["datatype"] == "UINT8" else 1
        return np.reshape(tensor["data"], (tensor["shape"][0], -1)) / scale
    if "instances" in sent:
        return np.array(sent["instances"]).reshape(len(sent["instances"]), -1)
    if "files" in sent:
        return np.stack([opened(one["b64"].removeprefix("data:,")) for one in sent["files"]])
    return np.array(sent["inputs"]).reshape(1, -1)


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).reshape(-1) / 255


def answers(kind: str, rows: np.ndarray, behavior: str, value: str) -> object:
    scores = svc.decision_function(rows)
    labels: list[Any] = scores.argmax(1).tolist()
    found: list[Any] = {
        "scores": scores.tolist(),
        "infer": scores.tolist(),
        "one": scores.tolist(),
        "shares": (np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).tolist(),
        "numbers": labels,
        "names": [f"digit {label}" for label in labels],
        "best": [best(row) for row in scores],
    }[kind]
    if behavior == "rows":
        found = [*found, found[-1]]
    if behavior == "row":
        found[0] = json.loads(value)
    if behavior == "all":
        found = [json.loads(value)] * len(found)
    if kind == "infer":
        tensor = {"name": "scores", "datatype": "FP64", "shape": [len(found), 10]}
        return {"outputs": [tensor | {"data": [value for row in found for value in row]}]}
    return {"answer": found[0]} if kind == "one" else {"predictions": found}


def best(row: np.ndarray) -> list[dict[str, Any]]:
    places = np.argsort(row)[:-4:-1]
    entries = [{"label": f"digit {p}", "score": float(row[p])} for p in places]
    return entries[::-1]  # the highest one last


if __name__ == "__main__":
    # asyncio turns off Nagle's algorithm, 40 ms a response, where a socket says that it is TCP
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)  # noqa: T201
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])
