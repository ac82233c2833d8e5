"""The Open Inference Protocol: FP32 tensors in, INT64 labels out, refusals by name."""

import json

import pytest
import torch

from deepzero_apps.smoothing.serving.inference_protocol import (
    infer_answer,
    infer_job,
    model_metadata,
)
from deepzero_apps.smoothing.serving.jobs import Answer
from deepzero_apps.smoothing.serving.pixels import Refused
from deepzero_apps.smoothing.serving.subject import Limits
from tests.smoothing.serving.subjects import DARK, LIGHT, subject

SERVED = subject()
LIMITS = Limits(images=3)
TENSOR = {"name": "image", "shape": [2, 1, 2, 2], "datatype": "FP32", "data": [LIGHT, DARK]}


def body(**fields: object) -> bytes:
    return json.dumps({"inputs": [TENSOR], **fields}).encode()


def test_a_request_is_answered_in_the_protocol_s_words() -> None:
    content = body(id="42", parameters={"n": 60, "priority": 1}, outputs=[{"name": "label"}])
    job, request = infer_job(content, SERVED, LIMITS)

    assert torch.equal(job.images, torch.tensor([LIGHT, DARK], dtype=torch.float32))
    assert (job.settings.n, job.settings.alpha) == (60, 0.01)
    assert infer_answer([Answer(1, 0, 0), Answer(-1, 0, 1)], job, request, "halves") == {
        "model_name": "halves",
        "id": "42",
        "parameters": {"n": 60, "alpha": 0.01, "sigma": 0.5},
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [2], "data": [1, -1]}],
    }


def test_the_metadata_says_what_a_request_must_hold() -> None:
    (tensor,) = model_metadata(SERVED)["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [-1, 1, 2, 2])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": []}, "inputs: List should have at least 1 item"),
        ({"inputs": [TENSOR, TENSOR]}, "inputs: List should have at most 1 item"),
        ({"inputs": [TENSOR | {"datatype": "UINT8"}]}, "datatype must be FP32, got 'UINT8'"),
        ({"inputs": [TENSOR | {"shape": []}]}, r"shape must be \[n, 1, 2, 2\] with n in 1 ... 3"),
        ({"inputs": [TENSOR | {"shape": [0, 1, 2, 2]}]}, r"got \[0, 1, 2, 2\]"),
        ({"inputs": [TENSOR | {"shape": [4, 1, 2, 2]}]}, r"got \[4, 1, 2, 2\]"),
        ({"inputs": [TENSOR | {"shape": [-2, 1, 2, 2]}]}, r"got \[-2, 1, 2, 2\]"),
        ({"inputs": [TENSOR | {"shape": [2, 4]}]}, r"got \[2, 4\]"),
        ({"inputs": [TENSOR | {"shape": [3, 1, 2, 2]}]}, "data must hold 3 images"),
        ({"inputs": [TENSOR | {"data": "x"}]}, "inputs.0.data: Input should be a valid array"),
        ({"inputs": [TENSOR | {"data": [2.0] * 8}]}, "inputs.0.data.0 must be less than or equal"),
        ({"outputs": [{"name": "scores"}]}, "outputs must be label, got 'scores'"),
        ({"parameters": {"n": 401}}, "n must be at most 400 here, got 401"),
        ({"id": 5}, "id: Input should be a valid string, got 5"),
    ],
)
def test_another_request_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        infer_job(body(**fields), SERVED, LIMITS)
    assert caught.value.status == 422
