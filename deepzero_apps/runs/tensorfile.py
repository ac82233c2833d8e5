"""One tree of tensors and plain values in one safetensors file, sealed by a checksum.

Tensors lie in the file under their paths, so that any safetensors reader finds them; the tree's
skeleton (see :mod:`deepzero_apps.runs.trees`) is JSON in the file's metadata. The metadata's
``sha256`` is that of the whole file with the 64 digits of ``sha256`` itself set to zeros: it
covers header, skeleton and tensors, and needs no second file that could get out of step.

The checksum finds damage, not malice. A forged file can hold wrong numbers but runs no code.

    | Safetensors format
    | https://huggingface.co/docs/safetensors/index
"""

__all__ = ["load_file", "save_file"]

import hashlib
import json
import os
import re
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from deepzero_apps.files.opening import read_plain
from deepzero_apps.runs.files import RunFolderError, explained, replace
from deepzero_apps.runs.trees import Tree, flatten, unflatten

_BLANK = b"0" * 64
_DAMAGED = (ValueError, TypeError, LookupError, OverflowError, RecursionError, SafetensorError)
# Inside a JSON string a quote is escaped, so that no name and no skeleton can imitate the seal.
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def save_file(path: str | os.PathLike[str], state: Tree) -> None:
    """Writes a tree of tensors and plain values, whole or not at all, and waits for the disk.

    Args:
        path: The file, by custom ``*.safetensors``; replaced if it exists.
        state: The tree: dicts with ``str`` or ``int`` keys, lists, tuples, tensors, numbers,
            strings and ``None``. It is not changed.

    Raises:
        TypeError: If the tree holds anything else.
        ValueError: If the tree is too deep, as one that holds itself is.
        RunFolderError: If the file cannot be written; what was there before is then intact.
    """
    skeleton, tensors = flatten(state)
    tree = json.dumps(skeleton, allow_nan=False)
    metadata = {"format": "pt", "tree": tree, "sha256": _BLANK.decode()}
    data = safetensors.torch.save(tensors, metadata=metadata)

    start = _seal(data)
    digest = hashlib.sha256(data).hexdigest().encode()
    replace(Path(path), b"".join((data[:start], digest, data[start + len(_BLANK) :])))


def load_file(path: str | os.PathLike[str]) -> Tree:
    """Reads back what :func:`save_file` wrote.

    Args:
        path: The file.

    Returns:
        The tree, its tensors on the CPU and in memory of their own.

    Raises:
        RunFolderError: If the file is absent, damaged, or was not written by :func:`save_file`.
    """
    path = Path(path)
    with explained("read", path):
        data = read_plain(path)
    try:
        return _read(data)
    except _DAMAGED as error:
        raise RunFolderError(
            f"{path} cannot be used: {error}; restore it from a copy or make it anew"
        ) from error


def _read(data: bytes) -> Tree:
    start = _seal(data)
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(_BLANK)
    digest.update(memoryview(data)[start + len(_BLANK) :])
    if digest.hexdigest().encode() != data[start : start + len(_BLANK)]:
        raise ValueError("its checksum does not match its content, so it is truncated or damaged")

    tree = _header(data)["__metadata__"]["tree"]
    return unflatten(json.loads(tree), safetensors.torch.load(data))


def _seal(data: bytes) -> int:
    match = _SEAL.search(data, 8, _header_end(data))
    if match is None:
        raise ValueError("it holds no checksum, so it is truncated or not a file of this package")
    return match.start(1)


def _header(data: bytes) -> Tree:
    return json.loads(data[8 : _header_end(data)])


def _header_end(data: bytes) -> int:
    # The first eight bytes are the header's length; a damaged one may point past the end.
    return min(8 + int.from_bytes(data[:8], "little"), len(data))
