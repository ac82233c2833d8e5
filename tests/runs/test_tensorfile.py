"""One tree in one file: exact round trips, damage found, old content kept."""

import hashlib
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepzero_apps.runs import RunFolderError, load_file, save_file
from deepzero_apps.runs.trees import Tree

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64),
]
LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t,
    lambda t: t.mT if t.ndim > 1 else t,
    lambda t: t[..., ::2] if t.ndim else t,
    lambda t: t.expand(2, *t.shape),
    lambda t: t.conj() if t.is_complex() else t,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    # Any bits at all, NaN payloads included; a byte that is a bool is 0 or 1.
    top = 1 if dtype == torch.bool else 255
    data = draw(st.lists(st.integers(0, top), min_size=size, max_size=size))
    flat = torch.tensor(data, dtype=torch.uint8).view(dtype)
    return draw(st.sampled_from(LAYOUTS))(flat.reshape(shape))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NUMPY: st.SearchStrategy[np.generic] = st.one_of(
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.integers(-128, 127).map(np.int8),
    st.booleans().map(np.bool),
)
TREES = st.recursive(
    PLAIN | NUMPY | tensors(),
    lambda tree: (
        st.lists(tree, max_size=4)
        | st.lists(tree, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), tree, max_size=4)
    ),
    max_leaves=12,
)


def bits(tree: Tree) -> Tree:
    """A tree in which == means equal to the last bit, of the same types in the same order."""
    kind = type(tree).__name__
    if isinstance(tree, Tensor):
        dense = tree.resolve_conj().contiguous()
        return tree.dtype, tuple(tree.shape), dense.reshape(-1).view(torch.uint8).tolist()
    if isinstance(tree, np.generic):
        return kind, tree.tobytes()
    if isinstance(tree, float):
        # Of a NaN, Python keeps no more than that it is one.
        return kind, "nan" if math.isnan(tree) else struct.pack("d", tree)
    if isinstance(tree, dict):
        return kind, [(bits(key), bits(value)) for key, value in tree.items()]
    if isinstance(tree, list | tuple):
        return kind, [bits(value) for value in tree]
    return kind, tree


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(tree=TREES)
def test_round_trip_is_exact(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    before = bits(tree)

    save_file(path, tree)

    assert bits(load_file(path)) == before
    assert bits(tree) == before


def test_any_safetensors_reader_finds_the_weights(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    save_file(tmp_path / "w.safetensors", network.state_dict())

    read = safetensors.torch.load_file(tmp_path / "w.safetensors")

    torch.testing.assert_close(read, dict(network.state_dict()), rtol=0, atol=0)


def test_checksum_is_that_of_the_file_with_the_checksum_blanked(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(path, {'"sha256":"' + "0" * 64: torch.ones(3), "text": '"sha256":"' + "0" * 64})

    with safetensors.safe_open(path, framework="pt") as file:
        digest = file.metadata()["sha256"]

    blanked = path.read_bytes().replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blanked).hexdigest() == digest


def test_every_damaged_byte_and_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(path, {"w": torch.arange(3.0), "rate": 0.1})
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    cut = [whole[:i] for i in range(len(whole))]

    for data in [*damaged, *cut, whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(RunFolderError, match=r"w\.safetensors cannot be used: .*; restore"):
            load_file(path)


def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)

    with pytest.raises(RunFolderError, match="holds no checksum"):
        load_file(path)


def test_sealed_file_with_a_forged_tree_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    deep = "[" * 100_000
    for tree in ['{"code": 1}', '{"tensor": "absent"}', '{"tuple": 3}', "{}", deep, "nonsense"]:
        blank = safetensors.torch.save({}, metadata={"tree": tree, "sha256": "0" * 64})
        digest = hashlib.sha256(blank).hexdigest().encode()
        path.write_bytes(blank.replace(b"0" * 64, digest))

        with pytest.raises(RunFolderError, match="cannot be used"):
            load_file(path)


def test_refused_tree_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(path, 1)

    with pytest.raises(TypeError, match="got object at state"):
        save_file(path, object())

    assert load_file(path) == 1


def test_absent_file_and_absent_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="none cannot be read: No such file or directory"):
        load_file(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"w cannot be written: No such file or directory"):
        save_file(tmp_path / "none" / "w", 1)
