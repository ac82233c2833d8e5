"""All that is measured of one rollout of the test simulations."""

__all__ = ["Observe", "Scores", "evaluate"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepzero_apps.correction.metrics import (
    correlation,
    correlation_time,
    first_blow_up,
    mae,
    penalized,
    relative_l2,
)
from deepzero_apps.correction.simulator import Array
from deepzero_apps.correction.spectra import spectrum_error

Observe = Callable[[Array], Array]
"""A quantity of states: fields ``(b, channels, *grid)`` to values ``(b, ...)``."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What one rollout of all test simulations is worth; blow-ups count as ``metrics`` says.

    Attributes:
        times: The time of each frame, ``(frames,)``.
        mae: Mean absolute error, mean over simulations, ``(frames,)``.
        relative_l2: Relative error, mean over simulations, ``(frames,)``.
        correlation: Correlation of fluctuations, mean over simulations, ``(frames,)``.
        correlation_time: Mean over simulations.
        spectrum_error: Mean over simulations, in decades.
        divergence: Mean magnitude over cells and the frames before a blow-up; NaN where there is
            no such frame, None where the fields have no divergence to speak of.
        blow_ups: How many rollouts have blown up.
    """

    times: Array
    mae: Array
    relative_l2: Array
    correlation: Array
    correlation_time: float
    spectrum_error: float
    divergence: float | None
    blow_ups: int


def evaluate(
    predicted: Array,
    reference: Array,
    *,
    times: Array,
    periodic: bool,
    observe: Observe | None = None,
    divergence: Observe | None = None,
) -> Scores:
    """Measures a rollout, with blow-ups counted as ``metrics`` says.

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``; may hold NaN.
        reference: The reference, of that shape.
        times: The time of each frame since the common start, ``(frames,)``.
        periodic: Whether the grid is periodic; see `energy_spectrum`.
        observe: What is correlated, such as the vorticity; the fields themselves by default.
        divergence: The divergence of each cell.

    Returns:
        The scores.

    Raises:
        ValueError: If shapes do not fit, or the reference is not finite.
    """
    first = first_blow_up(predicted, reference)
    alive = np.arange(predicted.shape[1]) < first[:, None]
    settled = penalized(predicted, reference)
    seen = [_observed(observe, each) for each in (settled, reference)]
    phase = np.where(alive, correlation(*seen), 0.0)
    return Scores(
        times=np.array(times),
        mae=mae(settled, reference).mean(0),
        relative_l2=relative_l2(settled, reference).mean(0),
        correlation=phase.mean(0),
        correlation_time=float(correlation_time(phase, times).mean()),
        spectrum_error=float(spectrum_error(settled, reference, periodic=periodic).mean()),
        divergence=None if divergence is None else _magnitude(divergence, predicted[alive]),
        blow_ups=int((first < predicted.shape[1]).sum()),
    )


def _observed(observe: Observe | None, fields: Array) -> Array:
    """Asks for a quantity of all frames at once, as one channel."""
    if observe is None:
        return fields
    values = observe(fields.reshape(-1, *fields.shape[2:]))
    return values.reshape(*fields.shape[:2], 1, *values.shape[1:])


def _magnitude(divergence: Observe, fields: Array) -> float:
    return float(np.abs(divergence(fields)).mean()) if len(fields) else math.nan
