"""What a batch of states must be, going in and coming out; refusals that name the argument."""

__all__ = [
    "check_fields",
    "check_floats",
    "check_forcing",
    "check_state",
    "integer",
    "positive",
    "problem",
]

import math
import operator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def integer(name: str, value: int, *, least: int) -> int:
    """Returns an integer, or raises a ValueError where it is none or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return number


def positive(name: str, value: float) -> float:
    """Returns a number, or raises a ValueError where it is not positive and finite."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def check_floats(name: str, value: object) -> None:
    """Raises a TypeError unless the value is an array of float64."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float64:
        found = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be an array of float64, got {found}")


def check_fields(name: str, fields: Array, shape: tuple[int, ...]) -> None:
    """Raises unless fields have the shape ``(b, *shape)``."""
    check_floats(name, fields)
    if fields.ndim == 0 or fields.shape[1:] != shape:
        sizes = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape (b, {sizes}), got {fields.shape}")


def check_state(
    shape: tuple[int, ...], fields: Array, parameters: Array, native: Array | None
) -> None:
    """Raises unless there are fields, a parameter and, if any, a native part for each state."""
    check_fields("fields", fields, shape)
    check_floats("parameters", parameters)
    if parameters.shape != (len(fields),):
        raise ValueError(f"parameters must have shape ({len(fields)},), got {parameters.shape}")
    if native is not None:
        check_floats("native", native)
        if native.shape[:1] != (len(fields),):
            raise ValueError(f"native must have {len(fields)} rows, got shape {native.shape}")


def check_forcing(forcing: Array | None, fields: Array, *, accepted: bool = True) -> None:
    """Raises unless a forcing fits the fields, or where a simulator takes none."""
    if forcing is None:
        return
    if not accepted:
        raise ValueError(
            "forcing must be None, got an array; pass accepts_forcing=True to a simulator that "
            "takes one"
        )
    check_floats("forcing", forcing)
    if forcing.shape != fields.shape:
        raise ValueError(f"forcing must have shape {fields.shape}, got {forcing.shape}")


def problem(after: Array, kept: Array | None, fields: Array) -> str:
    """Says in words why an answer is no state of the size of ``fields``; empty where it is."""
    if after.shape != fields.shape:
        return f"must answer fields of shape {fields.shape}, got {after.shape}"
    if kept is not None and kept.shape[:1] != fields.shape[:1]:
        return f"must answer {len(fields)} native parts, got an array of shape {kept.shape}"
    for name, array in (("fields", after), ("native part", kept)):
        if array is not None and array.size:
            finite = np.isfinite(array.reshape(len(array), -1)).all(1)
            if not finite.all():
                return f"answered NaN or infinity in the {name} of state {int(finite.argmin())}"
    return ""
