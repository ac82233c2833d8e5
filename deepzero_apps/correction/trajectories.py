"""Reference trajectories: made once by a fine simulator, kept on the coarse grid, divided.

A reference simulation runs on the fine grid; after a warm-up every k-th state is restricted to the
coarse grid and kept. What the coarse simulator should have done is then known at every frame.
``trajectory_files`` holds them on disk.
"""

__all__ = ["Split", "Trajectories", "join", "make"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepzero_apps.correction.simulator import Array, Metered, Simulator, SimulatorFailure


class Split(NamedTuple):
    """Trajectories divided by parameter: no parameter is in two parts."""

    train: "Trajectories"
    validation: "Trajectories"
    test: "Trajectories"


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Simulations of equal length on one grid.

    Attributes:
        fields: The kept frames, ``(simulations, frames, channels, *grid)``, float64.
        parameters: The parameter of each simulation, ``(simulations,)``.
        native: The native part of every frame, ``(simulations, frames, ...)``, or None.
        meta: What made them: the problem's name, grids, time step, seeds; of JSON's types.

    Raises:
        ValueError: If shapes do not fit each other, or a number is not finite.
    """

    fields: Array
    parameters: Array
    native: NDArray[Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.fields.shape
        if self.fields.dtype != np.float64 or len(shape) < 4 or 0 in shape:
            raise ValueError(
                "fields must be float64 of shape (simulations, frames, channels, *grid), "
                f"got {self.fields.dtype} of shape {shape}"
            )
        if self.parameters.shape != shape[:1] or not np.isfinite(self.parameters).all():
            raise ValueError(
                f"parameters must be {shape[0]} finite numbers, one a simulation, "
                f"got {self.parameters}"
            )
        if self.native is not None and self.native.shape[:2] != shape[:2]:
            raise ValueError(
                f"native must be of shape ({shape[0]}, {shape[1]}, ...), got {self.native.shape}"
            )
        if not np.isfinite(self.fields).all():
            raise ValueError("fields must be finite, got NaN or infinity; shorten the time step")

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> "Trajectories":
        """Picks simulations; a single one keeps its axis."""
        kept = np.arange(len(self))[index if isinstance(index, slice) else np.atleast_1d(index)]
        native = None if self.native is None else self.native[kept]
        return Trajectories(self.fields[kept], self.parameters[kept], native, self.meta)

    def standard_deviation(self) -> Array:
        """Measures what scales a network's inputs; to be asked of the training part alone.

        Returns:
            The standard deviation of each channel over simulations, frames and cells,
            ``(channels,)``, in the units of the fields.
        """
        deviation: Array = self.fields.std(axis=(0, 1, *range(3, self.fields.ndim)))
        return deviation

    def split(
        self, *, train: Sequence[float], validation: Sequence[float], test: Sequence[float]
    ) -> Split:
        """Divides the simulations by their parameter; those of no list are left out.

        Args:
            train: The parameters of the training part.
            validation: The parameters of the part that settings are tuned on.
            test: The parameters of the part that is looked at last.

        Returns:
            The three parts, each in the order of the simulations.

        Raises:
            ValueError: If a parameter is in two lists, a list is empty, or there is no
                simulation of a parameter.
        """
        lists = {"train": train, "validation": validation, "test": test}
        self._check_lists(lists)
        return Split(**{name: self[self._places(own)] for name, own in lists.items()})

    def _places(self, parameters: Sequence[float]) -> list[int]:
        return [i for i, own in enumerate(self.parameters) if _has(parameters, own)]

    def _check_lists(self, lists: Mapping[str, Sequence[float]]) -> None:
        seen: dict[str, Sequence[float]] = {}
        for name, own in lists.items():
            if len(own) == 0:
                raise ValueError(f"{name} must name at least one parameter, got none")
            for parameter in own:
                if not _has(self.parameters.tolist(), parameter):
                    raise ValueError(
                        f"{name} must name parameters of {self.parameters.tolist()}, "
                        f"got {parameter}"
                    )
                for other, theirs in seen.items():
                    if _has(theirs, parameter):
                        raise ValueError(
                            f"{name} must not share a parameter with {other}, got {parameter} in "
                            "both; what is tested is never seen in training"
                        )
            seen[name] = own


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Puts the simulations of several sets behind each other.

    Args:
        parts: At least one, of the same frames and grid, all with a native part or none.

    Returns:
        All simulations, with the meta of the first part.

    Raises:
        ValueError: If there is no part, or they do not fit each other.
    """
    if len(parts) == 0:
        raise ValueError("parts must hold at least one set of trajectories, got none")
    shapes = {_row_shapes(part) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"parts must be of one shape a simulation, got {sorted(map(str, shapes))}"
        )
    natives = [part.native for part in parts if part.native is not None]
    return Trajectories(
        np.concatenate([part.fields for part in parts]),
        np.concatenate([part.parameters for part in parts]),
        np.concatenate(natives) if natives else None,
        parts[0].meta,
    )


def make(
    reference: Simulator,
    fields: Array,
    parameters: Array,
    *,
    restrict: Callable[[Array], Array],
    frames: int,
    warm_up: int = 0,
    every: int = 1,
    native: NDArray[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Runs reference simulations side by side and keeps their restricted frames.

    Frame k is the state after ``warm_up + k * every`` steps. As a simulator's rows do not depend on
    each other, groups of simulations may be made by several processes, with the same bits.

    Args:
        reference: The fine simulator.
        fields: The start of each simulation on the fine grid, ``(simulations, channels, *grid)``.
        parameters: The parameter of each simulation, ``(simulations,)``.
        restrict: From the fine grid to the coarse one, ``(b, channels, *fine)`` to
            ``(b, channels, *coarse)``; it should conserve fluxes.
        frames: The number of frames to keep, at least 1.
        warm_up: The number of steps before the first frame.
        every: The number of steps from one frame to the next, at least 1.
        native: The native part of each start, ``(simulations, ...)``. The native parts of all
            frames are kept as they are, for a coarse simulator that shares their meaning.
        progress: Told the number of steps done and to do, after each step.

    Returns:
        The trajectories, without meta.

    Raises:
        ValueError: If a number is out of range or shapes do not fit.
        SimulatorFailure: If the reference blows up; it names the step and the simulation.
    """
    _check_counts(frames=frames, warm_up=warm_up, every=every)
    simulator = Metered(reference, name="the reference simulator")
    state = np.asarray(fields, dtype=np.float64)
    numbers = np.asarray(parameters, dtype=np.float64)
    total = warm_up + (frames - 1) * every
    kept: list[Array] = []
    natives: list[NDArray[Any]] = []
    for step in range(total + 1):
        if step > 0:
            state, native = _step(simulator, state, numbers, native)
        if step >= warm_up and (step - warm_up) % every == 0:
            kept.append(np.asarray(restrict(state), dtype=np.float64))
            natives += [] if native is None else [native]
        if progress is not None and step > 0:
            progress(step, total)
    return Trajectories(
        np.stack(kept, axis=1), numbers.copy(), np.stack(natives, axis=1) if natives else None
    )


def _check_counts(*, frames: int, warm_up: int, every: int) -> None:
    for name, value, least in (
        ("frames", frames, 1),
        ("warm_up", warm_up, 0),
        ("every", every, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _step(
    simulator: Metered, state: Array, parameters: Array, native: NDArray[Any] | None
) -> tuple[Array, NDArray[Any] | None]:
    try:
        return simulator.step(state, parameters, native)
    except SimulatorFailure as error:
        raise SimulatorFailure(
            f"simulations of parameters {parameters.tolist()}: {error}",
            step=error.step,
            fields=error.fields,
            native=error.native,
        ) from error


def _has(parameters: Sequence[float], parameter: float) -> bool:
    return any(math.isclose(parameter, p, rel_tol=1e-9) for p in parameters)


def _row_shapes(part: Trajectories) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    return part.fields.shape[1:], None if part.native is None else part.native.shape[1:]
