r"""How far a rollout is from its reference, frame by frame; blow-ups; intervals.

For a rollout :math:`p` and its reference :math:`r`, both of shape
``(simulations, frames, channels, *grid)``, in each frame of each simulation:

.. math::
    \mathrm{MAE} = \overline{|p - r|}                                              \tag{1}

.. math::
    \mathrm{L2} = \lVert p - r \rVert_2 / \lVert r \rVert_2                        \tag{2}

.. math::
    \mathrm{corr} = \frac{\langle p - m, r - m \rangle}
                         {\lVert p - m \rVert_2 \lVert r - m \rVert_2}             \tag{3}

Means, norms and products run over all channels and cells; :math:`m` is the reference's **mean flow**,
its mean over the frames of that simulation. So (3) asks whether the fluctuations are in phase: the
mean flow, which any coarse simulator gets, earns nothing, and a steady prediction of exactly
:math:`m` has correlation 0. It is a Pearson correlation whose mean is taken in time.

**Blow-ups.** A rollout has blown up at the first frame that is not finite or whose root mean square
is more than a = 3 times that of the reference, and stays blown up. From that frame on it counts as
the prediction :math:`-a r`: MAE (1 + a) times the reference's own amplitude, relative L2 of 1 + a,
and a spectrum a^2 times too large; its correlation counts as 0. By the triangle inequality a rollout
that has not blown up has a relative L2 of at most 1 + a: blowing up never pays. Nothing is dropped.

References:
    | Solver-in-the-Loop (Um et al., 2020), Sec. 5: the mean absolute error
    | https://arxiv.org/abs/2007.00016

    | Machine learning-accelerated computational fluid dynamics (Kochkov et al., 2021):
    | the time for which the correlation stays high
    | https://doi.org/10.1073/pnas.2101784118
"""

__all__ = [
    "Interval",
    "correlation",
    "correlation_time",
    "first_blow_up",
    "flattened",
    "interval",
    "mae",
    "penalized",
    "relative_l2",
]

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from deepzero_apps.correction.simulator import Array

AMPLITUDE = 3.0
"""The root mean square, in units of the reference's, beyond which a rollout has blown up."""

THRESHOLD = 0.8
"""The correlation below which a rollout has lost the reference."""


class Interval(NamedTuple):
    """A mean and the half width of its confidence interval."""

    mean: float
    half_width: float


def mae(predicted: Array, reference: Array) -> Array:
    """Mean absolute error over channels and cells, eq. (1): the metric of Um et al.

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``.
        reference: The reference, of that shape.

    Returns:
        The error of each frame, ``(simulations, frames)``, in the units of the fields.

    Raises:
        ValueError: If shapes differ, or a number is not finite.
    """
    error: Array = np.abs(flattened(predicted, reference) - flattened(reference)).mean(-1)
    return error


def relative_l2(predicted: Array, reference: Array) -> Array:
    """Norm of the error by the norm of the reference, eq. (2).

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``.
        reference: The reference, of that shape, with no frame that is zero everywhere.

    Returns:
        The error of each frame, ``(simulations, frames)``; 1 for a prediction of nothing.

    Raises:
        ValueError: If shapes differ, a number is not finite, or a reference frame is zero.
    """
    r = flattened(reference)
    error = _norm(flattened(predicted, reference) - r)
    if not (size := _norm(r)).all():
        raise ValueError("reference must not be zero in a whole frame, got one; leave it out")
    quotient: Array = error / size
    return quotient


def correlation(predicted: Array, reference: Array) -> Array:
    """Correlation of the fluctuations about the reference's mean flow, eq. (3).

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``, or its vorticity.
        reference: The reference, of that shape, of at least two frames.

    Returns:
        The correlation of each frame in [-1, 1], ``(simulations, frames)``. Where one of the two
        does not fluctuate it is 0, or 1 where the prediction is exact.

    Raises:
        ValueError: If shapes differ, a number is not finite, or there is a single frame.
    """
    p, r = flattened(predicted, reference), flattened(reference)
    if r.shape[1] < 2:
        raise ValueError("reference must hold at least two frames for a mean flow, got one")
    m = r.mean(1, keepdims=True)
    product = ((p - m) * (r - m)).sum(-1)
    size = _norm(p - m) * _norm(r - m)
    exact = (p == r).all(-1).astype(np.float64)
    result: Array = np.divide(product, size, out=exact, where=size > 0)
    return result


