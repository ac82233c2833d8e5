"""What is served and its limits refuse what does not fit."""

import pytest
import torch

from deepzero_apps.smoothing.serving import Limits
from tests.smoothing.serving.subjects import subject


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a/b"}, "name must be of letters"),
        ({"name": ""}, "name must be of letters"),
        ({"classes": ("one",)}, "classes must name the 2 classes of the classifier, got 1"),
        ({"n": 401}, r"n must be in 1 ... 400, got 401"),
        ({"n": 0}, r"n must be in 1 ... 400, got 0"),
        ({"n": 1}, r"n must be at least .* at alpha 0.01, got 1"),
        ({"example": torch.zeros(1, 3, 3)}, "example must have shape"),
    ],
)
def test_a_subject_that_does_not_fit_itself_is_refused(
    fields: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        subject(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"body": 0}, "body must be at least 1"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"timeout": 0.0}, "timeout must be positive and finite"),
        ({"timeout": float("nan")}, "timeout must be positive and finite"),
    ],
)
def test_limits_out_of_range_are_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Limits(**fields)  # type: ignore[arg-type]


def test_a_body_has_room_for_the_longest_numbers_but_ends_at_8_mib() -> None:
    longest = ",".join([" -2.2250738585072014e-308"] * 3 * 32 * 32)  # 24 and a comma each
    assert Limits.body_for(1, (3, 32, 32)) >= len(longest)
    assert Limits.body_for(10_000, (3, 32, 32)) == 8 * 2**20
