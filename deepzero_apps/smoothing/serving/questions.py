"""What clients may ask, read from the bytes of a body to a job, and answers as JSON can hold them.

The body is JSON, strict: unknown fields, NaN, numbers as strings and values out of range are
refused, with the field's name. What a request may choose is what `Settings` allows, within the
limits of the service.
"""

__all__ = [
    "CertifyRequest",
    "PredictRequest",
    "certificate_answer",
    "certify_job",
    "chosen",
    "predict_answer",
    "predict_job",
    "read",
]

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepzero_apps.smoothing.bounds import WITH_RADII, Procedure, Settings
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.rules import rule_of
from deepzero_apps.smoothing.serving.jobs import Answer, Certifying, Predicting
from deepzero_apps.smoothing.serving.pixels import Refused, image_from, shortened
from deepzero_apps.smoothing.serving.subject import Limits, Subject

M = TypeVar("M", bound=BaseModel)

_Alpha = Annotated[float, Field(ge=1e-9, lt=0.5, allow_inf_nan=False)]
_Radius = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
_Votes = Annotated[int, Field(ge=1)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class PredictRequest(_Request):
    """Asks for the classes of images."""

    images: list[Any] = Field(min_length=1)
    """Each nested numbers in [0, 1] of shape [channel, height, width], or the base64 of a PNG."""

    n: _Votes | None = None
    """Votes an image."""

    alpha: _Alpha | None = None
    """Probability of an answer other than that of the smoothed classifier."""


class CertifyRequest(_Request):
    """Asks for the certificate of one image."""

    image: Any
    """Nested numbers in [0, 1] of shape [channel, height, width], or the base64 of a PNG."""

    label: int | str | None = None
    """The true class, place or name, if it is known; only repeated in the certificate."""

    n: _Votes | None = None
    """Votes that bound the class's probability, at most so many."""

    n0: _Votes | None = None
    """Votes that select the class."""

    alpha: _Alpha | None = None
    """Probability that the certificate is false."""

    procedure: Procedure | None = None
    """How many votes are drawn: fixed, adaptive, decide or anytime."""

    radii: list[_Radius] | None = Field(None, max_length=8)
    """The radii to decide, ascending; for decide and adaptive."""


def read(kind: type[M], body: bytes) -> M:
    """Reads a body.

    Args:
        kind: The model of the request.
        body: JSON in UTF-8.

    Returns:
        The request.

    Raises:
        Refused: With status 400 if it is no JSON, 422 if it is another request.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        if fault["type"] == "json_invalid":
            reason = fault["msg"].removeprefix("Invalid JSON: ")
            raise Refused(f"the body must be JSON in UTF-8: {reason}", status=400) from error
        place = ".".join(map(str, fault["loc"])) or "the body"
        raise Refused(f"{place}: {fault['msg']}, got {shortened(fault['input'])}") from error


def chosen(subject: Subject, **wishes: object) -> Settings:
    """Gives the settings of a request: its wishes, the service's own where it has none.

    Args:
        subject: What is served.
        **wishes: Fields of `Settings`; None for none.

    Returns:
        The settings.

    Raises:
        Refused: If they are not allowed, or could not certify anything.
    """
    given: dict[str, Any] = {name: value for name, value in wishes.items() if value is not None}
    for name in ("n", "n0"):
        if given.get(name, 0) > subject.settings.n:
            raise Refused(f"{name} must be at most {subject.settings.n} here, got {given[name]}")
    if "procedure" in given and "radii" not in given:
        keeps = given["procedure"] in WITH_RADII
        given["radii"] = subject.settings.radii if keeps else ()
    try:
        settings = replace(subject.settings, **given)
        rule_of(settings)  # refuses radii out of reach
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from error
    return settings


def predict_job(body: bytes, subject: Subject, limits: Limits) -> Predicting:
    """Reads the body of a wish for classes.

    Args:
        body: JSON of a `PredictRequest`.
        subject: What is served.
        limits: What a request may take.

    Returns:
        The job.

    Raises:
        Refused: If it is anything else.
    """
    request = read(PredictRequest, body)
    if len(request.images) > limits.images:
        raise Refused(f"images must be at most {limits.images}, got {len(request.images)}")
    images = [
        image_from(value, subject.shape, field=f"images.{place}")
        for place, value in enumerate(request.images)
    ]
    settings = chosen(
        subject, n=request.n or subject.n, alpha=request.alpha, procedure="fixed", radii=()
    )
    return Predicting(images=torch.stack(images), settings=settings)


def certify_job(body: bytes, subject: Subject) -> Certifying:
    """Reads the body of a wish for a certificate.

    Args:
        body: JSON of a `CertifyRequest`.
        subject: What is served.

    Returns:
        The job.

    Raises:
        Refused: If it is anything else.
    """
    request = read(CertifyRequest, body)
    settings = chosen(
        subject,
        n=request.n,
        n0=request.n0,
        alpha=request.alpha,
        procedure=request.procedure,
        radii=None if request.radii is None else tuple(request.radii),
    )
    image = image_from(request.image, subject.shape, field="image")
    label = None if request.label is None else _label(request.label, subject.classes)
    return Certifying(images=image[None], settings=settings, label=label)


def predict_answer(
    answers: Sequence[Answer], job: Predicting, classes: Sequence[str]
) -> dict[str, Any]:
    """Writes predictions: name and place of each class, null for abstention.

    Args:
        answers: One an image.
        job: What was asked.
        classes: The names of the classes.
    """
    return {
        "predictions": [
            {
                "class": None if a.label == ABSTAIN else classes[a.label],
                "index": None if a.label == ABSTAIN else a.label,
                "noise": {"seed": a.seed, "place": a.place},
            }
            for a in answers
        ],
        "n": job.settings.n,
        "alpha": job.settings.alpha,
        "sigma": job.settings.sigma,
    }


def certificate_answer(
    certificate: Certificate, job: Certifying, classes: Sequence[str]
) -> dict[str, Any]:
    """Writes a certificate with the name of its class, null for abstention.

    Args:
        certificate: The certificate.
        job: What was asked; without a label, ``label`` and ``correct`` are null.
        classes: The names of the classes.
    """
    fields = asdict(certificate)
    if job.label is None:
        fields |= {"label": None, "correct": None}
    abstained = certificate.predicted == ABSTAIN
    return {"class": None if abstained else classes[certificate.predicted], "certificate": fields}


def _label(label: int | str, classes: Sequence[str]) -> int:
    if isinstance(label, str):
        if label not in classes:
            raise Refused(f"label must be one of the classes' names, got {shortened(label)}")
        return list(classes).index(label)
    if not 0 <= label < len(classes):
        raise Refused(f"label must be in 0 ... {len(classes) - 1}, got {shortened(label)}")
    return label
