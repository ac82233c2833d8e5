"""Responses, good, bad and hostile, against what each of their rows should be."""

import json
import math

import numpy as np
import pytest

from deepzero_apps.smoothing.services.decoding import Garbage, Reader, Reading
from deepzero_apps.smoothing.services.service import Service


def reading(content: object, rows: int, **fields: object) -> Reading:
    chosen = {"url": "http://h", "classes": ["cat", "dog", "eel"], **fields}
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reader(Service.model_validate(chosen))(raw, rows)


def one(item: object, **fields: object) -> object:
    """The value of one answer."""
    return reading({"predictions": [item]}, 1, **fields).values[0].tolist()


def test_scores_are_taken_as_they_are_and_probabilities_as_clipped_logarithms() -> None:
    assert one([1, -2.5, 3e4]) == [1, -2.5, 3e4]
    assert one({"eel": 3, "cat": 1, "dog": 2, "other": 9}) == [1, 2, 3]
    logarithms = one([0.25, 0.75, 0.0], answer="probabilities")
    assert logarithms == [math.log(0.25), math.log(0.75), math.log(1e-6)]


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        {},
        "cat",
        7,
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, None],
        [1, 2, "3"],
        [1, 2, True],
        [1, 2, math.nan],
        [1, 2, math.inf],
        [1, 2, 10**400],
        [[1, 2, 3]],
        {"cat": 1, "dog": 2},
    ],
)
def test_what_are_no_finite_scores_loses_its_row_alone(item: object) -> None:
    read = reading({"predictions": [[1, 2, 3], item, [4, 5, 6]]}, 3)

    np.testing.assert_array_equal(read.values, [[1, 2, 3], [np.nan] * 3, [4, 5, 6]])
    assert read.answered == 2


@pytest.mark.parametrize("item", [[0.5, 0.6, -0.1], [0.5, 1.1, 0.0], [-3.0, -1.0, -2.0]])
def test_what_are_no_probabilities_loses_its_row(item: list[float]) -> None:
    assert np.isnan(one(item, answer="probabilities")).all()


@pytest.mark.parametrize(
    ("item", "label"), [("dog", 1), (2, 2), ("Dog", -1), ("1", -1), (3, -1), (-1, -1)]
)
def test_a_label_is_a_name_or_a_place(item: object, label: int) -> None:
    read = reading({"predictions": [item, "cat"]}, 2, answer="label")

    assert read.values.tolist() == [label, 0]
    assert read.answered == 2
    assert read.unknown == ((str(item),) if label < 0 else ())


def test_a_number_is_a_name_where_classes_are_numbers() -> None:
    labels = [one(item, answer="label", classes=["3", "1", "7"]) for item in (3, "3", 1, 7, 0, 2)]

    assert labels == [0, 0, 1, 2, -1, -1]


@pytest.mark.parametrize("item", [None, "", True, 1.0, ["cat"], {"label": "cat"}])
def test_what_is_no_label_is_no_answer(item: object) -> None:
    read = reading({"predictions": [item]}, 1, answer="label")

    assert (read.values.tolist(), read.answered, read.unknown) == ([-1], 0, ())


def test_of_top_k_the_highest_score_is_the_label_wherever_it_stands() -> None:
    entries = [{"label": "cat", "score": 0.2}, {"label": "eel", "score": 0.7}]
    renamed = [{"class": "cat", "p": 0.2}, {"class": 1, "p": 1}]

    assert one(entries, answer="top-k") == one(entries[::-1], answer="top-k") == 2
    assert one(renamed, answer="top-k", label="class", score="p") == 1


@pytest.mark.parametrize(
    ("item", "answered"),
    [
        ([{"label": "newt", "score": 0.7}, {"label": "cat", "score": 0.2}], 1),
        ([{"label": "cat", "score": None}], 0),
        ([{"label": "cat", "score": 0.2}, {"label": "dog", "score": math.nan}], 0),
        ([{"label": "cat"}], 0),
        ([{"score": 0.3}], 0),
        (["cat"], 0),
        ([], 0),
        (None, 0),
    ],
)
def test_a_top_label_that_is_no_class_or_none_is_lost(item: object, answered: int) -> None:
    read = reading({"predictions": [item]}, 1, answer="top-k")

    assert (read.values.tolist(), read.answered) == ([-1], answered)


