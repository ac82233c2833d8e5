"""Strict JSON of a run, and how two settings differ."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from deepzero_apps.runs.records import differences, dumps, loads, plain, versions


def test_plain_values_are_json_types() -> None:
    value = {"a": (1, np.float32(0.5)), "b": torch.tensor(3), "c": Path("x/y"), "d": np.True_}

    found = plain(value, "row")

    assert found == {"a": [1, 0.5], "b": 3, "c": "x/y", "d": True}
    assert found["d"] is True


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), np.float32("inf")])
def test_number_that_is_not_finite_is_null(value: float) -> None:
    assert dumps(plain([value], "row")) == b"[null]\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, {1}]}, r"row\['a'\]\[1\] must be a number, .*, got set"),
        ({"a": {2: 0}}, r"row\['a'\] must have keys of type str, got 2"),
        (torch.zeros(2), "row must be a number, .*, got Tensor"),
        (1j, "got complex"),
    ],
)
def test_value_that_json_lacks_is_refused(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        plain(value, "row")


def test_text_that_is_no_object_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a JSON object, got list"):
        loads(b"[]")
    with pytest.raises(ValueError, match="nested too deeply"):
        loads(b"[" * 100_000)
    with pytest.raises(ValueError, match="codec can't decode"):
        loads(b"\xff")


def test_differences_are_named_by_field() -> None:
    old = {"a": 1, "b": {"c": 0.1, "d": [1]}, "e": True, "f": {}}
    new = {"a": 1, "b": {"c": 0.2, "d": [1]}, "e": 1, "g": "x"}

    assert differences(old, new) == [
        "b.c: 0.1 in the folder, 0.2 asked for",
        "e: true in the folder, 1 asked for",
        "f: {} in the folder, absent asked for",
        'g: absent in the folder, "x" asked for',
    ]
    assert differences(old, json.loads(dumps(old))) == []


def test_versions_name_the_commit_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    package = tmp_path / "deepzero_apps" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr("deepzero_apps.__file__", str(package))
    assert versions()["git"] is None

    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)

    assert versions()["git"] == head.stdout.strip()
    package.write_text("changed")
    assert versions()["git"] == head.stdout.strip() + "-dirty"
    assert versions()["torch"] == torch.__version__
