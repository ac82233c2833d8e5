"""Bodies of requests, read back by another reader."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepzero_apps.smoothing.services.encoding import body
from deepzero_apps.smoothing.services.service import Service


def sent(images: np.ndarray, **fields: object) -> Any:  # noqa: ANN401, whatever JSON holds
    service = Service.model_validate({"url": "http://h", "classes": ["a", "b"], **fields})
    return json.loads(body(images, service))


@pytest.fixture
def noisy() -> np.ndarray:
    """Color images that leave [0, 1]."""
    drawn = np.random.default_rng(0).normal(0.5, 0.5, (2, 3, 4, 5))
    images: np.ndarray = drawn.astype(np.float32)
    return images


def bytes_of(images: np.ndarray) -> np.ndarray:
    """Pixel by pixel, by Python's own rounding."""
    flat = [round(min(max(float(value), 0.0), 1.0) * 255) for value in images.ravel()]
    return np.array(flat).reshape(images.shape)


def test_floats_come_back_bit_by_bit_nested_and_flat_channels_first_and_last(
    noisy: np.ndarray,
) -> None:
    last = np.moveaxis(noisy, 1, -1)
    for encoding, layout, expected in (
        ("nested", "chw", noisy),
        ("nested", "hwc", last),
        ("flat", "chw", noisy.reshape(2, -1)),
        ("flat", "hwc", last.reshape(2, -1)),
    ):
        found = np.array(sent(noisy, encoding=encoding, layout=layout)["instances"])
        np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_bytes_and_png_files_hold_the_same_rounded_pixels(noisy: np.ndarray) -> None:
    expected = bytes_of(noisy)

    as_bytes = np.array(sent(noisy, encoding="uint8")["instances"])
    files = sent(noisy, encoding="png", image={"b64": "$image"})["instances"]
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(f["b64"])))) for f in files]

    np.testing.assert_array_equal(as_bytes, expected)
    np.testing.assert_array_equal(np.moveaxis(np.stack(pixels), -1, 1), expected)


def test_a_gray_image_is_a_gray_file() -> None:
    [file] = sent(np.full((1, 1, 2, 3), 0.5, np.float32), encoding="png")["instances"]
    picture = Image.open(io.BytesIO(base64.b64decode(file)))

    assert (picture.mode, picture.size) == ("L", (3, 2))


def test_templates_are_filled_in_their_one_place() -> None:
    x = np.zeros((2, 1, 1, 1), np.float32)
    template = {"model": "m", "batch": {"data": "$images", "n": [1, None, True]}}

    assert sent(x, encoding="flat", request=template, image={"x": "$image"}) == {
        "model": "m",
        "batch": {"data": [{"x": [0.0]}, {"x": [0.0]}], "n": [1, None, True]},
    }
    assert sent(x[:1], request="$image", batch=1, encoding="flat") == [0.0]
    url = sent(x[:1], encoding="png", image="data:image/png;base64,$image")["instances"][0]
    assert base64.b64decode(url.partition(",")[2]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "shape", "datatype"),
    [
        ({}, [2, 3, 4, 5], "FP32"),
        ({"layout": "hwc"}, [2, 4, 5, 3], "FP32"),
        ({"encoding": "flat"}, [2, 60], "FP32"),
        ({"encoding": "uint8"}, [2, 3, 4, 5], "UINT8"),
        ({"encoding": "png"}, [2], "BYTES"),
    ],
)
def test_a_tensor_says_its_shape_and_type_and_is_flat(
    *, noisy: np.ndarray, fields: dict[str, object], shape: list[int], datatype: str
) -> None:
    body = sent(noisy, protocol="open-inference", input="pixels", output="y", **fields)

    [tensor] = body["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("pixels", shape, datatype)
    assert body["outputs"] == [{"name": "y"}]
    assert len(tensor["data"]) == np.prod(shape)
    ordered = noisy if fields.get("layout") != "hwc" else np.moveaxis(noisy, 1, -1)
    if datatype == "FP32":
        np.testing.assert_array_equal(np.float32(tensor["data"]), ordered.ravel())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="images must be finite"):
        sent(np.full((1, 1, 1, 1), value, np.float32), encoding="png")


def test_what_has_no_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels to be sent as PNG, got 2"):
        sent(np.zeros((1, 2, 1, 1), np.float32), encoding="png")
    with pytest.raises(ValueError, match="must stand alone unless encoding is png"):
        sent(np.zeros((1, 1, 1, 1), np.float32), image="x$image")
