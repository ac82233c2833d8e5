"""Lost answers: let through where they are declared, refused where they are not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepzero_apps.smoothing.answers import (
    NO_VOTE,
    ClassifierError,
    checked,
    labels_of,
    loses_votes,
)

NAN = float("nan")
IMAGES = torch.rand(3, 1, 2, 2)


def answer(values: list[object], *, may_lose: bool) -> Tensor:
    return checked(
        lambda _: torch.tensor(values), IMAGES, classes=2, name="remote", may_lose=may_lose
    )


def test_a_row_that_is_all_nan_has_no_vote_and_the_others_have_their_highest_score() -> None:
    scores = torch.tensor([[1.0, 2.0], [NAN, NAN], [3.0, 2.0], [-torch.inf, -torch.inf]])

    assert labels_of(scores).tolist() == [1, NO_VOTE, 0, 0]
    assert labels_of(scores).dtype == torch.int64


def test_labels_stay_as_they_are() -> None:
    labels = torch.tensor([1, NO_VOTE, 0])

    assert labels_of(labels).tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    "values", [[1, NO_VOTE, 0], [NO_VOTE] * 3, [[1.0, 2.0], [NAN, NAN], [3.0, 2.0]]]
)
def test_lost_rows_pass_where_they_are_declared(values: list[object]) -> None:
    torch.testing.assert_close(
        answer(values, may_lose=True), torch.tensor(values), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, NO_VOTE, 0], r"labels must be in 0 \.\.\. 1, got -1 \.\.\. 1"),
        ([[1.0, 2.0], [NAN, NAN], [3.0, 2.0]], "got NaN scores, first in row 1"),
    ],
)
def test_lost_rows_are_an_error_of_a_local_classifier(values: list[object], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        answer(values, may_lose=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, -2, 0], r"labels must be in -1 \.\.\. 1, got -2"),
        ([1, 2, 0], r"labels must be in -1 \.\.\. 1, got 0 \.\.\. 2"),
        ([[NAN, NAN], [NAN, 2.0], [3.0, 2.0]], "got NaN scores, first in row 1"),
        ([[NAN, NAN], [0.0, 2.0], [torch.inf, 2.0]], "got infinite scores, first in row 2"),
        ([[NAN, NAN], [0.0, 2.0]], r"got shape \(2, 2\)"),
    ],
)
def test_what_is_half_broken_is_an_error_of_any_classifier(
    values: list[object], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message):
        answer(values, may_lose=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [(lambda: object(), False), (lambda: type("C", (), {"may_lose": True})(), True)],
)
def test_a_classifier_loses_votes_only_where_it_says_so(
    make: Callable[[], object], expected: bool
) -> None:
    assert loses_votes(make()) is expected  # type: ignore[arg-type]
