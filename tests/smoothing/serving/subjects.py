"""What the tests of the service share: a classifier that keeps a diary, and what is served of it."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import numpy as np
from PIL import Image

from deepzero_apps.smoothing.blackbox import CallableClassifier
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.serving import Subject

LIGHT, GRAY, DARK = ([[[v, v], [v, v]]] for v in (0.9, 0.5, 0.1))
"""Images at distances .8, 0 and -.8 from the boundary of `HalfSpace`."""


class HalfSpace:
    """Class 1 where w.x > 1, w = (1, 1, 1, 1) / 2; notes the rows of every call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.open = Event()
        self.open.set()
        self.asked = Event()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls.append(len(images))
        self.asked.set()
        assert self.open.wait(20), "nobody let the classifier go on"
        return (images.reshape(len(images), -1).sum(1) / 2 > 1).astype(np.int64)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets no call return as long as the context lasts."""
        self.asked.clear()
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


def subject(function: HalfSpace | None = None, **fields: object) -> Subject:
    classifier = CallableClassifier(function or HalfSpace(), classes=2, name="half-space")
    given: dict[str, object] = {
        "name": "halves",
        "classifier": classifier,
        "classes": ("dark", "light"),
        "shape": (1, 2, 2),
        "settings": Settings(sigma=0.5, n0=10, n=400, alpha=0.01),
        "n": 50,
        **fields,
    }
    return Subject(**given)  # type: ignore[arg-type]


def png(array: np.ndarray, **options: object) -> str:
    """The base64 of a PNG of uint8 pixels."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()
