"""What workers of the tests hold: importable by their processes."""

import os
import time
import warnings
from pathlib import Path

import numpy as np

from deepzero_apps.workers import Shared


class Counter:
    """Answers from its arguments alone, if it answers."""

    def double(self, x: float) -> float:
        return 2 * x

    def slowly(self, x: float, seconds: float) -> float:
        time.sleep(seconds)
        return x

    def devices(self, seconds: float) -> tuple[int, str]:
        time.sleep(seconds)
        return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def process(self) -> int:
        return os.getpid()

    def total(self, shared: Shared, factor: float) -> float:
        return factor * float(np.sum(shared.value()))

    def refuse(self, text: str) -> None:
        raise LookupError(text)

    def warn(self, text: str) -> None:
        warnings.warn(text, UserWarning, stacklevel=1)

    def leave(self) -> None:
        raise SystemExit("no more licenses")

    def die(self) -> None:
        os._exit(1)

    def die_once(self, flag: str) -> str:
        """Dies the first time that it is asked, in whichever process."""
        path = Path(flag)
        if not path.exists():
            path.touch()
            os._exit(1)
        return "survived"


def refused() -> Counter:
    raise ValueError("no data on this machine")
