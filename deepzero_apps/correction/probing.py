r"""What a simulator does not say of itself: whether it repeats itself, how noisy it is, how far it acts.

**Noise.** The same state is stepped several times, alone and in company. A simulator whose answers
differ has a noise floor :math:`\eta`, and a forward difference with a step :math:`\mu` an error of about
:math:`\eta / \mu + \mu / 2 \cdot |S''|`. For a field of unit u and an S'' of the order of 1 / u the sum is
least near

.. math::
    \mu = \sqrt{2 \eta u}                                                             \tag{1}

which `probe` recommends where it exceeds the usual 1 % of u.

**Reach.** One number of a field is moved and everything that changes is looked for. What is not periodic in
its grid cannot be told from what is, so distances are the shorter way around. A simulator
that changes cells further away than a quarter of the grid counts as global.
"""

__all__ = ["Probed", "probe"]

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepzero_apps.correction.simulator import Array, Simulator

_USUAL = 1e-2
_LARGE = 0.05


@dataclass(frozen=True)
class Probed:
    """What was found.

    Attributes:
        noise: The root mean square difference of repeated steps, in the units of the field; 0 for
            a deterministic simulator.
        reach: How many cells a step carries a change; ``math.inf`` for a global one.
        mu: The step recommended for differences, in the units of the field.
        queries: The state-steps spent.
    """

    noise: float
    reach: float
    mu: float
    queries: int

    @property
    def deterministic(self) -> bool:
        """Whether repeated steps agreed to the bit."""
        return self.noise == 0.0


def probe(
    simulator: Simulator,
    fields: Array,
    parameters: Array,
    native: NDArray[Any] | None = None,
    *,
    unit: float,
    places: int = 4,
    seed: int = 0,
) -> Probed:
    """Steps a simulator a few times to learn its noise and its reach.

    Args:
        simulator: The simulator. What it says of its own reach is taken at its word.
        fields: One typical state or more, ``(b, c, *grid)``; the first is probed.
        parameters: Of shape ``(b,)``.
        native: Of shape ``(b, ...)``, or None.
        unit: The unit of the field, by custom its standard deviation.
        places: How many numbers of the field are moved, each in a step of its own.
        seed: The seed of the places.

    Returns:
        What was found.

    Raises:
        ValueError: If ``unit`` or ``places`` is not positive.
    """
    if not unit > 0 or places < 1:
        raise ValueError(f"unit and places must be positive, got {unit} and {places}")
    state = _First(simulator, fields[:1], parameters[:1], None if native is None else native[:1])
    alone, company = state.step(1), state.step(3)
    again = np.concatenate((state.step(1), company)) - alone
    noise = float(np.sqrt(np.square(again).mean()))
    queries = 5
    mu = max(_USUAL * unit, math.sqrt(2 * noise * unit))
    reach = simulator.reach
    if reach is None:
        reach = _reach(state, alone, places=places, step=_LARGE * unit, noise=noise, seed=seed)
        queries += places
    return Probed(noise, reach, mu, queries)


class _First:
    """One state, stepped in any number of copies."""

    def __init__(
        self, simulator: Simulator, fields: Array, parameters: Array, native: NDArray[Any] | None
    ) -> None:
        self._simulator, self.fields = simulator, fields
        self._parameters, self._native = parameters, native

    def step(self, copies: int, moved: Array | None = None) -> Array:
        fields = np.concatenate([self.fields if moved is None else moved] * copies)
        native = None if self._native is None else np.concatenate([self._native] * copies)
        parameters = np.concatenate([self._parameters] * copies)
        after, _ = self._simulator.step(fields, parameters, native)
        return after


def _reach(
    state: _First, base: Array, *, places: int, step: float, noise: float, seed: int
) -> float:
    generator = np.random.default_rng(seed)
    furthest = 0
    grid = state.fields.shape[2:]
    for _ in range(places):
        place = tuple(int(generator.integers(side)) for side in state.fields.shape[1:])
        moved = state.fields.copy()
        moved[(0, *place)] += step
        changed = np.abs(state.step(1, moved) - base).max((0, 1)) > 6 * noise
        furthest = max(furthest, _distance(changed, place[1:]))
    quarter = max(1, max(grid) // 4)
    return math.inf if furthest > quarter else furthest


def _distance(changed: NDArray[np.bool_], place: tuple[int, ...]) -> int:
    """The largest distance of a changed cell along any axis, the shorter way around."""
    furthest = 0
    for cells, at, side in zip(np.nonzero(changed), place, changed.shape, strict=True):
        if len(cells):
            apart = np.abs(cells - at)
            furthest = max(furthest, int(np.minimum(apart, side - apart).max()))
    return furthest
