"""Images written into the body of a request.

Floats are written so that a reader in double precision gets the very float32 back. ``uint8`` and
``png`` clip to [0, 1] and round to the grid of 1/255; both then carry the same bytes.
"""

__all__ = ["body"]

import base64
import io
import json
import re

import numpy as np
from PIL import Image
from pydantic import JsonValue

from deepzero_apps.smoothing.services.service import Service

_IMAGE = re.compile(r"\$image\b")


def body(images: np.ndarray, service: Service) -> bytes:
    """Writes a request.

    Args:
        images: Images of shape ``(n, channel, height, width)``, float32.
        service: What they are sent to.

    Returns:
        The body, JSON.

    Raises:
        ValueError: If an image holds NaN or an infinity, or has no encoding as PNG.
    """
    if not np.isfinite(images).all():
        raise ValueError("images must be finite: JSON has neither NaN nor infinities")
    content = _tensor(images, service) if service.protocol == "open-inference" else None
    if content is None:
        encoded = [_filled(service.image, one, one) for one in _encoded(images, service)]
        content = _filled(service.request, encoded[0], encoded)
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _tensor(images: np.ndarray, service: Service) -> JsonValue:
    """The body of the Open Inference Protocol; the data of a tensor are flat."""
    data: JsonValue = np.array(_encoded(images, service)).ravel().tolist()
    ordered = images if service.layout == "chw" else np.moveaxis(images, 1, -1)
    shape, datatype = {
        "nested": (ordered.shape, "FP32"),
        "flat": ((len(images), images[0].size), "FP32"),
        "uint8": (ordered.shape, "UINT8"),
        "png": ((len(images),), "BYTES"),
    }[service.encoding]
    tensor: JsonValue = {
        "name": service.input,
        "shape": [int(length) for length in shape],
        "datatype": datatype,
        "data": data,
    }
    if service.output is None:
        return {"inputs": [tensor]}
    return {"inputs": [tensor], "outputs": [{"name": service.output}]}


def _encoded(images: np.ndarray, service: Service) -> list[JsonValue]:
    if service.encoding == "png":
        return [_png(one) for one in _bytes(images)]
    if service.layout == "hwc":
        images = np.moveaxis(images, 1, -1)
    if service.encoding == "flat":
        images = images.reshape(len(images), -1)
    values = _bytes(images) if service.encoding == "uint8" else images
    encoded: list[JsonValue] = values.tolist()
    return encoded


def _bytes(images: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(np.clip(images, 0, 1) * np.float32(255)).astype(np.uint8)
    return pixels


def _png(image: np.ndarray) -> str:
    if len(image) not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels to be sent as PNG, got {len(image)}")
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _filled(template: JsonValue, one: JsonValue, many: JsonValue) -> JsonValue:
    """Puts one image for $image, and many for $images; inside of a longer text only a text."""
    if template == "$images":
        return many
    if template == "$image":
        return one
    if isinstance(template, str) and _IMAGE.search(template):
        if not isinstance(one, str):
            raise ValueError('"$image" must stand alone unless encoding is png')
        return _IMAGE.sub(lambda _: one, template)
    if isinstance(template, dict):
        return {key: _filled(value, one, many) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, one, many) for value in template]
    return template
