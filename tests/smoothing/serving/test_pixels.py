"""Images from clients: exact where they are right, refused by name where they are not."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepzero_apps.smoothing.serving.pixels import Refused, image_from, numbers_from, shortened
from tests.smoothing.serving.subjects import GRAY, png

SHAPE = (1, 2, 3)
ARRAY = np.array([[0, 1, 2], [128, 254, 255]], dtype=np.uint8)


def refusal(value: object, shape: tuple[int, int, int] = SHAPE) -> str:
    with pytest.raises(Refused) as caught:
        image_from(value, shape, field="images.0")
    assert caught.value.status == 422
    return str(caught.value)


def test_nested_numbers_are_taken_to_float32_and_nothing_else() -> None:
    found = image_from([[[0, 1, 0.1], [1e-50, 0.5, 1.0]]], SHAPE, field="x")

    assert found.dtype is torch.float32
    assert found.tolist() == [[[0, 1, np.float32(0.1)], [0, 0.5, 1]]]


def test_a_png_is_its_bytes_over_255() -> None:
    gray = image_from(png(ARRAY), SHAPE, field="x")
    color = np.stack((ARRAY, ARRAY[::-1], ARRAY[:, ::-1]), 2)
    colored = image_from(png(color), (3, 2, 3), field="x")

    assert torch.equal(gray, torch.from_numpy(ARRAY)[None].float() / 255)
    assert torch.equal(colored, torch.from_numpy(color.transpose(2, 0, 1).copy()).float() / 255)
    assert colored.dtype is torch.float32


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "images.0 must be a valid list"),
        (None, "images.0 must be a valid list, got None"),
        ({}, "images.0 must be a valid list, got a dict of 0"),
        ([], r"images.0 must have shape [1, 2, 3], got [0]"),
        ([[[0.1, 0.2], [0.3, 0.4]]], "must have shape [1, 2, 3], got [1, 2, 2]"),
        ([[[0.1, 0.2, 0.3], [0.4]]], "images.0 must have rows of equal length"),
        ([[0.1, 0.2, 0.3]], "images.0.0.0 must be a valid list, got 0.1"),
        ([[[[0.1]] * 3] * 2], "images.0.0.0.0 must be a valid number, got a list of 1"),
        ([[[0, 0, 0], [0, float("nan"), 0]]], "images.0.0.1.1 must be a finite number, got nan"),
        ([[[0, 0, 0], [0, 0, float("inf")]]], "images.0.0.1.2 must be a finite number, got inf"),
        ([[[0, 0, 0], [0, 0, 1.0000001]]], "must be less than or equal to 1, got 1.0000001"),
        ([[[0, 0, 0], [0, 0, -1e-9]]], "must be greater than or equal to 0, got -1e-09"),
        ([[[0, 0, 0], [0, 0, 10**400]]], "images.0.0.1.2 must be"),
        ([[[0, 0, 0], [0, 0, "0.5"]]], "must be a valid number, got '0.5'"),
        ([[[0, 0, 0], [0, 0, True]]], "must be a valid number, got True"),
        ([[[0, 0, 0], [0, 0, None]]], "must be a valid number, got None"),
    ],
)
def test_what_is_no_image_is_refused_by_the_place_of_the_fault(value: object, said: str) -> None:
    assert said in refusal(value)


def test_a_million_faults_are_one() -> None:
    assert len(refusal([[["x"] * 1_000_000]])) < 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be the base64 of a PNG, got 0 bytes"),
        ("####", "must be the base64 of a PNG, got '####'"),
        ("ä" * 1000, "must be the base64 of a PNG"),
        (base64.b64encode(b"GIF89a" + bytes(100)).decode(), "bytes of another kind"),
        (png(ARRAY.T.copy()), "must be a PNG of 3x2, got 2x3"),
        (png(np.stack([ARRAY] * 3, 2)), "8 bits and mode L, got 8 bits of color type 2"),
        (png(ARRAY.astype(np.uint16)), "8 bits and mode L, got 16 bits"),
        (png(ARRAY > 3), "8 bits and mode L, got 1 bits"),
    ],
)
def test_what_is_no_such_png_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_header_that_promises_a_huge_image_is_refused_unopened() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + bytes(64)

    assert "must be a PNG of 3x2, got 60000x60000" in refusal(base64.b64encode(bomb).decode())


def test_a_png_of_two_channels_does_not_exist() -> None:
    assert "must be numbers: a PNG has 1 or 3 channels" in refusal(png(ARRAY), (2, 2, 3))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_png_is_refused_or_still_an_image(data: st.DataObject) -> None:
    content = bytearray(base64.b64decode(png(ARRAY)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = image_from(base64.b64encode(cut).decode(), SHAPE, field="x")
    except Refused:
        return
    assert found.shape == SHAPE
    assert 0 <= found.min() <= found.max() <= 1


def test_a_flat_tensor_is_read_by_rows() -> None:
    shape = (2, 1, 2, 2)
    numbers = [i / 10 for i in range(8)]

    flat = numbers_from(numbers, shape, field="data")
    nested = numbers_from(flat.double().tolist(), shape, field="data")

    assert torch.equal(flat, torch.tensor(numbers, dtype=torch.float32).reshape(shape))
    assert torch.equal(nested, flat)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", "data must be a list of numbers, got 'x'"),
        ([], "data must hold 8 numbers, got 0"),
        ([0.5] * 7, "data must hold 8 numbers, got 7"),
        ([0.5] * 7 + [2], "data.7 must be less than or equal to 1, got 2"),
        ([GRAY], "data must hold 2 images as its shape says, got 1"),
        ([GRAY, 0.5], "data.1 must be a valid list, got 0.5"),
    ],
)
def test_a_tensor_of_another_size_is_refused(value: object, said: str) -> None:
    with pytest.raises(Refused, match=said):
        numbers_from(value, (2, 1, 2, 2), field="data")


def test_long_values_are_quoted_short() -> None:
    assert shortened("x" * 10_000) == "'" + "x" * 59 + "..."
    assert shortened([0] * 7) == "a list of 7"
