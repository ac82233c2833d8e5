"""Images as clients send them: nested numbers or a PNG, to float32 in [0, 1] or a refusal.

A refusal names the field. Nothing is guessed: strings are no numbers, a PNG of another mode or
size is not converted, and an image that is too large is refused by its header, not unpacked.
"""

__all__ = ["Refused", "image_from", "numbers_from", "shortened"]

import base64
import binascii
import io
import struct
import zlib
from typing import Annotated

import numpy as np
import torch
from pydantic import FailFast, Field, TypeAdapter, ValidationError
from torch import Tensor

_Number = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
# The first fault is enough: a body of a million wrong numbers must not become a million errors.
_Line = Annotated[list[_Number], FailFast()]
_Image = Annotated[list[Annotated[list[_Line], FailFast()]], FailFast()]
_NESTED: TypeAdapter[list[list[list[float]]]] = TypeAdapter(_Image)
_FLAT: TypeAdapter[list[float]] = TypeAdapter(_Line)

_HEADER = struct.Struct(">8s4s4sIIBB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MODES = {1: ("L", 0), 3: ("RGB", 2)}


class Refused(Exception):
    """A request that cannot be answered as it is.

    Args:
        message: What is wrong, beginning with the field's name where there is one.
        status: The HTTP status, 4xx.
    """

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def image_from(value: object, shape: tuple[int, int, int], *, field: str) -> Tensor:
    """Reads one image.

    Args:
        value: Nested lists of numbers in [0, 1], of that shape, or the base64 of a PNG of 8
            bits: gray for one channel, RGB for three.
        shape: The shape ``(channel, height, width)`` it must have.
        field: What the request calls it.

    Returns:
        The image, float32, of that shape.

    Raises:
        Refused: If it is anything else.
    """
    if isinstance(value, str):
        return _png(value, shape, field)
    try:
        nested = _NESTED.validate_python(value, strict=True)
    except ValidationError as error:
        raise Refused(_in_words(error, field)) from error
    try:
        array = np.array(nested, dtype=np.float32)
    except ValueError as error:
        raise Refused(f"{field} must have rows of equal length, {_expected(shape)}") from error
    if array.shape != shape:
        raise Refused(f"{field} must have shape {list(shape)}, got {list(array.shape)}")
    return torch.from_numpy(array)


def numbers_from(value: object, shape: tuple[int, ...], *, field: str) -> Tensor:
    """Reads a batch whose numbers may be flat, in row-major order, or nested.

    Args:
        value: A flat list of numbers in [0, 1], or a list of images of them.
        shape: The shape ``(n, channel, height, width)`` it must have.
        field: What the request calls it.

    Returns:
        The batch, float32, of that shape.

    Raises:
        Refused: If it is anything else.
    """
    if not isinstance(value, list):
        raise Refused(f"{field} must be a list of numbers, got {shortened(value)}")
    if value and isinstance(value[0], list):
        if len(value) != shape[0]:
            raise Refused(
                f"{field} must hold {shape[0]} images as its shape says, got {len(value)}"
            )
        channels, height, width = shape[1:]
        inner = (channels, height, width)
        images = [image_from(v, inner, field=f"{field}.{i}") for i, v in enumerate(value)]
        return torch.stack(images)
    try:
        flat = _FLAT.validate_python(value, strict=True)
    except ValidationError as error:
        raise Refused(_in_words(error, field)) from error
    if len(flat) != int(np.prod(shape)):
        raise Refused(f"{field} must hold {np.prod(shape)} numbers, got {len(flat)}")
    return torch.from_numpy(np.array(flat, dtype=np.float32).reshape(shape))


def shortened(value: object, *, most: int = 60) -> str:
    """Gives a value as an error may quote it.

    Args:
        value: Anything that JSON can hold.
        most: Characters to keep.

    Returns:
        Its beginning; the kind alone for a container.
    """
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        value = value[:most]
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def _png(text: str, shape: tuple[int, int, int], field: str) -> Tensor:
    from PIL import Image

    channels, height, width = shape
    if channels not in _MODES:
        raise Refused(f"{field} must be numbers: a PNG has 1 or 3 channels, not {channels}")
    content = _decoded(text, field)
    _check_header(content, shape, field)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            array = np.array(picture)
            mode = picture.mode
    # what Pillow raises on a broken file, found by breaking files
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise Refused(f"{field} must be a whole PNG, got a broken one") from error
    if mode != _MODES[channels][0] or array.shape[:2] != (height, width):
        raise Refused(f"{field} must be a PNG of mode {_MODES[channels][0]}, got {mode}")
    pixels = torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1)
    return pixels.to(torch.float32).contiguous() / 255


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refused(f"{field} must be the base64 of a PNG, got {shortened(text)}") from error


def _check_header(content: bytes, shape: tuple[int, int, int], field: str) -> None:
    """Refuses by the header what is no PNG, of another size or kind, before anything is unpacked."""
    channels, height, width = shape
    if len(content) < _HEADER.size or not content.startswith(_SIGNATURE):
        raise Refused(
            f"{field} must be the base64 of a PNG, got {len(content)} bytes of another kind"
        )
    _, _, _, columns, rows, depth, color = _HEADER.unpack_from(content)
    if (rows, columns) != (height, width):
        raise Refused(f"{field} must be a PNG of {width}x{height}, got {columns}x{rows}")
    mode, kind = _MODES[channels]
    if (depth, color) != (8, kind):
        raise Refused(
            f"{field} must be a PNG of 8 bits and mode {mode}, got {depth} bits of color type {color}"
        )


def _in_words(error: ValidationError, field: str) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    place = ".".join((field, *map(str, fault["loc"])))
    message = fault["msg"].removeprefix("Input should be ")
    return f"{place} must be {message}, got {shortened(fault['input'])}"


def _expected(shape: tuple[int, int, int]) -> str:
    return f"expected shape {list(shape)}"
