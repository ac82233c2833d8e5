"""Builds the methods of the correction table by name, with settings tuned on validation data.

``TUNED`` holds what ``benchmarks/tune_correction.py`` found on the validation simulations of the
default problem; flags override it.
"""

__all__ = ["METHODS", "TUNED", "Correction", "MethodName", "Tuning", "build"]

import math
from dataclasses import dataclass
from typing import Literal

from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.coloured import Coloring
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import (
    Colored,
    Method,
    ThroughTwin,
    WithoutSolver,
)
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.unrolled import Loop, LossName
from deepzero_apps.correction.weight_methods import Coordinates, Randomized
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule, shares_by_size
from deepzero_apps.zeroth_order.state import Weights

MethodName = Literal["src", "non", "nog", "zo-weights", "zo-weights-rge", "zo-field", "fo"]

METHODS: tuple[MethodName, ...] = (
    "src",
    "non",
    "nog",
    "zo-weights",
    "zo-weights-rge",
    "zo-field",
    "fo",
)


_CENTRAL = 1e-4
"""What central differences by colors take of the step for forward ones, where there is no noise: a
local simulator is explicit, hence exact to rounding, and kinks (upwinding) cost in proportion."""

_MOST_COLORED = 128
"""The most queries a state-step for which a gradient by colors, exact, is worth its price."""

_RADIUS = 4
"""The radius of a window of credit, in cells."""


@dataclass(frozen=True)
class Tuning:
    """What differs between methods.

    Attributes:
        lr: Adam's learning rate.
        q: Directions (``zo-field``), weights (``zo-weights``) or antithetic pairs (``zo-weights-rge``) a step.
        mu: The step, in the units of the weights or (``zo-field``) of the field; 0 is the one that
            the probe recommends.
        updates: The most training steps; it binds the methods that ask little of the simulator.
    """

    lr: float
    q: int = 0
    mu: float = 0.0
    updates: int = 1_000_000


TUNED: dict[MethodName, Tuning] = {
    "non": Tuning(lr=5e-3, updates=2_000),
    "nog": Tuning(lr=5e-3, updates=2_000),
    "zo-weights": Tuning(lr=1e-2, q=16, mu=1e-2),
    "zo-weights-rge": Tuning(lr=1e-2, q=8, mu=1e-2),
    "zo-field": Tuning(lr=5e-3, q=2),
    "fo": Tuning(lr=5e-3, updates=2_000),
}


@dataclass(frozen=True)
class Correction:
    """A method ready to train.

    Attributes:
        method: Writes the gradient.
        unrolled: The steps of a piece, one for ``non``.
        loss: The loss, on every step for ``non``.
        queries: The state-steps that a piece costs.
        credit: What learns beside the corrector.
    """

    method: Method
    unrolled: int
    loss: LossName
    queries: int
    credit: Credit | None = None


def build(
    name: MethodName,
    loop: Loop,
    problem: Problem,
    *,
    tuning: Tuning,
    unrolled: int,
    loss: LossName,
    probed: Probed,
    meter: Meter,
    seed: int,
) -> Correction:
    """Builds a method of the correction table.

    Args:
        name: Its name in the table.
        loop: Simulator and corrector.
        problem: The problem.
        tuning: Its settings.
        unrolled: The steps of a piece.
        loss: Where the loss is seen.
        probed: What is known of the simulator.
        meter: Charged for the steps of a twin.
        seed: The seed of signs, directions and coordinates.

    Returns:
        The correction.

    Raises:
        Misuse: If the method does not fit the problem.
    """
    if loop.inside and name in ("non", "nog"):
        raise Misuse(
            f"--method {name} must correct after the step, got --inside: its gradient stops at "
            "the simulator and would be zero; use zo-field or zo-weights"
        )
    if name == "non":
        return Correction(WithoutSolver(), 1, "every", 1)
    if name == "zo-field":
        return _in_fields(loop, problem, tuning, probed, unrolled=unrolled, loss=loss, seed=seed)
    method: Method
    if name == "nog":
        method = WithoutSolver()
    elif name == "fo":
        method = _first_order(problem, meter)
    elif name == "zo-weights":
        method = Coordinates(tuning.mu, _schedule(loop, tuning.q, seed))
    elif name == "zo-weights-rge":
        method = Randomized(tuning.mu, tuning.q, seed)
    else:
        raise Misuse(f"--method must train something, got {name}")
    return Correction(method, unrolled, loss, method.queries(unrolled))


def _in_fields(
    loop: Loop,
    problem: Problem,
    tuning: Tuning,
    probed: Probed,
    *,
    unrolled: int,
    loss: LossName,
    seed: int,
) -> Correction:
    """By colors where the simulator is local and they are few, by windows where it is not."""
    mu = tuning.mu or probed.mu
    if math.isfinite(probed.reach):
        coloring = Coloring(loop.simulator.shape, int(probed.reach), periodic=problem.periodic)
        if 2 * coloring.colors <= _MOST_COLORED:
            _refuse_directions(tuning, coloring)
            return _by_colors(loop, coloring, tuning, probed, unrolled=unrolled, loss=loss)
    credit = Credit(_RADIUS, periodic=problem.periodic)
    method = Windowed(mu / loop.corrector.scale, tuning.q, credit, seed)
    return Correction(method, unrolled, loss, method.queries(unrolled), credit)


def _refuse_directions(tuning: Tuning, coloring: Coloring) -> None:
    usual = TUNED["zo-field"].q  # a run's own settings, which may be read again, hold it
    if tuning.q != usual:
        raise Misuse(
            f"--q must be left out for a simulator of reach {coloring.reach}, whose gradient goes by "
            f"{coloring.colors} colors and draws no directions, got {tuning.q}"
        )


def _by_colors(
    loop: Loop,
    coloring: Coloring,
    tuning: Tuning,
    probed: Probed,
    *,
    unrolled: int,
    loss: LossName,
) -> Correction:
    mu = tuning.mu or probed.mu
    if tuning.mu == 0 and probed.deterministic:
        mu *= _CENTRAL
    method = Colored(coloring, mu)
    return Correction(method, unrolled, loss, method.queries(unrolled, inside=loop.inside))


def _first_order(problem: Problem, meter: Meter) -> Method:
    if problem.twin is None:
        raise Misuse(
            f"--method fo must have a differentiable twin of the simulator, {problem.name} has "
            "none; choose a method that only steps it, such as zo-field"
        )
    return ThroughTwin(problem.twin, meter.charge)


def _schedule(loop: Loop, moved: int, seed: int) -> SupportSchedule:
    sizes = Weights(loop.corrector.network).sizes
    if moved > sum(sizes):
        raise Misuse(f"--q must be at most the {sum(sizes):,} weights, got {moved}")
    return SupportSchedule(tuple(shares_by_size(sizes, moved)), sizes, seed=seed)
