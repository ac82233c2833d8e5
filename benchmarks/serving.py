r"""Loads ``deepzero-apps serve`` with more than it can answer, and checks every answer.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --json serving.json

A server in a process of its own serves the digits' support vector machine at sigma .25; many
connections ask from this process, so that both share the machine. Images go as PNG.

*Sustained*: every connection asks again as soon as it is answered. ``library`` is the same votes by
`predict` in one process without a network, 64 images at once in full calls of 1,024 rows, before
and after; ``load`` is the machine's load of five minutes.

*Overload*: 64 connections, 8 places, every third request malformed. An answer is *right* if it
is 200 and each class is the one that `predict` gives with the noise that the answer tells;
*refused* if it is 503 with ``Retry-After``; *named* if it is the 4xx that the malformed body
deserves; *wrong* if it is anything else; *lost* if there is none. Then SIGTERM falls amid
requests: what was sent before it is right or refused, and the process ends with 0.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.smoothing.blackbox import Defended
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import predict
from deepzero_apps.vision import digits

SIGMA, ALPHA = 0.25, 0.001
VOTES = (100, 300, 1000)
CONNECTIONS = (1, 8, 32)
PROGRAM = "import sys; from deepzero_apps.cli import main; sys.exit(main())"
JSON = {"Content-Type": "application/json"}
MALFORMED = (
    (b'{"images": [[[[NaN', 400),
    (b"\xff\xfe{}", 400),
    (b"[" * 60_000, 400),
    (b'{"images": [[[[0.5, NaN]]]]}', 422),
    (b'{"images": ["aGVsbG8="]}', 422),
    (b'{"images": [], "n": 1e9}', 422),
    (b" " * 300_000, 413),
)

Row = dict[str, str | int | float]


@dataclass
class Tally:
    """What became of the requests of one run."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    answers: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    stopped: float = float("inf")
    """When the server was told to stop; who asks later may find nobody."""


