"""Valid files made invalid: bytes flipped, cut, spliced; values of JSON swapped for strange ones."""

__all__ = ["mutated", "mutated_json", "mutated_lines", "mutated_zip", "strange"]

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

_TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\x1b[2J", b"\x80", b"\xc3\x28", b"\xed\xa0\x80",
    b"NaN", b"-Infinity", b"1e400", b"-0", b"9" * 5000, b"null", b"true", b'""', b"[]", b"{}", b"[" * 3000,
    b'{"a":' * 1000, b"!!python/object/apply:os.system ['true']", b"&a [*a, *a]", b"2024-99-99", b"<<: *a",
    b"$image", b"${HOME}", b"../../etc/passwd", b"%s%n", b"\t", b",", b":", b"\\ud800", b"\xe2\x80\xae",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 7, 255, 256, 2**31, 2**53 + 1, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), -float("inf"), True, False, None,
)  # fmt: skip
_TEXTS = (
    "", "0", "x", "\0", "\x1b]0;t\x07", "\ud800", "\u202e", "a" * 10_000, "$image", "$images", "${HOME}", "@",
    "../../../etc/passwd", "/dev/zero", "nan", "1/0", "0/1", "os:system", "http://[", "file:///etc/passwd",
    "[/red]", "{{7*7}}", "<script>", "fixed", "budget", "1e5", "é" * 100, "yes", "\n", "[*]", "predictions[0]",
)  # fmt: skip


def strange(random: Random, depth: int = 2) -> Any:  # noqa: ANN401 - any value of JSON's types
    """Draws a value that a field does not expect."""
    kind = random.randrange(8 if depth else 5)
    if kind < 3:
        return random.choice(_NUMBERS)
    if kind < 5:
        return random.choice(_TEXTS)
    if kind == 5:
        return [strange(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return {
            random.choice(_TEXTS): strange(random, depth - 1) for _ in range(random.randrange(3))
        }
    return _nested(random.choice((3, 50, 500)))


def _nested(levels: int) -> Any:  # noqa: ANN401
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def mutated(random: Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """Changes bytes, a few times: flips, cuts, repetitions, insertions, splices with another file."""
    for _ in range(random.choice((1, 1, 2, 4, 12))):
        data = random.choice(_BYTES)(random, data)
    if others and random.random() < 0.1:
        other = random.choice(others)
        data = data[: _place(random, data)] + other[_place(random, other) :]
    return data


def mutated_json(random: Random, data: bytes) -> bytes:
    """Changes a value somewhere in a JSON text, or the text."""
    if random.random() < 0.25:
        return mutated(random, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutated(random, data)
    for _ in range(random.choice((1, 1, 2, 5))):
        value = _swapped(random, value)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    if random.random() < 0.1 and text.endswith(b"}") and len(text) > 2:
        text = text[:-1] + b"," + text[1:]  # every name twice
    return text


def mutated_lines(random: Random, data: bytes) -> bytes:
    """Changes a file of lines: one of them, their order, their ends."""
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 3))):
        at = random.randrange(len(lines))
        way = random.randrange(6)
        if way < 3:
            lines[at] = mutated_json(random, lines[at])
        elif way == 3:
            lines[at] = mutated(random, lines[at])
        elif way == 4:
            lines.insert(at, random.choice(lines))
        elif len(lines) > 1:
            del lines[at]
    end = random.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\x0b", b"\xe2\x80\xa8"))
    return end.join(lines)


def mutated_zip(
    random: Random, data: bytes, part: Callable[[Random, bytes], bytes] = mutated
) -> bytes:
    """Changes the parts of a zip archive, so that checksums still fit, or its bytes."""
    if random.random() < 0.3:
        return mutated(random, data)
    out = io.BytesIO()
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", method) as new,
    ):
        warnings.simplefilter("ignore")  # of a name that is there twice
        names = old.namelist()
        chosen = set(random.choices(names, k=random.choice((1, 1, 2))))
        for name in names:
            content = old.read(name)
            if name in chosen:
                content = part(random, content)
            if random.random() < 0.02:
                name = random.choice(("x", "../../x", "/etc/x", names[0], "a/" * 50 + "x"))
            if random.random() > 0.03:
                new.writestr(name, content)
    return out.getvalue()


def _swapped(random: Random, value: Any) -> Any:  # noqa: ANN401
    """Replaces, removes or adds at a random place of a tree."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return strange(random)
    return (
        _swapped_in_list(random, value)
        if isinstance(value, list)
        else _swapped_in_dict(random, value)
    )


def _swapped_in_list(random: Random, value: list[Any]) -> list[Any]:
    at = random.randrange(len(value))
    way = random.random()
    if way < 0.1:
        return value[:at] + value[at + 1 :]
    if way < 0.2:
        return [*value, random.choice(value)]
    return [*value[:at], _swapped(random, value[at]), *value[at + 1 :]]


def _swapped_in_dict(random: Random, value: dict[str, Any]) -> dict[str, Any]:
    name = random.choice(list(value))
    way = random.random()
    if way < 0.1:
        return {key: each for key, each in value.items() if key != name}
    if way < 0.15:
        return {**value, random.choice(_TEXTS): strange(random)}
    return {**value, name: _swapped(random, value[name])}


def _place(random: Random, data: bytes) -> int:
    return random.randrange(len(data) + 1)


def _flip(random: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: _place(random, data)]


def _hole(random: Random, data: bytes) -> bytes:
    first, last = sorted((_place(random, data), _place(random, data)))
    return data[:first] + data[last:]


def _again(random: Random, data: bytes) -> bytes:
    first, last = sorted((_place(random, data), _place(random, data)))
    return data[:last] + data[first:last][:5000] + data[last:]


def _insert(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.choice(_TOKENS) + data[at:]


def _noise(random: Random, data: bytes) -> bytes:
    at = _place(random, data)
    return data[:at] + random.randbytes(random.choice((1, 2, 8))) + data[at + 8 :]


def _number(random: Random, data: bytes) -> bytes:
    """Overwrites four or eight bytes: lengths and sizes are such."""
    form = random.choice(("<I", ">I", "<Q", ">Q", "<q"))
    largest = 2 ** (8 * struct.calcsize(form)) - 1
    value = random.choice((0, 1, largest // 2, largest, largest - 7, 2**20, 2**31 - 1))
    packed = struct.pack(form, min(value, 2**63 - 1) if form == "<q" else value)
    at = _place(random, data)
    return data[:at] + packed + data[at + len(packed) :]


_BYTES = (_flip, _flip, _flip, _cut, _hole, _again, _insert, _insert, _noise, _number)
