"""Descriptions of services: what is read, what is refused, what identifies them."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deepzero_apps.smoothing.services import HttpClassifier, Service

MINIMAL: dict[str, Any] = {"url": "https://host.example/classify", "classes": ["cat", "dog"]}
SECRET = "sk-live-0123456789"


def described(**fields: object) -> Service:
    return Service.model_validate({**MINIMAL, **fields})


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_gives_the_fields(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"service{suffix}"
    path.write_text(
        json.dumps({**MINIMAL, "batch": 7, "headers": {"Authorization": "Bearer ${KEY}"}})
    )
    service = Service.read(path)

    assert (service.batch, service.classes) == (7, ("cat", "dog"))
    assert service.headers == {"Authorization": "Bearer ${KEY}"}


def test_numbers_as_names_are_read_as_they_are_written() -> None:
    assert described(classes=[0, 1, 2]).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "host/classify"}, "url must be an http or https address"),
        ({"url": "ftp://host"}, "url must be an http or https address"),
        ({"url": "http://"}, "url must be an http or https address"),
        ({"url": "http://[::1"}, "url must be an http or https address"),
        ({"url": f"http://me:{SECRET}@host"}, "url must hold no user and no password"),
        ({"url": f"http://host?api_key={SECRET}"}, "no credential, got api_key in its query"),
        ({"classes": ["cat"]}, "at least 2 different names, got 1"),
        ({"classes": ["cat", "dog", "cat"]}, "at least 2 different names, got 2"),
        ({"classes": ["yes", False]}, "put quotes around yes, no"),
        ({"classes": "cat dog"}, "classes must be a list of names"),
        ({"headers": {"Authorization": SECRET}}, "Authorization must take its credential from"),
        ({"headers": {"authorization": f"Bearer {SECRET}"}}, "must take its credential from"),
        ({"headers": {"X-API-Key": "$KEY"}}, r"literal value; .* write \$\{VARIABLE\}"),
        ({"headers": {"api-token": f"{SECRET} ${{KEY}}"}}, "must take its credential from"),
        ({"headers": {"Cookie": "session=1"}}, "must take its credential from"),
        ({"headers": {"X-Auth": ""}}, "must take its credential from"),
        ({"headers": {"Model": "a\nb"}}, "header Model must be printable ASCII"),
        ({"headers": {"Mod el": "a"}}, "headers must have names of letters"),
        ({"answers": "predictions[*].scores"}, "the projection 'predictions.*drops null"),
        ({"answers": "sort_by(a[], &b)"}, "the projection"),
        ({"answers": "a["}, r"answers: must be a JMESPath, got 'a\['"),
        ({"row": ""}, "row: must be a JMESPath, got ''"),
        ({"request": {"instances": "images"}}, r"request must hold \"\$images\""),
        ({"request": ["$images", "$image"]}, r"request must hold \"\$images\""),
        ({"image": {"b64": "$images"}}, r"image must hold \"\$image\" exactly once"),
        ({"request": "$image"}, "batch must be 1 where request"),
        ({"input": "x"}, "input must be left out with protocol json: only open-inference"),
        (
            {"protocol": "open-inference", "answers": "a", "row": "b"},
            "answers, row must be left out with protocol open-inference",
        ),
        ({"protocol": "open-inference", "answer": "top-k"}, "got top-k: a tensor"),
        ({"batch": 0}, "batch: Input should be greater than or equal to 1"),
        ({"timeout": 0}, "timeout: Input should be greater than 0"),
        ({"rate": float("nan")}, "rate: Input should be"),
        ({"key": SECRET}, "key is no field; the fields are answer, answers, backoff"),
        ({"url": None}, "url: Input should be a valid string"),
    ],
)
def test_what_is_no_description_is_refused_without_its_values(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "service.json"
    path.write_text(json.dumps({**MINIMAL, **fields}))
    with pytest.raises(ValueError, match=message) as refusal:
        Service.read(path)
    with pytest.raises(ValidationError, match=r"validation errors? for Service") as direct:
        described(**fields)

    for error in (refusal.value, direct.value):
        while error is not None:
            assert SECRET not in f"{error} {error!r}"
            error = error.__cause__ or error.__context__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", f"url: [{SECRET}", "is no YAML near line 1"),
        ("a.yaml", f"!!python/object:os.system {SECRET}", "is no YAML near line 1"),
        ("a.json", f'{{\n"{SECRET}', "is no JSON near line 2"),
        ("a.json", "[" * 10**5, "is no JSON"),
        ("a.yaml", "- 1", "must hold a mapping of fields, got list"),
        ("a.yaml", "", "must hold a mapping of fields, got NoneType"),
        ("b.yaml", None, "cannot read .*b.yaml: No such file"),
    ],
)
def test_what_is_no_file_of_fields_is_refused(
    *, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        Service.read(tmp_path / name)
    assert SECRET not in str(refusal.value)


def test_the_fingerprint_covers_what_decides_the_answers() -> None:
    other: list[dict[str, Any]] = [
        {"url": "https://host.example/other"},
        {"classes": ["dog", "cat"]},
        {"encoding": "uint8"},
        {"layout": "hwc"},
        {"request": {"inputs": "$images"}},
        {"image": {"b64": "$image"}},
        {"answers": "answers"},
        {"row": "score"},
        {"answer": "label"},
        {"protocol": "open-inference"},
        {"headers": {"Model-Version": "2"}},
    ]
    prints = [HttpClassifier(described(**fields)).fingerprint for fields in [{}, *other]]
    prints.append(HttpClassifier(described(), order=["dog", "cat"]).fingerprint)

    assert len(set(prints)) == len(other) + 2


def test_the_fingerprint_covers_neither_credentials_nor_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = HttpClassifier(described()).fingerprint
    for key in ("one", "two"):
        monkeypatch.setenv("KEY", key)
        fields: dict[str, Any] = {"headers": {"Authorization": "Bearer ${KEY}"}, "give_up": 9}
        fields |= {"batch": 2, "concurrency": 3, "timeout": 4, "retries": 5, "backoff": 6}
        fields |= {"longest_wait": 7, "rate": 8}
        assert HttpClassifier(described(**fields)).fingerprint == plain
