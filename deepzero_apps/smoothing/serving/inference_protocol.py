"""The Open Inference Protocol (KServe v2) over JSON: metadata, tensors in, labels out.

The model has one input, ``image``, FP32 ``[n, channel, height, width]`` in [0, 1], and one output,
``label``, INT64 ``[n]``: the class of the smoothed classifier, -1 where it abstains. The
parameters ``n`` and ``alpha`` of a request choose votes and error; others are ignored, as the
protocol wants of extensions that a server does not know.

References:
    | Open Inference Protocol, HTTP/REST (KServe, NVIDIA, Seldon)
    | https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

__all__ = ["InferRequest", "infer_answer", "infer_job", "model_metadata", "server_metadata"]

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

import deepzero_apps
from deepzero_apps.smoothing.serving.jobs import Answer, Predicting
from deepzero_apps.smoothing.serving.pixels import Refused, numbers_from, shortened
from deepzero_apps.smoothing.serving.questions import chosen, read
from deepzero_apps.smoothing.serving.subject import Limits, Subject

_INPUT, _OUTPUT = "image", "label"


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True)


class _Input(_Lenient):
    name: str
    shape: list[int] = Field(max_length=8)
    datatype: str
    data: list[Any]


class _Output(_Lenient):
    name: str


class _Parameters(_Lenient):
    n: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(ge=1e-9, lt=0.5, allow_inf_nan=False)] | None = None


class InferRequest(_Lenient):
    """An inference request."""

    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] | None = Field(None, max_length=16)
    parameters: _Parameters | None = None


def server_metadata() -> dict[str, Any]:
    """Says which server this is."""
    return {"name": "deepzero-apps", "version": deepzero_apps.__version__, "extensions": []}


def model_metadata(subject: Subject) -> dict[str, Any]:
    """Says what the model takes and gives.

    Args:
        subject: What is served.
    """
    return {
        "name": subject.name,
        "versions": [],
        "platform": "deepzero-apps",
        "inputs": [{"name": _INPUT, "datatype": "FP32", "shape": [-1, *subject.shape]}],
        "outputs": [{"name": _OUTPUT, "datatype": "INT64", "shape": [-1]}],
    }


def infer_job(body: bytes, subject: Subject, limits: Limits) -> tuple[Predicting, InferRequest]:
    """Reads the body of an inference request.

    Args:
        body: JSON of an `InferRequest`.
        subject: What is served.
        limits: What a request may take.

    Returns:
        The job, and the request it answers.

    Raises:
        Refused: If it is anything else.
    """
    request = read(InferRequest, body)
    (tensor,) = request.inputs
    wanted = [output.name for output in request.outputs or ()]
    if any(name != _OUTPUT for name in wanted):
        raise Refused(f"outputs must be {_OUTPUT}, got {shortened(', '.join(wanted))}")
    if tensor.datatype != "FP32":
        raise Refused(f"inputs.0.datatype must be FP32, got {shortened(tensor.datatype)}")
    rows = tensor.shape[0] if tensor.shape else 0
    if tuple(tensor.shape[1:]) != subject.shape or not 1 <= rows <= limits.images:
        raise Refused(
            f"inputs.0.shape must be {['n', *subject.shape]} with n in 1 ... {limits.images}, "
            f"got {tensor.shape}".replace("'", "")
        )
    images = numbers_from(tensor.data, tuple(tensor.shape), field="inputs.0.data")
    wishes = request.parameters or _Parameters()
    settings = chosen(
        subject, n=wishes.n or subject.n, alpha=wishes.alpha, procedure="fixed", radii=()
    )
    return Predicting(images=images, settings=settings), request


def infer_answer(
    answers: Sequence[Answer], job: Predicting, request: InferRequest, name: str
) -> dict[str, Any]:
    """Writes predictions as the protocol has it.

    Args:
        answers: One an image.
        job: What was asked of the worker.
        request: What was asked of the service.
        name: The model's name.
    """
    settings = job.settings
    labels = [answer.label for answer in answers]
    return {
        "model_name": name,
        **({} if request.id is None else {"id": request.id}),
        "parameters": {"n": settings.n, "alpha": settings.alpha, "sigma": settings.sigma},
        "outputs": [
            {"name": _OUTPUT, "datatype": "INT64", "shape": [len(labels)], "data": labels}
        ],
    }
