"""Archives of arrays that lie about their size, are damaged, or hold more than numbers."""

import io
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepzero_apps.foreign import read_arrays

GIGABYTES = 10 * 2**30


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def header(descr: str, shape: object, order: bool = False) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr(name, content)
    return file


def zeros(count: int) -> io.BytesIO:
    """An archive of so many bytes of zeros, packed a thousandfold, and put together by hand."""
    head = header("'|u1'", (count,))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = first + block * (count // 2**24) + packer.flush()
    entry = zipfile.ZipInfo("images.npy")
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.CRC = 0  # compared at the end, which nobody reaches
    entry.file_size, entry.compress_size = len(head) + count, len(stream)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("labels.npy", header("'|u1'", (1,)) + b"\0")
        entry.header_offset = file.tell()
        file.write(entry.FileHeader(zip64=True) + stream)
        made.start_dir = file.tell()
        made.filelist.append(entry)
    return file


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_reads_them(save: Callable[..., None]) -> None:
    given = {
        "a": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "text": np.array(["x", "zwölf"]),
        "one": np.array(3.5),
        "none": np.zeros((0, 4), np.uint8),
        "bytes": np.array([b"a", b"bc"]),
        "flags": np.array([True, False]),
    }
    file = io.BytesIO()
    save(file, **given)

    found = read_arrays(file)

    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    found["a"][0, 0] = 7  # memory of its own
    assert read_arrays(file, {"a", "absent"}).keys() == {"a"}


def test_ten_gigabytes_of_zeros_are_refused_before_any_memory_is_taken() -> None:
    file = zeros(GIGABYTES)
    assert len(file.getvalue()) < 12 * 2**20

    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(
            ValueError, match=r"more than 100 times its size, got 10,737,418,\d+ bytes"
        ):
            read_arrays(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("descr", "shape", "message"),
    [
        ("'<f8'", (10**12,), r"as many bytes as its shape \(1000000000000,\) says"),
        ("'<f8'", (2**62, 2**62), "as many bytes as its shape"),
        ("'<f8'", (-1,), "as many bytes as its shape"),
        ("'<f8'", (-1, -1), "as many bytes as its shape"),
        ("'|O'", (1,), "plain array, got objects or fields"),
        ("[('a', '<i4'), ('b', '<i4')]", (1,), "plain array, got objects or fields"),
        ("'<f8'", "(1, 'x')", "shape"),
        ("__import__('os').system('true')", (1,), "malformed node"),
        ("'<U1'", (2,), "Unicode's characters, got the number 4294967295"),
    ],
)
def test_a_header_that_lies_is_refused(descr: str, shape: object, message: str) -> None:
    file = archive("a.npy", header(descr, shape) + b"\xff" * 8)

    with pytest.raises(ValueError, match=message):
        read_arrays(file)


def test_objects_are_refused_unread(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, a=np.array([Bomb(tmp_path / "trace")], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match="got objects"):
        read_arrays(file)

    assert not (tmp_path / "trace").exists()
    file.seek(0)
    with np.load(file, allow_pickle=True) as live:
        _ = live["a"]
    assert (tmp_path / "trace").exists()  # the bomb is a live one


def test_an_array_that_is_there_twice_is_refused() -> None:
    file = archive("a.npy", header("'|u1'", (1,)) + b"\1")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as made:
        made.writestr("a.npy", header("'|u1'", (1,)) + b"\2")

    with pytest.raises(ValueError, match=r"each array once, got 'a' twice"):
        read_arrays(file)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_packing_are_refused(method: int) -> None:
    with pytest.raises(ValueError, match="deflate or not at all"):
        read_arrays(archive("a.npy", header("'|u1'", (1,)) + b"\1", method))


def test_names_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = archive("../../etc/evil.npy", header("'|u1'", (1,)) + b"\1")

    assert read_arrays(file)["../../etc/evil"].tolist() == [1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\3\4" + bytes(100), bytes(1000)])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="File is not a zip file"):
        read_arrays(io.BytesIO(content))
