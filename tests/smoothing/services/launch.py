"""Starts the service of ``server.py`` in its own process, and speaks with it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Running:
    """A running service.

    Args:
        url: Where it listens.
    """

    url: str

    def script(self, *behaviors: str) -> None:
        """Tells it how to behave in its next requests; well afterwards."""
        answer = httpx.post(f"{self.url}/script", json=list(behaviors), verify=False)
        answer.raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        """What it was asked since the last script."""
        seen: list[dict[str, Any]] = httpx.get(f"{self.url}/seen", verify=False).json()
        return seen

    def sizes(self) -> list[int]:
        """The number of images of each request since the last script."""
        return [one["rows"] for one in self.seen()]


@contextmanager
def launched() -> Iterator[Running]:
    """Runs the service until the end of the block."""
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            _wait_for(url)
            yield Running(url)
        finally:
            process.kill()


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(f"{url}/seen").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"no service at {url}")
