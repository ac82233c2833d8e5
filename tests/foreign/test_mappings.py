"""Settings of strangers: small and plain, each name once."""

import time
from pathlib import Path

import pytest

from deepzero_apps.foreign import read_mapping
from deepzero_apps.foreign.mappings import LARGEST

SECRET = "hunter2"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)
"""Nine to the eleventh values in half a kilobyte."""


def read(folder: Path, text: str | bytes, name: str = "a.yaml") -> dict[str, object]:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_mapping(folder / name)


def test_both_forms_give_the_same(tmp_path: Path) -> None:
    plain = {"a": 1, "b": [0.5, "x", None, True], "c": {"d": {}}}

    assert read(tmp_path, "a: 1\nb: [0.5, x, null, true]\nc: {d: {}}\n") == plain
    assert (
        read(tmp_path, '{"a": 1, "b": [0.5, "x", null, true], "c": {"d": {}}}', "a.json") == plain
    )
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\n") == {"a": 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", LAUGHS, "aliases: write out what is repeated"),
        ("a.yaml", "a: &a [*a]", "aliases"),
        ("a.yaml", "a: &x {b: 1}\nc: {<<: *x}", "aliases"),
        ("a.yaml", "a: 1\nb: 2\na: 3", "each name once"),
        ("a.json", '{"a": {"b": 1, "b": 2}}', "each name once"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is no YAML near line 1"),
        ("a.yaml", "a: !!python/name:os.system", "is no YAML near line 1"),
        ("a.yaml", "a: !!python/object/new:os.system [x]", "is no YAML"),
        ("a.yaml", "a: 2024-99-99", "a value cannot be read"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": ' + "9" * 5000 + "}", "a value cannot be read"),
        ("a.yaml", "1: 2", "must hold a mapping of fields"),
        ("a.json", '{"a": ["\\ud800"]}', "whole characters"),
        ("a.yaml", 'a: {"\\udfff": 1}', "whole characters"),
        ("a.yaml", b"\xff\xfe", "not UTF-8"),
        ("a.yaml", b"a: \x00", "is no YAML"),
        ("a.json", " " * (LARGEST + 1), "at most 262,144 bytes"),
        ("absent/a.yaml", None, "cannot read"),
    ],
)
def test_what_is_no_plain_mapping_is_refused(
    name: str, text: str | bytes | None, message: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, name) if text is not None else read_mapping(tmp_path / name)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", [f"a: [{SECRET}", f"{SECRET}: &{SECRET} *{SECRET}", f"!!{SECRET} x"]
)
def test_no_message_holds_what_stands_there(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no YAML") as error:
        read(tmp_path, text)
    assert SECRET not in str(error.value)


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match="must have at most 262,144 bytes, got more"):
        read_mapping(Path("/dev/zero"))