def correlation_time(values: Array, times: Array, *, threshold: float = THRESHOLD) -> Array:
    """The time at which the correlation first falls below a threshold.

    Between frames it is interpolated linearly, from 1 at the common start, time 0.

    Args:
        values: The correlation of each frame, ``(simulations, frames)``.
        times: The time of each frame, ``(frames,)``, increasing from 0 or later.
        threshold: Where the reference counts as lost, below 1.

    Returns:
        The time for each simulation, ``(simulations,)``; the last frame's where it never falls.

    Raises:
        ValueError: If shapes do not fit, a correlation is NaN, or times do not increase.
    """
    times = np.asarray(times, dtype=np.float64)
    if values.ndim != 2 or times.shape != values.shape[1:] or np.isnan(values).any():
        raise ValueError(
            "values must be numbers of shape (simulations, frames), with as many times, "
            f"got {values.shape} with {times.shape} times and {np.isnan(values).sum()} NaN"
        )
    if not (len(times) and times[0] >= 0 and (np.diff(times) > 0).all()):
        raise ValueError(f"times must increase from 0 or later, got {times}")
    if not threshold < 1:
        raise ValueError(f"threshold must be below 1, got {threshold}")
    started = np.concatenate(([0.0], times))
    return np.array([_crossing(started, np.concatenate(([1.0], v)), threshold) for v in values])


def first_blow_up(
    predicted: Array, reference: Array, *, amplitude: float = AMPLITUDE
) -> NDArray[np.intp]:
    """Finds the frame at which each rollout blows up.

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``; may hold NaN.
        reference: The reference, of that shape.
        amplitude: The root mean square that counts as blown up, in units of the reference's in
            the same frame; above 1.

    Returns:
        The first such frame, ``(simulations,)``; the number of frames where there is none.

    Raises:
        ValueError: If shapes differ, the reference is not finite, or ``amplitude`` is no more
            than 1.
    """
    if not 1 < amplitude < math.inf:
        raise ValueError(f"amplitude must be above 1 and finite, got {amplitude}")
    limit = amplitude * _norm(flattened(reference))
    if predicted.shape != reference.shape:
        raise ValueError(f"predicted must be of shape {reference.shape}, got {predicted.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        lost = ~(_norm(predicted.reshape(*limit.shape, -1)) <= limit)
    first: NDArray[np.intp] = np.where(lost.any(1), lost.argmax(1), lost.shape[1])
    return first


def penalized(predicted: Array, reference: Array, *, amplitude: float = AMPLITUDE) -> Array:
    """Replaces what follows a blow-up by -``amplitude`` times the reference.

    Args:
        predicted: The rollout, ``(simulations, frames, channels, *grid)``; may hold NaN.
        reference: The reference, of that shape.
        amplitude: See `first_blow_up`.

    Returns:
        A finite rollout, which is ``predicted`` before any blow-up.

    Raises:
        ValueError: See `first_blow_up`.
    """
    first = first_blow_up(predicted, reference, amplitude=amplitude)
    lost = np.arange(predicted.shape[1]) >= first[:, None]
    lost = lost.reshape(*lost.shape, *(1,) * (predicted.ndim - 2))
    result: Array = np.where(lost, -amplitude * reference, predicted)
    return result


def interval(values: Sequence[float] | Array, *, level: float = 0.95) -> Interval:
    """Student's confidence interval of a mean, such as over seeds.

    Args:
        values: Independent values, at least one.
        level: The confidence, in (0, 1).

    Returns:
        The mean and the half width; of a single value, which bounds nothing, infinite.

    Raises:
        ValueError: If there is no value, one is NaN, or ``level`` is not in (0, 1).

    Example:
        >>> mean, half_width = interval([1.0, 2.0, 3.0])
        >>> f"{mean:.3f} ± {half_width:.3f}"
        '2.000 ± 2.484'
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or np.isnan(x).any():
        raise ValueError(f"values must be a list of at least one number, got {x.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if x.size == 1:
        return Interval(float(x[0]), math.inf)
    quantile = student.ppf((1 + level) / 2, x.size - 1)
    return Interval(float(x.mean()), float(quantile * x.std(ddof=1) / math.sqrt(x.size)))


def flattened(fields: Array, like: Array | None = None) -> Array:
    """Checks fields and lays out each frame as one row.

    Args:
        fields: Of shape ``(simulations, frames, channels, *grid)``.
        like: Fields that they are compared with.

    Returns:
        The fields, ``(simulations, frames, numbers)``.

    Raises:
        ValueError: If they have another shape, or are not finite.
    """
    if fields.ndim < 4 or 0 in fields.shape:
        raise ValueError(
            f"fields must be of shape (simulations, frames, channels, *grid), got {fields.shape}"
        )
    if like is not None and fields.shape != like.shape:
        raise ValueError(
            f"predicted must be of the reference's shape {like.shape}, got {fields.shape}"
        )
    if not np.isfinite(fields).all():
        raise ValueError(
            "fields must be finite, got NaN or infinity; see deepzero_apps.correction.metrics."
            "penalized"
        )
    return fields.reshape(*fields.shape[:2], -1)


def _norm(values: Array) -> Array:
    norms: Array = np.linalg.norm(values, axis=-1)
    return norms


def _crossing(times: Array, values: Array, threshold: float) -> float:
    below = values < threshold
    if not below.any():
        return float(times[-1])
    k = int(below.argmax())
    share = (values[k - 1] - threshold) / (values[k - 1] - values[k])
    return float(times[k - 1] + share * (times[k] - times[k - 1]))
