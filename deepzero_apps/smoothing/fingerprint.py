"""Fingerprints: a sha256 over what a value holds, the same in every process, without pickle.

A value is walked down to bytes. Arrays and tensors count by dtype, shape and content; a torch
module by its printed structure, parameters and buffers; a function by its name and byte code;
any other object by its class and its attributes, in sorted order. Attributes that say how
something was computed and not what it answers (times, ``n_jobs``, ``verbose``) do not count.
Memory addresses never enter.
"""

__all__ = ["fingerprint"]

import hashlib
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import singledispatch
from types import FunctionType

import numpy as np
import torch
from torch import Tensor, nn

_INCIDENTAL = re.compile(r"n_jobs|verbose|.*_time_?")


def fingerprint(*values: object) -> str:
    """Hashes values by their content.

    Args:
        *values: Plain values, containers, arrays, tensors, modules, fitted estimators.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
        True
        >>> fingerprint(1) == fingerprint(1.0)
        False
    """
    digest = hashlib.sha256()
    for token in _tokens(values, ()):
        # lengths keep neighbors apart: ("ab", "c") is not ("a", "bc")
        digest.update(len(token).to_bytes(8, "big") + token)
    return digest.hexdigest()


def _tokens(value: object, path: tuple[int, ...]) -> Iterator[bytes]:
    if id(value) in path:
        yield b"cycle"
        return
    kind = type(value)
    parts = _parts(value)
    yield f"{kind.__module__}.{kind.__qualname__} {len(parts)}".encode()
    for part in parts:
        if isinstance(part, bytes):
            yield part
        else:
            yield from _tokens(part, (*path, id(value)))


@singledispatch
def _parts(value: object) -> list[object]:
    """Takes a value apart: into bytes, or into values to be taken apart in turn."""
    state = value.__dict__ if hasattr(value, "__dict__") else value.__getstate__()
    if not isinstance(state, dict):
        return [state]
    return [{key: part for key, part in state.items() if not _INCIDENTAL.fullmatch(str(key))}]


@_parts.register(type(None))
@_parts.register(int)
@_parts.register(float)
@_parts.register(complex)
@_parts.register(str)
@_parts.register(bytes)
def _plain_parts(value: object) -> list[object]:
    return [repr(value).encode()]


@_parts.register(list)
@_parts.register(tuple)
def _sequence_parts(value: list[object] | tuple[object, ...]) -> list[object]:
    return list(value)


@_parts.register(Mapping)
def _mapping_parts(value: Mapping[object, object]) -> list[object]:
    return [part for key in sorted(value, key=repr) for part in (key, value[key])]


@_parts.register(AbstractSet)
def _set_parts(value: AbstractSet[object]) -> list[object]:
    return sorted(value, key=repr)


@_parts.register(np.ndarray)
@_parts.register(np.generic)
def _array_parts(value: np.ndarray | np.generic) -> list[object]:
    array = np.asarray(value)
    if array.dtype.names:  # field by field, because padding between fields is arbitrary
        return [part for name in array.dtype.names for part in (name, array[name])]
    if array.dtype.hasobject:
        return [str(array.shape), *array.ravel().tolist()]
    return [f"{array.dtype.str}{array.shape}".encode(), array.tobytes()]


@_parts.register(Tensor)
def _tensor_parts(value: Tensor) -> list[object]:
    flat = value.detach().cpu().reshape(-1).contiguous()
    return [f"{value.dtype}{tuple(value.shape)}".encode(), flat.view(torch.uint8).numpy()]


@_parts.register(nn.Module)
def _module_parts(value: nn.Module) -> list[object]:
    structure = re.sub(r"0x[0-9a-f]+", "", repr(value))
    parameters = dict(value.named_parameters(remove_duplicate=False))
    return [structure, parameters, dict(value.named_buffers(remove_duplicate=False))]


@_parts.register(type)
@_parts.register(FunctionType)
def _named_parts(value: type | FunctionType) -> list[object]:
    code = value.__code__.co_code if isinstance(value, FunctionType) else b""
    return [f"{value.__module__}.{value.__qualname__}".encode(), code]
