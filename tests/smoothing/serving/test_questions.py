"""Requests read from bytes: what they may choose, and what is refused by name."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import certify
from deepzero_apps.smoothing.serving.jobs import Answer
from deepzero_apps.smoothing.serving.pixels import Refused
from deepzero_apps.smoothing.serving.questions import (
    certificate_answer,
    certify_job,
    predict_answer,
    predict_job,
)
from deepzero_apps.smoothing.serving.subject import Limits
from tests.smoothing.serving.subjects import DARK, LIGHT, subject

SERVED = subject()
LIMITS = Limits(images=3)


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_a_prediction_takes_the_service_s_settings_or_its_own() -> None:
    plain = predict_job(body(images=[LIGHT]), SERVED, LIMITS)
    wished = predict_job(body(images=[LIGHT, DARK], n=70, alpha=0.05), SERVED, LIMITS)

    assert plain.settings == Settings(sigma=0.5, n0=10, n=50, alpha=0.01)
    assert wished.settings == Settings(sigma=0.5, n0=10, n=70, alpha=0.05)
    assert torch.equal(wished.images, torch.tensor([LIGHT, DARK], dtype=torch.float32))
    assert wished.votes == 140


def test_a_certificate_takes_the_most_votes_unless_it_chooses() -> None:
    plain = certify_job(body(image=LIGHT), SERVED)
    wished = certify_job(
        body(image=LIGHT, label="light", n=99, n0=5, procedure="decide", radii=[0.1, 0.3]), SERVED
    )

    assert (plain.settings, plain.label) == (SERVED.settings, None)
    assert (wished.settings.n, wished.settings.n0, wished.label) == (99, 5, 1)
    assert (wished.settings.procedure, wished.settings.radii) == ("decide", (0.1, 0.3))
    assert certify_job(body(image=LIGHT, label=0), SERVED).label == 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "the body must be JSON in UTF-8"),
        (b"{", 400, "the body must be JSON in UTF-8"),
        (b'{"images": [[[[0.5, 0.5', 400, "the body must be JSON in UTF-8"),
        (b'{"images": ["\xff\xfe"]}', 400, "the body must be JSON in UTF-8"),
        ("{}".encode("utf-16"), 400, "the body must be JSON in UTF-8"),
        (b"[" * 100_000, 400, "the body must be JSON in UTF-8"),
        (b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "the body must be JSON"),
        (b'{"images": [' + b"9" * 5000 + b"]}", 400, "the body must be JSON"),
        (b"null", 422, "the body: Input should be an object, got None"),
        (b"[]", 422, "the body: Input should be an object, got a list of 0"),
        (b"{}", 422, "images: Field required"),
        (body(images=[]), 422, "images: List should have at least 1 item"),
        (body(images=LIGHT[0][0][0]), 422, "images: Input should be a valid array"),
        (body(images=[LIGHT] * 4), 422, "images must be at most 3, got 4"),
        (body(images=[LIGHT, [[["a"]]]]), 422, r"images.1.0.0.0 must be a valid number, got 'a'"),
        (b'{"images": [[[[0.5, NaN], [0, 0]]]]}', 422, "images.0.0.0.1 must be a finite number"),
        (b'{"images": [[[[0.5, 1e999], [0, 0]]]]}', 422, "images.0.0.0.1 must be a finite number"),
        (body(images=[LIGHT], sigma=9), 422, "sigma: Extra inputs are not permitted, got 9"),
        (body(images=[LIGHT], n="5"), 422, "n: Input should be a valid integer, got '5'"),
        (body(images=[LIGHT], n=True), 422, "n: Input should be a valid integer, got True"),
        (body(images=[LIGHT], n=0), 422, "n: Input should be greater than or equal to 1, got 0"),
        (body(images=[LIGHT], n=401), 422, "n must be at most 400 here, got 401"),
        (body(images=[LIGHT], n=10**30), 422, "n must be at most 400 here"),
        (body(images=[LIGHT], n=1), 422, "n must be at least .* at alpha 0.01, got 1"),
        (body(images=[LIGHT], alpha=0.5), 422, "alpha: Input should be less than 0.5"),
        (b'{"images": [], "alpha": NaN}', 422, "List should have at least 1|finite number"),
        (b'{"images": [0], "alpha": NaN}', 422, "alpha: Input should be a finite number"),
        (body(images=[LIGHT], alpha=1e-12), 422, "alpha: Input should be greater than or equal"),
    ],
)
def test_a_prediction_that_cannot_be_is_refused(content: bytes, status: int, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        predict_job(content, SERVED, LIMITS)
    assert caught.value.status == status
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": [LIGHT]}, "image.0.0.0 must be a valid number, got a list of 2"),
        ({"image": LIGHT, "n0": 401}, "n0 must be at most 400 here, got 401"),
        ({"image": LIGHT, "label": 2}, r"label must be in 0 ... 1, got 2"),
        ({"image": LIGHT, "label": -1}, r"label must be in 0 ... 1, got -1"),
        ({"image": LIGHT, "label": "blue"}, "label must be one of the classes' names, got 'blue'"),
        ({"image": LIGHT, "procedure": "all"}, "procedure: Input should be 'fixed'"),
        ({"image": LIGHT, "procedure": "decide"}, "radii must be positive"),
        ({"image": LIGHT, "radii": [0.1]}, "radii must be positive"),
        ({"image": LIGHT, "procedure": "decide", "radii": [1, 0.5]}, "radii must be positive"),
        ({"image": LIGHT, "procedure": "decide", "radii": [9]}, "radii"),
        ({"image": LIGHT, "procedure": "adaptive", "radii": [9]}, "radii"),
        ({"image": LIGHT, "procedure": "decide", "radii": [0]}, "radii.0: Input should be great"),
        ({"image": LIGHT, "procedure": "decide", "radii": [0.1] * 9}, "at most 8 items"),
    ],
)
def test_a_certificate_that_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(Refused, match=said):
        certify_job(body(**fields), SERVED)


def test_abstention_is_null_and_not_a_class() -> None:
    job = predict_job(body(images=[LIGHT, DARK]), SERVED, LIMITS)

    found = predict_answer([Answer(1, 7, 0), Answer(-1, 7, 1)], job, SERVED.classes)

    assert found["predictions"] == [
        {"class": "light", "index": 1, "noise": {"seed": 7, "place": 0}},
        {"class": None, "index": None, "noise": {"seed": 7, "place": 1}},
    ]
    assert (found["n"], found["alpha"], found["sigma"]) == (50, 0.01, 0.5)


def test_a_certificate_of_an_unknown_label_says_neither_right_nor_wrong() -> None:
    known, unknown = (certify_job(body(image=LIGHT, **x), SERVED) for x in ({"label": 1}, {}))
    (made,) = certify(SERVED.classifier, known.images, torch.tensor([1]), known.settings)

    answer = certificate_answer(made, known, SERVED.classes)

    assert answer == {"class": "light", "certificate": asdict(made)}
    assert made.correct
    blank = certificate_answer(made, unknown, SERVED.classes)["certificate"]
    assert blank == {**asdict(made), "label": None, "correct": None}
    abstained = certificate_answer(replace(made, predicted=-1), known, SERVED.classes)
    assert abstained["class"] is None
