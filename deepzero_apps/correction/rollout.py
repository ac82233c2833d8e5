"""Long runs: a simulator with its corrector is a simulator, and any simulator can be rolled out."""

__all__ = ["Corrected", "Started", "rollout", "started_at"]

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.simulator import Array, Simulator, SimulatorFailure
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop


class Corrected:
    """A simulator and its corrector, stepped together; itself a simulator.

    Rows are independent up to the rounding of the network, whose kernels depend on the number of
    rows.

    Args:
        simulator: The coarse simulator.
        corrector: The corrector.
        inside: Whether corrections act inside of the simulator's step, as a forcing.
        dt: The time step, by which a correction is divided to become an acceleration.

    Raises:
        ValueError: If ``inside`` is asked for and the simulator takes no forcing.
    """

    def __init__(
        self, simulator: Simulator, corrector: Corrector, *, inside: bool = False, dt: float = 1.0
    ) -> None:
        self._loop = Loop(simulator, corrector, inside=inside, dt=dt)
        self.corrector = corrector
        self.shape = tuple(simulator.shape)
        self.reach: float | None = None
        self.accepts_forcing = simulator.accepts_forcing

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        """Advances b states by one corrected time step; see `Simulator.step`."""

        def advance(
            state: Array, kept: NDArray[Any] | None, own: Array | None
        ) -> tuple[Array, NDArray[Any] | None]:
            given = [push for push in (own, forcing) if push is not None]
            pushed = {"forcing": sum(given[1:], start=given[0])} if given else {}
            return self._loop.simulator.step(state, parameters, kept, **pushed)

        def correction(state: Array) -> Array:
            return self._correction(state, parameters)

        return self._loop.step(fields, native, advance=advance, correction=correction)

    @torch.no_grad()
    def _correction(self, fields: Array, parameters: Array) -> Array:
        corrector = self._loop.corrector
        device = next(corrector.parameters()).device
        seen = torch.from_numpy(fields).to(device), torch.from_numpy(parameters).to(device)
        corrections: Array = corrector(*seen).cpu().numpy()
        return corrections


@dataclass(frozen=True)
class Started:
    """States to roll out from, and what should follow.

    Attributes:
        fields: Of shape ``(b, c, *grid)``.
        parameters: Of shape ``(b,)``.
        references: The reference after each step, ``(b, steps, c, *grid)``.
        native: The native parts, ``(b, ...)``, or None.
    """

    fields: Array
    parameters: Array
    references: Array
    native: NDArray[Any] | None = None


def started_at(trajectories: Trajectories, frames: tuple[int, ...], steps: int) -> Started:
    """Picks starts in every simulation, and the references after them.

    Args:
        trajectories: The simulations.
        frames: The frames to start at.
        steps: How many steps are to be compared.

    Returns:
        The starts, in the order of simulations, then frames.

    Raises:
        ValueError: If a simulation has too few frames.
    """
    length = trajectories.fields.shape[1]
    if not frames or min(frames) < 0 or max(frames) + steps >= length or steps < 1:
        raise ValueError(
            f"steps must be at least 1 and end within the {length} frames after the starts "
            f"{frames}, got {steps}"
        )
    pick = np.array(frames)

    def starts(x: NDArray[Any]) -> NDArray[Any]:
        return x[:, pick].reshape(-1, *x.shape[2:])

    after = np.stack([trajectories.fields[:, f + 1 : f + 1 + steps] for f in frames], 1)
    return Started(
        starts(trajectories.fields),
        np.repeat(trajectories.parameters, len(frames)),
        after.reshape(-1, *after.shape[2:]),
        None if trajectories.native is None else starts(trajectories.native),
    )


def rollout(
    simulator: Simulator,
    fields: Array,
    parameters: Array,
    native: NDArray[Any] | None = None,
    *,
    steps: int,
    limit: float = 1e3,
    largest: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Runs simulations; one that blows up is given up and does not harm the others.

    Args:
        simulator: Any simulator, corrected or not.
        fields: The starts, ``(b, c, *grid)``.
        parameters: Of shape ``(b,)``.
        native: Of shape ``(b, ...)``, or None.
        steps: How many steps to make.
        limit: A state with a number larger than this many times the largest of all starts, or one
            that is not finite, or that the simulator fails on after the first step, has blown up;
            the rest of its rollout is NaN.
        largest: That largest number, where these are not all starts; measured by default.
        progress: Told the number of steps done and to do, after each step.

    Returns:
        The states after each step, ``(b, steps, c, *grid)``.

    Raises:
        ValueError: If ``steps`` is not positive.
        SimulatorFailure: If the simulator fails on the starts, which are good states.

    Warns:
        UserWarning: If it fails on a later state.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    measured = float(np.abs(fields).max()) if largest is None else largest
    most = limit * max(measured, np.finfo(np.float64).tiny)
    states = np.full((len(fields), steps, *fields.shape[1:]), np.nan)
    alive = np.arange(len(fields))
    for t in range(steps):
        if len(alive):
            with np.errstate(over="ignore", invalid="ignore"):
                fields, native, kept = _stepped(
                    simulator, fields, parameters, native, first=t == 0
                )
                parameters, alive = parameters[kept], alive[kept]
                good = (np.abs(fields) <= most).all(tuple(range(1, fields.ndim)))
            fields, parameters, alive = fields[good], parameters[good], alive[good]
            native = None if native is None else native[good]
            states[alive, t] = fields
        if progress is not None:
            progress(t + 1, steps)
    return states


def _stepped(
    simulator: Simulator,
    fields: Array,
    parameters: Array,
    native: NDArray[Any] | None,
    *,
    first: bool,
) -> tuple[Array, NDArray[Any] | None, NDArray[np.bool_]]:
    """Steps the states that the simulator does not fail on, and says which these are."""
    try:
        after, native = simulator.step(fields, parameters, native)
    except (SimulatorFailure, FloatingPointError) as error:
        if first:
            raise
        b = len(fields)
        if b == 1:
            warnings.warn(f"counted as a blow-up: {error}", stacklevel=2)
            return fields[:0], None, np.zeros(1, dtype=np.bool_)
        halves = [
            _stepped(
                simulator,
                fields[half],
                parameters[half],
                None if native is None else native[half],
                first=False,
            )
            for half in (slice(b // 2), slice(b // 2, b))
        ]
        natives = [own for _, own, _ in halves if own is not None]
        after, kept = (np.concatenate([half[i] for half in halves]) for i in (0, 2))
        return after, np.concatenate(natives) if natives else None, kept
    return after, native, np.ones(len(after), dtype=np.bool_)
