"""Augmentation against every shift and flip, tried one by one."""

import pytest
import torch
from torch import Tensor

from deepzero_apps.vision import augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Moves an image (c, h, w), pixel by pixel; what comes in is zero."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                out[:, i, j] = image[:, i - down, j - right]
    return out


def test_nothing_to_do_is_the_identity() -> None:
    images = torch.rand(5, 3, 4, 6)
    assert torch.equal(augment(images, generator=seeded(), pad=0, flip=False), images)


def test_each_row_is_its_own_image_shifted_and_perhaps_flipped() -> None:
    images = torch.rand(40, 2, 4, 5)
    before = images.clone()
    found = set()
    for image, moved in zip(images, augment(images, generator=seeded(), pad=2), strict=True):
        matches = [
            (down, right, flipped)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for flipped in (False, True)
            if torch.equal(moved.flip(2) if flipped else moved, shifted(image, down, right))
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert torch.equal(images, before)
    assert len(found) > 20  # of 50 moves, 40 draws hit 27.7 on average, with deviation 2.2


def test_flips_and_shifts_are_uniform() -> None:
    # One bright pixel in the middle of a 5x5 image says where an image went.
    count, pad = 9_000, 1
    images = torch.zeros(count, 1, 5, 5)
    images[:, :, 2, 2] = 1
    moved = augment(images, generator=seeded(), pad=pad, flip=False)
    share = moved[:, 0, 1:4, 1:4].mean(0)
    # each of 9 places has probability 1/9; five standard errors of a share
    assert (share - 1 / 9).abs().max() < 5 * (1 / 9 * 8 / 9 / count) ** 0.5

    images = torch.zeros(count, 1, 1, 2)
    images[..., 0] = 1
    flipped = augment(images, generator=seeded(), pad=0)[:, 0, 0, 1].mean().item()
    assert flipped == pytest.approx(0.5, abs=5 * 0.5 / count**0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_dtype_is_kept_and_bits_depend_on_the_generator_alone(dtype: torch.dtype) -> None:
    images = (torch.rand(6, 1, 8, 8) * 255).to(dtype)
    first = augment(images, generator=seeded(3))
    torch.rand(1)
    assert first.dtype == dtype
    assert torch.equal(first, augment(images, generator=seeded(3)))
    assert not torch.equal(first, augment(images, generator=seeded(4)))


def test_an_empty_batch_stays_empty() -> None:
    assert augment(torch.rand(0, 3, 4, 4), generator=seeded()).shape == (0, 3, 4, 4)


def test_unfit_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must have shape .* got shape \(3, 4, 4\)"):
        augment(torch.rand(3, 4, 4), generator=seeded())
    with pytest.raises(ValueError, match="pad must be at least 0 pixels, got -1"):
        augment(torch.rand(1, 3, 4, 4), generator=seeded(), pad=-1)
