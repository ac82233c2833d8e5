"""Arrays from ``.npz`` archives, measured before they are unpacked.

An archive says how large its parts are: deflate makes 10 GB of zeros of 10 MB, and an array's
header may claim any shape. So both are compared, with each other and with the size of the file,
before anything is allocated. Objects, which only pickle could read, are refused.

References:
    | A better zip bomb (Fifield, 2019)
    | https://www.bamsoftware.com/hacks/zipbomb/
"""

__all__ = ["read_arrays", "refuse_bomb"]

import math
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_ANYWAY = 256 * 2**20
"""Bytes that an archive may unpack to, however small it is."""

_RATIO = 100
"""How many times its size a larger one may unpack to. Images of digits take 5 to 20 times less."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_arrays(
    source: Path | IO[bytes], names: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Reads arrays of an ``.npz`` archive.

    Args:
        source: The archive.
        names: Which arrays; all by default. Those that it lacks are left out.

    Returns:
        The arrays by name.

    Raises:
        ValueError: If it is no archive of plain arrays, is damaged, or is far larger inside than
            outside.
        OSError: If the file cannot be opened.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = _entries(archive, names)
            refuse_bomb(archive, entries.values())
            return {name: _array(archive, entry) for name, entry in entries.items()}
    except (ValueError, OSError):
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser raise what their parts raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def refuse_bomb(archive: zipfile.ZipFile, entries: Collection[zipfile.ZipInfo]) -> None:
    """Refuses parts of an archive that unpack to far more than the archive's own size.

    Args:
        archive: The archive.
        entries: The parts that are to be read.

    Raises:
        ValueError: If they do, or are packed by another method than deflate.
    """
    if any(entry.compress_type not in _METHODS for entry in entries):
        raise ValueError("an archive must be packed by deflate or not at all, got another method")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > max(_ANYWAY, _RATIO * min(packed, _size(archive))):
        raise ValueError(
            f"an archive must not unpack to more than {_RATIO} times its size, got {unpacked:,} "
            f"bytes of {packed:,}; store it unpacked (numpy.savez) if it is sound"
        )


def _size(archive: zipfile.ZipFile) -> int:
    file = archive.fp
    return 0 if file is None else file.seek(0, 2)


def _entries(
    archive: zipfile.ZipFile, names: Collection[str] | None
) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if names is not None and name not in names:
            continue
        if name in found:
            raise ValueError(f"an archive must hold each array once, got {name!r} twice")
        found[name] = entry
    return found


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(
                f"{entry.filename!r} must be an array of format 1 or 2, got {version}"
            )
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise ValueError(f"{entry.filename!r} must be a plain array, got objects or fields")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != entry.file_size - file.tell():
            raise ValueError(
                f"{entry.filename!r} must hold as many bytes as its shape {shape} says, got "
                f"{entry.file_size}"
            )
        content = bytearray(file.read(size + 1))  # the end is where the checksum is compared
    if len(content) != size:
        raise ValueError(f"{entry.filename!r} is cut short: {len(content)} bytes of {size}")
    array: NDArray[Any] = np.ndarray(shape, dtype, content, order="F" if fortran else "C")
    if dtype.kind == "U":
        _refuse_no_text(array, content)
    return array


def _refuse_no_text(array: NDArray[Any], content: bytearray) -> None:
    """Refuses numbers that are no characters, by which numpy and Python fail later."""
    codes = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if codes.size and codes.max() > sys.maxunicode:
        raise ValueError(f"text must be of Unicode's characters, got the number {codes.max()}")
