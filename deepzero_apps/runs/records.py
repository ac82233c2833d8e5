"""What a run writes as JSON: plain values, the versions it ran with, and how two settings differ.

The JSON is strict: it has no NaN and no infinity, so a float that is not finite is written as
``null``, and reads back as ``None``.
"""

__all__ = ["differences", "dumps", "loads", "plain", "versions"]

import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

import deepzero_apps

Json: TypeAlias = Any
"""A value of JSON's types: dict with ``str`` keys, list, str, int, float, bool or None."""


def plain(value: object, name: str) -> Json:
    """Turns settings or metrics into JSON's types.

    Args:
        value: A dict, list or tuple, or a plain value, a path, a numpy scalar or a 0-d tensor.
        name: What an error calls the value.

    Returns:
        The same in new dicts and lists; a float that is not finite becomes ``None``.

    Raises:
        TypeError: If a value or a key is of another type.
    """
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {_key(k, name): plain(item, f"{name}[{k!r}]") for k, item in value.items()}
    raise TypeError(
        f"{name} must be a number, a string, None, or a dict or list of them, "
        f"got {type(value).__name__}"
    )


def _key(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{name} must have keys of type str, got {key!r}")
    return key


def dumps(value: Json, *, indent: int | None = None) -> bytes:
    """Writes strict JSON in ASCII, ended by a newline.

    Args:
        value: The value, made by :func:`plain`.
        indent: Spaces a level; all on one line by default.

    Returns:
        The text's bytes.
    """
    return (json.dumps(value, allow_nan=False, indent=indent) + "\n").encode("ascii")


def loads(text: bytes) -> dict[str, Json]:
    """Reads one JSON object.

    Args:
        text: The text's bytes.

    Returns:
        The object.

    Raises:
        ValueError: If the text is no JSON.
        TypeError: If it is no object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value


def differences(old: dict[str, Json], new: dict[str, Json]) -> list[str]:
    """Lists the fields in which two settings differ.

    Args:
        old: The settings in the folder.
        new: The settings asked for.

    Returns:
        A line a field, ``"training.rate: 0.1 in the folder, 0.2 asked for"``, in order.
    """
    left, right = dict(_fields(old, "")), dict(_fields(new, ""))
    return [
        f"{field}: {left.get(field, 'absent')} in the folder, {right.get(field, 'absent')} asked for"
        for field in {**left, **right}
        if left.get(field) != right.get(field)
    ]


def _fields(tree: dict[str, Json], prefix: str) -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            fields += _fields(value, f"{prefix}{key}.")
        else:
            # As text, in which true is not 1, as it is for Python's ==.
            fields.append((f"{prefix}{key}", json.dumps(value)))
    return fields


def versions() -> dict[str, str | None]:
    """Names what the numbers of a run depend on besides its settings.

    Returns:
        The versions of this package, Python, torch and numpy, and ``git``: the commit of the
        checkout this package is imported from, with ``-dirty`` after local changes, or ``None``.
    """
    return {
        "deepzero_apps": deepzero_apps.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "git": _commit(Path(deepzero_apps.__file__).parent.parent),
    }


def _commit(checkout: Path) -> str | None:
    # Asked of this very folder: an installed package may lie inside a checkout of something else.
    if not (checkout / ".git").exists():
        return None
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *describe],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