def test_paths_lead_to_the_list_and_into_each_row() -> None:
    content = {"a": [{"b": [{"s": [1, 2, 3]}, None, {"s": []}]}]}
    read = reading(content, 3, answers="a[0].b", row="s")

    np.testing.assert_array_equal(read.values, [[1, 2, 3], [np.nan] * 3, [np.nan] * 3])


def test_the_answer_to_one_image_needs_no_list() -> None:
    fields = {"request": {"inputs": "$image"}, "batch": 1, "answers": "@", "answer": "top-k"}

    assert reading([{"label": "dog", "score": 1}], 1, **fields).values.tolist() == [1]


def tensor(shape: object, data: object, name: str = "y") -> dict[str, object]:
    return {"outputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}]}


@pytest.mark.parametrize("data", [[1, 2, 3, 4, None, 6], [[1, 2, 3], [4, None, 6]]])
def test_a_tensor_may_be_flat_or_nested(data: object) -> None:
    read = reading(tensor([2, 3], data), 2, protocol="open-inference")

    np.testing.assert_array_equal(read.values, [[1, 2, 3], [np.nan] * 3])


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_tensor_of_labels(shape: list[int]) -> None:
    fields = {"protocol": "open-inference", "answer": "label"}

    assert reading(tensor(shape, ["eel", 1]), 2, **fields).values.tolist() == [2, 1]
    with pytest.raises(Garbage, match="more than one label an image"):
        reading(tensor([1, 2], ["eel", 1]), 1, **fields)


def test_an_output_is_found_by_name() -> None:
    content = {
        "outputs": [*tensor([1], [0])["outputs"], *tensor([1, 3], [1, 2, 3], "z")["outputs"]]
    }  # type: ignore[misc]

    read = reading(content, 1, protocol="open-inference", output="z")

    assert read.values.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b'{"predictions": [[1, 2, 3]', "no JSON"),
        (b"[" * 10**5, "no JSON"),
        (b'{"predictions": [[1, 2, ' + b"9" * 5000 + b"]]}", "no JSON"),
        ({}, "no list at 'predictions'"),
        ([[1, 2, 3]], "no list at 'predictions'"),
        ({"predictions": None}, "no list at 'predictions'"),
        ({"predictions": {"cat": 1}}, "no list at 'predictions'"),
        ({"predictions": []}, "0 answers to 1 images"),
        ({"predictions": [[1, 2, 3]] * 2}, "2 answers to 1 images"),
    ],
)
def test_a_body_that_does_not_fit_the_images_is_garbage(content: object, message: str) -> None:
    with pytest.raises(Garbage, match=message):
        reading(content, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no output tensor"),
        ({"outputs": [1, None]}, "no output tensor"),
        ({"outputs": []}, "no output tensor"),
        (tensor([1, 3], [1, 2]), "do not fit its shape"),
        (tensor([1, 3], [1, 2, 3, 4]), "do not fit its shape"),
        (tensor([2, 3], [1, 2, 3, 4, 5, 6]), "2 answers to 1 images"),
        (tensor([0, 3], []), "0 answers to 1 images"),
        (tensor([1, 0], []), "0 answers to 1 images"),
        (tensor([], [1]), "without shape or data"),
        (tensor([1.0, 3], [1, 2, 3]), "without shape or data"),
        (tensor([-1, -3], [1, 2, 3]), "without shape or data"),
        (tensor([1, 3], "abc"), "without shape or data"),
        (tensor(None, [1, 2, 3]), "without shape or data"),
    ],
)
def test_a_tensor_that_does_not_fit_the_images_is_garbage(content: object, message: str) -> None:
    with pytest.raises(Garbage, match=message):
        reading(content, 1, protocol="open-inference")


@pytest.mark.parametrize("answer", ["scores", "probabilities", "label", "top-k"])
def test_lost_images_have_rows_of_their_kind(answer: str) -> None:
    service = Service.model_validate({"url": "http://h", "classes": ["a", "b"], "answer": answer})
    lost = Reader(service).lost(4)

    expected = np.full((4, 2), np.nan) if service.scores else np.full(4, -1)
    np.testing.assert_array_equal(lost.values, expected)
    assert lost.answered == 0