@contextmanager
def service(*flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server and its address."""
    arguments = ["serve", "--port", "0", "--sigma", str(SIGMA), "--max-n", "2000", *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[2]
    finally:
        process.terminate()
        process.wait(60)


@cache
def scene() -> tuple[Defended, Tensor, list[str]]:
    """The classifier as the server has it, the images and their PNG."""
    splits = digits()
    box = black_box("svc", splits, weights=None, seed=0, device="cpu")
    pixels = (splits.test.pixels(slice(0, 256)) * 255).round().to(torch.uint8)
    texts = []
    for array in pixels.squeeze(1).numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        texts.append(base64.b64encode(file.getvalue()).decode())
    return Defended(nn.Identity(), box.classifier), pixels.float() / 255, texts


async def load(
    tally: Tally,
    address: str,
    *,
    n: int,
    connections: int,
    seconds: float,
    malformed: bool = False,
) -> Tally:
    """Asks over so many connections for so long; a server that has gone ends it."""
    end = time.perf_counter() + seconds
    # A client for each connection: one pool of 64 costs more than all else here. No certificates
    # are read for plain HTTP.
    clients = [
        httpx.AsyncClient(base_url=address, timeout=60, verify=False) for _ in range(connections)
    ]
    callers = [
        _caller(client, tally, random.Random(i), n=n, end=end, malformed=malformed)
        for i, client in enumerate(clients)
    ]
    await asyncio.gather(*callers)
    for client in clients:
        await client.aclose()
    return tally


async def _caller(
    client: httpx.AsyncClient,
    tally: Tally,
    chance: random.Random,
    *,
    n: int,
    end: float,
    malformed: bool,
) -> None:
    _, _, texts = scene()
    while time.perf_counter() < end:
        tally.sent += 1
        if malformed and chance.random() < 1 / 3:
            content, status = chance.choice(MALFORMED)
            tally.outcomes[await _refused(client, content, status)] += 1
            continue
        which = chance.randrange(len(texts))
        start = time.perf_counter()
        outcome, answer = await _asked(client, texts[which], n)
        if outcome == "lost" and start > tally.stopped:
            tally.sent -= 1
            return
        tally.outcomes[outcome] += 1
        if answer is not None:
            tally.seconds.append(time.perf_counter() - start)
            tally.answers.append((which, n, answer))
        elif malformed:
            await asyncio.sleep(0.01)


async def _asked(
    client: httpx.AsyncClient, text: str, n: int
) -> tuple[str, dict[str, Any] | None]:
    try:
        response = await client.post("/v1/predict", json={"images": [text], "n": n})
    except httpx.TransportError:
        return "lost", None
    if response.status_code == 200:
        return "answered", response.json()["predictions"][0]
    refused = response.status_code == 503 and int(response.headers.get("retry-after", 0)) > 0
    return "refused" if refused else "wrong", None


async def _refused(client: httpx.AsyncClient, content: bytes, status: int) -> str:
    try:
        response = await client.post("/v1/predict", content=content, headers=JSON)
    except httpx.TransportError:
        return "lost"
    if response.status_code == 503:
        return "refused"
    return "named" if response.status_code == status and "error" in response.json() else "wrong"


def wrong_answers(tally: Tally) -> int:
    """Asks the library again, with the noise that each answer tells."""
    classifier, images, _ = scene()
    wrong = 0
    for which, n, answer in tally.answers:
        place = answer["noise"]["place"]
        settings = Settings(sigma=SIGMA, n=n, alpha=ALPHA, seed=answer["noise"]["seed"])
        rows = images[which].expand(place + 1, *images.shape[1:])
        label = int(predict(classifier, rows, settings, indices=[place])[0])
        wrong += (None if label < 0 else label) != answer["index"]
    return wrong


def sustained(address: str, seconds: float) -> list[Row]:
    """Rates and latencies, by votes and connections."""
    rows: list[Row] = []
    for n in VOTES:
        for connections in CONNECTIONS:
            tally = asyncio.run(
                load(Tally(), address, n=n, connections=connections, seconds=seconds)
            )
            assert set(tally.outcomes) == {"answered"}, tally.outcomes
            cuts = statistics.quantiles(tally.seconds, n=100)
            rows.append(
                {
                    "votes": n,
                    "connections": connections,
                    "requests_a_second": len(tally.seconds) / seconds,
                    "votes_a_second": n * len(tally.seconds) / seconds,
                    "p50_ms": 1e3 * cuts[49],
                    "p95_ms": 1e3 * cuts[94],
                    "p99_ms": 1e3 * cuts[98],
                }
            )
    return rows


def library(seconds: float) -> float:
    """Votes a second of `predict` without a network."""
    classifier, images, _ = scene()
    settings = Settings(sigma=SIGMA, n=160, alpha=ALPHA)
    start, votes = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predict(classifier, images[:64], settings)
        votes += 64 * settings.n
    return votes / (time.perf_counter() - start)


def overload(seconds: float) -> Row:
    """Far more requests than places, many of them malformed."""
    with service("--queue", "8") as (_, address):
        tally = asyncio.run(
            load(Tally(), address, n=1000, connections=64, seconds=seconds, malformed=True)
        )
        counted = httpx.get(address + "metrics").json()["questions"]
    return {
        "case": "overload",
        "sent": tally.sent,
        "counted by the server": counted,
        **_checked(tally),
    }


def stopped(seconds: float) -> Row:
    """SIGTERM amid requests."""
    tally = Tally()

    async def asked_and_stopped() -> float:
        asking = asyncio.create_task(
            load(tally, address, n=300, connections=16, seconds=seconds + 30)
        )
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        tally.stopped = time.perf_counter()
        await asking
        return time.perf_counter() - tally.stopped

    with service("--queue", "64") as (process, address):
        took = asyncio.run(asked_and_stopped())
        process.wait(60)
    return {
        "case": "SIGTERM",
        "sent": tally.sent,
        "exit code": process.returncode,
        "seconds to the end": took,
        **_checked(tally),
    }


def _checked(tally: Tally) -> Row:
    wrong = wrong_answers(tally)
    return {
        "right": tally.outcomes["answered"] - wrong,
        "refused": tally.outcomes["refused"],
        "named": tally.outcomes["named"],
        "wrong": tally.outcomes["wrong"] + wrong,
        "lost": tally.outcomes["lost"],
    }


def main() -> None:
    """Runs it all and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    before = library(options.seconds)
    with service() as (_, address):
        rows = sustained(address, options.seconds)
    alone = {"before": before, "after": library(options.seconds), "load": os.getloadavg()[1]}
    table = Table("votes", "connections", "requests/s", "votes/s", "p50 ms", "p95 ms", "p99 ms")
    for row in rows:
        table.add_row(*(f"{value:,.0f}" for value in row.values()))
    console.print(table)
    console.print("library, votes/s:", alone)
    cases = [overload(2 * options.seconds), stopped(options.seconds / 2)]
    for case in cases:
        console.print(case)
    if options.json:
        document = {"sustained": rows, "library_votes_a_second": alone, "cases": cases}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
