"""Rounding against integers, and what stays outside of it."""

import pytest
import torch
from torch import Tensor

from deepzero_apps.smoothing.blackbox import CallableClassifier
from deepzero_apps.smoothing.quantized import Quantized


class Noted:
    """Notes what it was shown."""

    classes = 2
    fingerprint = "0"

    def __call__(self, images: Tensor) -> Tensor:
        self.shown = images
        return images.flatten(1)[:, :2]


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_images_are_clipped_and_rounded_to_the_nearest_level(bits: int) -> None:
    noted, images = Noted(), 2 * torch.rand(50, 1, 8, 8) - 0.5
    before = images.clone()
    quantized = Quantized(noted, bits=bits)

    quantized(images)

    levels = 2**bits - 1
    places = noted.shown.double() * levels
    # one rounding of float32 each at the multiplication and the division: 2^-24 relative
    torch.testing.assert_close(places, places.round(), rtol=2**-22, atol=0)
    assert noted.shown.dtype == torch.float32
    distance = (noted.shown.double() - images.clamp(0, 1)).abs().max()
    assert quantized.step / 4 < distance <= quantized.step / 2 + 2**-22
    assert quantized.step == 1 / levels
    assert torch.equal(images, before)


def test_rounding_twice_is_rounding_once() -> None:
    once, twice, images = Noted(), Noted(), torch.rand(50, 1, 8, 8)

    Quantized(once)(images)
    Quantized(Quantized(twice))(images)

    assert torch.equal(once.shown, twice.shown)


def test_displacements_below_half_a_level_are_not_seen_and_a_level_always_is() -> None:
    noted = Noted()
    quantized = Quantized(noted)
    middle = torch.full((1, 1, 1, 2), 100 / 255, dtype=torch.float32)

    def shown(step: float) -> float:
        quantized(middle + step * quantized.step)
        return round(float(noted.shown.flatten()[0]) * 255)

    assert [shown(step) for step in (-1.0, -0.4, 0.4, 1.0)] == [99, 100, 100, 101]


def test_the_fingerprint_knows_the_bits_and_the_classifier() -> None:
    one, other = (CallableClassifier(len, classes=2, name=name) for name in "ab")  # type: ignore[arg-type]
    prints = [Quantized(c, bits=bits).fingerprint for c in (one, other) for bits in (4, 8)]

    assert len({*prints, one.fingerprint, other.fingerprint}) == 6
    assert Quantized(one, bits=4).fingerprint == prints[0]
    assert Quantized(one).name == "a behind 8-bit images"


@pytest.mark.parametrize("bits", [0, 17, -8])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be in 1 ... 16, got {bits}"):
        Quantized(Noted(), bits=bits)


@pytest.mark.parametrize("bits", [8.0, "8", True])
def test_bits_that_are_no_integer_are_refused(bits: object) -> None:
    with pytest.raises(TypeError, match="bits must be an integer, got"):
        Quantized(Noted(), bits=bits)  # type: ignore[arg-type]
