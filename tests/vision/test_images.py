"""Labelled images and their division."""

import pytest
import torch
from torch import Tensor

from deepzero_apps.vision import Images
from deepzero_apps.vision.images import cut_test, cut_validation, divide


def numbered(count: int, start: int = 0) -> Images:
    """Images whose one pixel is their number."""
    pixels = torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(pixels, torch.arange(count) % 2, ("even", "odd"))


def numbers(images: Images) -> list[int]:
    return images.images.flatten().tolist()


def test_bytes_become_float32_between_zero_and_one() -> None:
    images = Images(
        torch.tensor([0, 51, 255]).to(torch.uint8).view(3, 1, 1, 1),
        torch.zeros(3, dtype=torch.int64),
        ("a",),
    )
    assert images.pixels().dtype == torch.float32
    torch.testing.assert_close(
        images.pixels(torch.tensor([2, 1])).flatten(),
        torch.tensor([1.0, 0.2], dtype=torch.float32),
    )
    assert images.pixels(slice(1)).tolist() == [[[[0.0]]]]


def test_pixels_are_a_copy() -> None:
    images = Images(
        torch.zeros(1, 1, 2, 2, dtype=torch.float32), torch.zeros(1, dtype=torch.int64), ("a",)
    )
    images.pixels().fill_(1)
    images.pixels(slice(1)).fill_(1)
    assert images.images.sum() == 0
    assert images.shape == (1, 2, 2)


def test_parts_are_disjoint_and_keep_their_labels() -> None:
    parts = divide(numbered(100), (60, 30, 10), seed=0)
    assert [len(part) for part in parts] == [60, 30, 10]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(100))
    for part in parts:
        assert [number % 2 for number in numbers(part)] == part.labels.tolist()


def test_division_depends_on_its_seed_alone() -> None:
    first = numbers(divide(numbered(50), (50,), seed=3)[0])
    torch.manual_seed(9)
    assert numbers(divide(numbered(50), (50,), seed=3)[0]) == first
    assert numbers(divide(numbered(50), (50,), seed=4)[0]) != first


def test_a_given_test_set_is_kept_whole() -> None:
    splits = cut_validation(numbered(50), numbered(7, start=200), name="x", seed=1)
    assert numbers(splits.test) == list(range(200, 207))
    assert len(splits.validation) == 5
    assert sorted(numbers(splits.train) + numbers(splits.validation)) == list(range(50))


def test_without_a_test_set_a_fifth_and_a_tenth_are_cut() -> None:
    splits = cut_test(numbered(40), name="x", seed=1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (28, 4, 8)
    smallest = cut_test(numbered(3), name="x", seed=1)
    assert [len(s) for s in (smallest.train, smallest.validation, smallest.test)] == [1, 1, 1]


def test_too_few_images_and_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be enough for parts of .* got 2"):
        cut_test(numbered(2), name="x", seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        divide(numbered(3), (3,), seed=-1)


GOOD = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (GOOD.double(), LABELS, TypeError, "images must be uint8 or float32, got torch.float64"),
        (GOOD, LABELS.int(), TypeError, "labels must be int64, got torch.int32"),
        (GOOD[0], LABELS, ValueError, r"images must have shape \(n, c, h, w\)"),
        (GOOD, LABELS[:1], ValueError, r"labels must have shape \(2,\)"),
        (GOOD, LABELS + 1, ValueError, "labels must be within 0 and 1, got 2"),
        (GOOD, LABELS - 1, ValueError, "labels must be within 0 and 1, got -1"),
        (GOOD.float() + 1.5, LABELS, ValueError, "images must be within 0 and 1, got 1.5"),
        (GOOD.float() * float("nan"), LABELS, ValueError, "images must be within .* got nan"),
    ],
)
def test_unfit_images_are_refused(
    images: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Images(images, labels, ("a", "b"))
