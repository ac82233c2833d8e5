"""Trees of plain values and tensors, taken apart into JSON and a flat dict of tensors, and back.

A *tree* is a ``Tensor``, a number, a string, ``None``, a numpy scalar, or a dict (also
``OrderedDict``, ``Counter``; keys ``str`` or ``int``), list or tuple of trees: what the
``state_dict()`` of networks, optimizers and schedulers and the state of generators are made of.

The skeleton is JSON. ``None``, booleans, integers, strings, lists and finite floats stand for
themselves (``repr`` of a float is exact); all else is an object with one key, its kind::

    (1, 2.0)            {"tuple": [1, 2.0]}
    {"a": 1, 2: "b"}    {"dict": [["a", 1], [2, "b"]]}
    float("inf")        {"float": "inf"}
    numpy.int8(3)       {"numpy": ["int8", 3]}
    a tensor            {"tensor": "its/path"}

So the round trip keeps types, order, integer keys and bits. It does not keep aliases (each place
gets its own copy), strides, devices, ``requires_grad`` or the class of a ``Tensor`` subclass.
"""

__all__ = ["Tree", "flatten", "unflatten"]

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Tree: TypeAlias = Any
"""A tree of plain values and tensors, as the module's docstring defines it."""

_DEPTH = 100
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_NUMPY = {"bool"} | {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_NUMPY |= {"float16", "float32", "float64"}
_TENSORS = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64),
}


def flatten(tree: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """Takes a tree apart.

    Args:
        tree: The tree. It is not changed, and nothing returned shares memory with it.

    Returns:
        The skeleton, of JSON's types alone, and the tensors by name: contiguous, on the CPU. A
        tensor's name is its path, keys joined by ``/``, with ``'`` added where two would be equal.

    Raises:
        TypeError: If a value, a key or a tensor's dtype is none of those listed.
        ValueError: If the tree is more than 100 levels deep, as one that holds itself is.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, (), tensors), tensors


def unflatten(skeleton: Tree, tensors: dict[str, Tensor]) -> Tree:
    """Puts a tree together again.

    Args:
        skeleton: The skeleton that :func:`flatten` returned, perhaps after a trip through JSON.
        tensors: The tensors by name; those of the result are these very objects.

    Returns:
        The tree.

    Raises:
        ValueError: If the skeleton has a form that :func:`flatten` never writes; or TypeError.
        KeyError: If a tensor is absent.
    """
    if isinstance(skeleton, list):
        return [unflatten(node, tensors) for node in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton

    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind in _BUILDERS:
        return _BUILDERS[kind](unflatten(content, tensors))
    raise ValueError(f"skeleton must be of a known kind, got {kind!r}")


def _encode(node: Tree, path: tuple[str | int, ...], tensors: dict[str, Tensor]) -> Tree:
    kind = type(node)
    if kind in (type(None), bool, int, str):
        return node
    if kind is float:
        return node if math.isfinite(node) else {"float": repr(node)}
    if isinstance(node, Tensor):
        return {"tensor": _store(node, path, tensors)}
    if isinstance(node, np.generic) and node.dtype.name in _NUMPY:
        return {"numpy": [node.dtype.name, _encode(node.item(), path, tensors)]}
    return _encode_container(node, path, tensors)


def _encode_container(node: Tree, path: tuple[str | int, ...], tensors: dict[str, Tensor]) -> Tree:
    if len(path) > _DEPTH:
        raise ValueError(
            f"state must be at most {_DEPTH} levels deep, got more at {_where(path[:3])}; "
            "does it hold itself?"
        )
    kind = type(node)
    if kind in (list, tuple):
        content = [_encode(value, (*path, i), tensors) for i, value in enumerate(node)]
        return content if kind is list else {"tuple": content}
    if kind in _MAPPINGS:
        for key in node:
            _check_key(key, path)
        return {_MAPPINGS[kind]: [[k, _encode(v, (*path, k), tensors)] for k, v in node.items()]}
    raise TypeError(
        f"state must hold tensors, numbers, strings, None, dicts, lists and tuples, "
        f"got {kind.__name__} at {_where(path)}; convert it first"
    )


def _check_key(key: object, path: tuple[str | int, ...]) -> None:
    if type(key) not in (str, int):
        raise TypeError(
            f"state must have keys of type str or int, "
            f"got {key!r} of type {type(key).__name__} at {_where(path)}"
        )


def _store(tensor: Tensor, path: tuple[str | int, ...], tensors: dict[str, Tensor]) -> str:
    plain = tensor.layout == torch.strided and not tensor.is_meta
    if not plain or tensor.dtype not in _TENSORS:
        raise TypeError(
            f"state must hold dense tensors of real numbers, integers, booleans or complex64, "
            f"got dtype {tensor.dtype}, layout {tensor.layout}, device {tensor.device} "
            f"at {_where(path)}"
        )
    name = "/".join(map(str, path)).encode(errors="backslashreplace").decode() or "tensor"
    while name in tensors or name == "__metadata__":
        name += "'"
    dense = tensor.detach().to("cpu")
    tensors[name] = dense.clone(memory_format=torch.contiguous_format)
    return name


def _scalar(content: Tree) -> np.generic:
    name, value = content
    if name not in _NUMPY:
        raise ValueError(f"numpy scalar must be of a known dtype, got {name!r}")
    scalar: np.generic = np.dtype(name).type(value)
    return scalar


def _where(path: tuple[str | int, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in path)


_BUILDERS: dict[str, Callable[[Tree], Tree]] = {
    "float": float,
    "numpy": _scalar,
    "tuple": tuple,
    "dict": dict,
    "ordered": OrderedDict,
    # Counter would count the pairs themselves.
    "counter": lambda pairs: Counter(dict(pairs)),
}
