"""What the PhiFlow simulators share: arrays to PhiFlow's tensors and back, one guarded step.

PhiFlow computes with whatever library the values are arrays of. A simulator here has one function
``advance`` that says its step in PhiFlow's terms, for the arrays of any library. Its ``step`` is
the black box: ``advance`` on numpy, in float64, with no setting of PhiFlow left changed. The same
``advance`` on another library's arrays is what gradients are taken of.

**Layout.** Arrays are ``(states, channel, row, column)``; row j and column i of the grid lie at
y = (j + 1/2) dy and x = (i + 1/2) dx. A staggered velocity holds u on the right face of each cell in
channel 0 and v on the top face in channel 1. PhiFlow stores no face whose value a boundary
condition fixes: `to_faces` and `from_faces` are the one place that knows.

**Batches.** The states are one batch dimension. PhiFlow's conjugate gradients stop each state by
its own residual and leave it alone afterwards: a row's bits do not depend on the rows around it
(tested). One call costs .1 to .3 s of PhiFlow's own bookkeeping whatever its size, so many states
in one call are much cheaper than one at a time.

References:
    | PhiFlow (Φ-Flow): Differentiable Simulations for PyTorch, TensorFlow and Jax
    | (Holl & Thuerey, 2024), https://proceedings.mlr.press/v235/holl24a.html
"""

__all__ = [
    "AnyArray",
    "Array",
    "PhiTensor",
    "from_faces",
    "from_grid",
    "phi",
    "pressure_solve",
    "step",
    "to_faces",
    "to_grid",
    "to_vector",
]

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.states import check_forcing, check_state

with warnings.catch_warnings():
    # PhiML warns of its own experimental parts while it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import phi  # type: ignore[import-untyped]
    import phi.field  # type: ignore[import-untyped]
    import phi.geom  # type: ignore[import-untyped]
    import phi.math  # type: ignore[import-untyped]
    import phi.physics.advect  # type: ignore[import-untyped]
    import phi.physics.diffuse  # type: ignore[import-untyped]
    import phi.physics.fluid  # type: ignore[import-untyped]

Array = NDArray[np.float64]

AnyArray = Any
"""An array of numpy or of any other library that PhiFlow computes with; no two share a type."""

PhiTensor = Any
"""A tensor, field or setting of PhiFlow, which is not typed."""

Advance = Callable[[AnyArray, AnyArray, AnyArray, AnyArray], tuple[AnyArray, AnyArray]]
"""Fields, parameters, native part and forcing, of one library, to new fields and native part."""


def step(
    advance: Advance,
    shape: tuple[int, ...],
    *,
    fields: Array,
    parameters: Array,
    native: NDArray[Any] | None,
    forcing: Array | None,
    native_shape: tuple[int, ...] | None = None,
) -> tuple[Array, Array | None]:
    """Checks the input, then advances it on numpy in float64.

    Args:
        advance: The step.
        shape: The shape of one field.
        fields: Of shape ``(b, *shape)``.
        parameters: Of shape ``(b,)``, positive or zero.
        native: Of shape ``(b, *native_shape)``, or None where that is None.
        forcing: Of shape ``(b, *shape)``, or None.
        native_shape: The shape of one native part; None for a simulator without.

    Returns:
        The new fields and native parts; new arrays.

    Raises:
        TypeError: If an argument is no array of float64.
        ValueError: If an argument has another shape or is not finite, or a parameter is negative.
        FloatingPointError: If PhiFlow's pressure solve does not converge.
    """
    check_state(shape, fields, parameters, native)
    check_forcing(forcing, fields)
    if not len(fields):
        raise ValueError(f"fields must hold at least one state, got shape {fields.shape}")
    _check_native(native, len(fields), native_shape)
    given = {"fields": fields, "parameters": parameters, "native": native, "forcing": forcing}
    for name, array in given.items():
        _check_finite(name, array)
    if (parameters < 0).any():
        raise ValueError(f"parameters must not be negative, got {parameters.min()}")

    # PhiFlow compares 0 / 0 where a right-hand side is zero, and overflows before it diverges.
    quiet = np.errstate(all="ignore")
    with phi.math.NUMPY, phi.math.precision(64), quiet:
        try:
            after, left = advance(fields, parameters, native, forcing)
        except phi.math.ConvergenceException as error:
            raise FloatingPointError(
                f"PhiFlow's pressure solve must converge, got: {error}; "
                "the flow may have blown up: shorten the time step or the forcing"
            ) from error
    return np.array(after), None if left is None else np.array(left)


