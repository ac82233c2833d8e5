"""Rollouts in this process, or one start a call in workers."""

__all__ = ["Roller", "rolled"]

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from deepzero_apps.correction.rollout import Corrected, Started, rollout
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.spread import state_of


class Roller(Protocol):
    """Who is asked: a `deepzero_apps.workers.Pool` of `deepzero_apps.cli.bench.Bench`."""

    def share(self, value: object) -> Any:  # noqa: ANN401 - the pool's own
        """Puts a value where all can have it."""
        ...

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        """Makes calls; yields the place of each and its answer, as they come."""
        ...


def rolled(
    simulator: Simulator, started: Started, *, steps: int, pool: Roller | None = None
) -> Array:
    """Runs simulations from given starts; see `rollout`.

    Workers make every rollout by itself, and so to the same bits whatever their number. Those of the bare
    simulator are the same as without workers; a corrector's differ from them in rounding.

    Args:
        simulator: The coarse simulator, or it with a corrector.
        started: Where rollouts start.
        steps: How many steps to make.
        pool: Workers that know the simulator; this process by default.

    Returns:
        The states after each step, ``(b, steps, c, *grid)``; NaN after a blow-up.
    """
    fields, parameters, native = started.fields, started.parameters, started.native
    if pool is None:
        return rollout(simulator, fields, parameters, native, steps=steps)
    state = state_of(simulator.corrector) if isinstance(simulator, Corrected) else None
    corrector = None if state is None else pool.share(state)
    largest = float(np.abs(fields).max())
    calls = []
    for i in range(len(fields)):
        own = None if native is None else native[i : i + 1]
        start = fields[i : i + 1], parameters[i : i + 1], own
        calls.append((start, steps, largest, corrector))
    states = np.empty((len(fields), steps, *fields.shape[1:]))
    for place, answer in pool.ask("rolled", calls):
        states[place] = answer[0]
    return states
