"""What a service is: where it listens, what it is sent, what it answers.

The description is one YAML or JSON file. It is free of secrets, because headers take them from the
environment, and so it can be committed beside the runs that it made. Two protocols:

``json``
    `request` is sent, with the images in the place of ``"$images"``, each wrapped as `image`
    says. `answers`, a JMESPath, leads to the list of answers in what comes back, one an image
    in their order, and `row`, another, to what counts inside each of them. A service that takes
    one image a request has ``"$image"`` in `request`; `answers` then leads to its one answer.
``open-inference``
    The Open Inference Protocol, version 2, with tensors as JSON: one input tensor, one output
    tensor.

References:
    | Open Inference Protocol, version 2
    | https://github.com/kserve/open-inference-protocol

    | JMESPath
    | https://jmespath.org/specification.html
"""

__all__ = ["Service"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from deepzero_apps.foreign import read_mapping
from deepzero_apps.smoothing.services.credentials import check_header, check_query, is_literal

_PLACE = re.compile(r"\$images?\b")
_SPEED = {
    "batch",
    "concurrency",
    "timeout",
    "retries",
    "backoff",
    "longest_wait",
    "rate",
    "give_up",
}
_ONE_PROTOCOL = {
    "json": ("request", "image", "answers", "row", "label", "score"),
    "open-inference": ("input", "output"),
}
_PROJECTIONS = {"projection", "value_projection", "filter_projection", "flatten"}


class Service(BaseModel):
    """A prediction service: a frozen, validated description; see the module.

    Example:
        >>> Service(url="http://localhost:8080/classify", classes=["cat", "dog"]).batch
        32
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    url: str
    """Where requests are posted, http or https."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of the scores. A label of another name is lost."""

    protocol: Literal["json", "open-inference"] = "json"
    """How images and answers are written."""

    encoding: Literal["nested", "flat", "uint8", "png"] = "nested"
    """An image as nested lists of floats, as one list of floats, as nested lists of 0 ... 255, or
    as base64 of a PNG file. The last two clip to [0, 1] and round to the grid of 1/255."""

    layout: Literal["chw", "hwc"] = "chw"
    """Channels first or last, in all encodings but png."""

    request: JsonValue = {"instances": "$images"}
    """The body of a request, with "$images" once, or "$image" once for one image a request."""

    image: JsonValue = "$image"
    """What stands for one image, with "$image" once, such as {"b64": "$image"}."""

    answers: str = "predictions"
    """JMESPath from the body of the response to the list of answers. No projection ([*], []):
    it would drop null, and later answers would move to other images."""

    row: str = "@"
    """JMESPath from one element of that list to its answer."""

    answer: Literal["scores", "probabilities", "label", "top-k"] = "scores"
    """One answer: a list of numbers (or an object of them by class name), a label, or a list of
    objects, of which the one with the highest score is the label. An integer label is a name
    where a class has a number for its name, and a place in `classes` otherwise."""

    label: str = "label"
    """The key of the label in an object of top-k."""

    score: str = "score"
    """The key of the score in an object of top-k."""

    input: str = "input"
    """The name of the input tensor."""

    output: str | None = None
    """The name of the output tensor; the first by default."""

    headers: dict[str, str] = {}
    """Further headers. ${NAME} stands for a variable of the environment, which is the only place
    for credentials."""

    batch: int = Field(32, ge=1)
    """The most images a request."""

    concurrency: int = Field(1, ge=1, le=256)
    """The most requests at a time."""

    timeout: float = Field(30.0, gt=0, allow_inf_nan=False)
    """Seconds that one attempt may take."""

    retries: int = Field(4, ge=0)
    """How often a request is repeated at most. Each repetition is paid for again."""

    backoff: float = Field(0.5, ge=0, allow_inf_nan=False)
    """Seconds that the first wait between attempts may take, drawn at random from 0; the next may
    be twice as long, and so on."""

    longest_wait: float = Field(60.0, ge=0, allow_inf_nan=False)
    """Seconds that a wait takes at most, also where the service asks for more."""

    rate: float | None = Field(None, gt=0, le=1000)
    """The most requests a second, repetitions among them."""

    give_up: int = Field(5, ge=1)
    """After so many requests in a row without any answer the service counts as down."""

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Reads a description.

        Args:
            path: A YAML or JSON file of the fields.

        Returns:
            The service.

        Raises:
            ValueError: If the file cannot be read or is no description; the message names the
                fields at fault and holds none of their values.
        """
        try:
            return cls.model_validate(read_mapping(Path(path)))
        except ValidationError as error:
            faults = "; ".join(_fault(fault) for fault in error.errors(include_input=False))
            raise ValueError(f"{path} describes no service: {faults}") from None

    @property
    def scores(self) -> bool:
        """Whether it answers a number for each class; labels otherwise."""
        return self.answer in ("scores", "probabilities")

    @property
    def one_image(self) -> bool:
        """Whether a request holds one image and not a list."""
        return self.protocol == "json" and _places(self.request) == ["$image"]

    def identity(self) -> dict[str, Any]:
        """Gives what decides its answers: no credentials and nothing about speed."""
        literal = {name.lower(): v for name, v in self.headers.items() if is_literal(name, v)}
        return {**self.model_dump(exclude=_SPEED | {"headers"}), "headers": literal}

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not url.isprintable() or " " in url:
            raise ValueError("url must be an http or https address, such as https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "url must hold no user and no password; send them as a header, such as "
                "Authorization: Basic ${VARIABLE}"
            )
        check_query(parts.query)
        return url

    @field_validator("classes", mode="before")
    @classmethod
    def _are_names(cls, classes: object) -> object:
        listed = list(classes) if isinstance(classes, list | tuple) else [None]
        if any(isinstance(name, bool) or not isinstance(name, str | int) for name in listed):
            raise ValueError(
                "classes must be a list of names; put quotes around yes, no, true, false and null"
            )
        names = [str(name) for name in listed]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"classes must be at least 2 different names, got {len(set(names))}")
        if not all(name.isprintable() for name in names):
            raise ValueError("classes must have printable names, got a control character in one")
        return names

    @field_validator("headers")
    @classmethod
    def _are_safe(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            check_header(name, value)
        return headers

    @field_validator("answers", "row")
    @classmethod
    def _is_path(cls, path: str) -> str:
        try:
            jmespath.compile(path)
        except JMESPathError as error:
            raise ValueError(f"must be a JMESPath, got {path!r}: {type(error).__name__}") from None
        return path

    @field_validator("answers")
    @classmethod
    def _keeps_order(cls, path: str) -> str:
        if _projects(jmespath.compile(path).parsed):
            raise ValueError(
                f"answers must lead to the list itself, got the projection {path!r}, which drops "
                "null and moves later answers to other images; use row for what is inside"
            )
        return path

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for protocol, names in _ONE_PROTOCOL.items():
            foreign = sorted(self.model_fields_set.intersection(names))
            if foreign and protocol != self.protocol:
                raise ValueError(
                    f"{', '.join(foreign)} must be left out with protocol {self.protocol}: "
                    f"only {protocol} has it"
                )
        if self.protocol == "open-inference" and self.answer == "top-k":
            raise ValueError("answer must be scores, probabilities or label, got top-k: a tensor")
        return self

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        if len(_places(self.request)) != 1:
            raise ValueError('request must hold "$images" (or "$image") exactly once')
        if _places(self.image) != ["$image"]:
            raise ValueError('image must hold "$image" exactly once')
        if self.one_image and self.batch != 1:
            raise ValueError('batch must be 1 where request holds "$image", not "$images"')
        return self


def _fault(fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    said = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{place} is no field; the fields are {', '.join(sorted(Service.model_fields))}"
    return said if not place or said.startswith(place) else f"{place}: {said}"


def _places(template: JsonValue) -> list[str]:
    """The placeholders of a template, one for each occurrence."""
    if isinstance(template, str):
        return _PLACE.findall(template)
    if isinstance(template, dict):
        return [place for value in template.values() for place in _places(value)]
    if isinstance(template, list):
        return [place for value in template for place in _places(value)]
    return []


def _projects(node: Mapping[str, Any]) -> bool:
    children = [child for child in node["children"] if isinstance(child, Mapping)]
    return node["type"] in _PROJECTIONS or any(_projects(child) for child in children)