def to_grid(array: AnyArray) -> PhiTensor:
    """Gives an array ``(b, rows, columns)`` of any library PhiFlow's names of its axes."""
    names = [phi.math.batch("states"), phi.math.spatial("y"), phi.math.spatial("x")]
    return phi.math.reshaped_tensor(array, names, convert=False)


def from_grid(tensor: PhiTensor) -> AnyArray:
    """The array ``(b, rows, columns)`` of a tensor, see `to_grid`."""
    return tensor.native(["states", "y", "x"])


def to_vector(array: AnyArray) -> PhiTensor:
    """Gives per-state numbers ``(b,)`` of any library PhiFlow's name of the batch."""
    return phi.math.reshaped_tensor(array, [phi.math.batch("states")], convert=False)


def to_faces(array: AnyArray, like: PhiTensor) -> PhiTensor:
    """Makes a staggered velocity of an array ``(b, 2, rows, columns)`` of any library.

    Args:
        array: u on right faces and v on top faces.
        like: A staggered field of PhiFlow that has the grid and the boundary conditions; it
            tells which faces it stores.

    Returns:
        The field.
    """
    grids = {"y": to_grid(array[:, 1]), "x": to_grid(array[:, 0])}
    stored = {axis: like.values[{"~vector": axis}].shape.get_size(axis) for axis in grids}
    cut = {axis: grid[{axis: slice(stored[axis])}] for axis, grid in grids.items()}
    return like.with_values(phi.math.stack(cut, phi.math.dual("vector")))


def from_faces(velocity: PhiTensor) -> AnyArray:
    """The array ``(b, 2, rows, columns)`` of a staggered velocity; faces not stored are zero.

    Args:
        velocity: A staggered field of PhiFlow, as of `to_faces`.

    Returns:
        u on right faces and v on top faces.
    """
    channels = []
    for axis in ("x", "y"):
        grid = velocity.values[{"~vector": axis}]
        missing = velocity.resolution.get_size(axis) - grid.shape.get_size(axis)
        padded = phi.math.pad(grid, {axis: (0, missing)}, phi.math.extrapolation.ZERO)
        channels.append(padded)
    stacked = phi.math.stack(channels, phi.math.channel("component"))
    return stacked.native(["states", "component", "y", "x"])


def pressure_solve(tolerance: float, *, start: PhiTensor = None) -> PhiTensor:
    """Conjugate gradients to a relative and absolute tolerance.

    The method is named because PhiFlow picks a direct one for singular systems, which fails; and
    a singular system is left as it is, without a constraint: its right-hand side is balanced.

    Args:
        tolerance: Of the residual.
        start: The first guess; zero by default.

    Returns:
        The solve.
    """
    return phi.math.Solve(
        "CG", tolerance, tolerance, x0=start, max_iterations=10_000, rank_deficiency=0
    )


def _check_finite(name: str, array: Array | None) -> None:
    if array is not None and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_native(native: Array | None, states: int, shape: tuple[int, ...] | None) -> None:
    if shape is None and native is not None:
        raise ValueError(f"native must be None, got {type(native).__name__}")
    if shape is None:
        return
    sizes = ", ".join(map(str, (states, *shape)))
    if native is None:
        raise ValueError(f"native must have shape ({sizes}), got None; start from initial()")
    if native.shape[1:] != shape:
        raise ValueError(f"native must have shape ({sizes}), got {native.shape}")
