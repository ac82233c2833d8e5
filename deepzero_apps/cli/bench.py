"""What a worker of a correction holds: a simulator of its own, and what is done with it.

It builds the problem in its own process, by name or by importing the user's module, with a program of
its own where the simulator is one. Reference simulations, rollouts and pieces of training are asked for
in calls whose answers depend on their arguments alone.
"""

__all__ = ["Bench", "Setup", "spread"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from deepzero_apps.cli.corrected import (
    CorrectionSettings,
    ProblemSettings,
    Scene,
    Units,
    corrector_for,
    problem_of,
)
from deepzero_apps.cli.correction_plan import (
    UNKNOWN,
    CorrectSettings,
    Plan,
    corrected,
    objective,
    plan,
    recipe,
)
from deepzero_apps.cli.recorded import simulated
from deepzero_apps.correction.piecework import Piecework
from deepzero_apps.correction.rollout import rollout
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.correction.spread import Spread
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.workers import Pool, Shared
from deepzero_apps.zeroth_order.oracle import Meter

Start = tuple[Array, Array, NDArray[Any] | None]
"""Fields, parameters and native parts of states to roll out from."""


@dataclass(frozen=True)
class Setup:
    """What the workers of a training need besides its settings; travels once.

    Attributes:
        units: The scales of the problem, measured by whoever asks.
        train: The training simulations.
    """

    units: Units
    train: Trajectories


class Bench:
    """A worker's object.

    Args:
        settings: The problem; for training and corrected rollouts, the corrector too.

    Raises:
        Misuse: If the problem cannot be had here.
    """

    def __init__(self, settings: ProblemSettings) -> None:
        self._settings = settings
        self._problem = problem_of(settings)
        self._work: tuple[int, Piecework] | None = None

    def reference(self, parameters: Sequence[float], seed: int) -> Trajectories:
        """Makes reference simulations; see `deepzero_apps.cli.recorded.simulated`."""
        return simulated(self._problem, parameters, seed)

    def rolled(self, start: Start, steps: int, largest: float, corrector: Shared | None) -> Array:
        """Rolls states out.

        Args:
            start: Fields ``(b, c, *grid)``, parameters ``(b,)`` and native parts.
            steps: How many steps to make.
            largest: The largest number of all starts, by which a blow-up is told.
            corrector: Its weights and units; None for the bare simulator.

        Returns:
            The states after each step, ``(b, steps, c, *grid)``; NaN after a blow-up.
        """
        fields, parameters, native = start[0].copy(), start[1].copy(), start[2]
        native = None if native is None else native.copy()  # what has traveled is read-only
        simulator = self._problem.coarse if corrector is None else self._corrected(corrector)
        return rollout(simulator, fields, parameters, native, steps=steps, largest=largest)

    def work(self, setup: Shared, method: str, *arguments: object) -> Any:  # noqa: ANN401 - its answer
        """Calls a method of the training's `Piecework`."""
        if self._work is None or self._work[0] != setup.number:
            self._work = setup.number, self._piecework(setup.value())
        return getattr(self._work[1], method)(*arguments)

    def _corrected(self, corrector: Shared) -> Simulator:
        if not isinstance(self._settings, CorrectionSettings):
            raise TypeError(
                "settings must describe a corrector to roll one out, got "
                f"{type(self._settings).__name__}"
            )
        empty = corrector_for(self._settings, self._problem, UNKNOWN)
        state = {name: torch.tensor(value) for name, value in corrector.value().items()}
        empty.load_state_dict(state)
        return corrected(self._settings, self._problem, empty)

    def _piecework(self, setup: Setup) -> Piecework:
        if not isinstance(self._settings, CorrectSettings):
            raise TypeError(f"settings must be of a training, got {type(self._settings).__name__}")
        # weights come with every call, and whoever asks has charged its budget
        settings = self._settings.model_copy(update={"start": None})
        ready = plan(settings, self._problem, setup.units, meter=Meter())
        return Piecework(
            ready.loop,
            ready.correction.method,
            objective(settings, ready.correction, setup.units),
            trajectories=setup.train,
            recipe=recipe(settings, ready),
        )


@dataclass(frozen=True)
class _Training:
    """A pool as the training's pieces see it: every call says of which training it is."""

    pool: Pool
    setup: Shared

    @property
    def count(self) -> int:
        return self.pool.count

    def share(self, value: object) -> Shared:
        return self.pool.share(value)

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        return self.pool.ask("work", [(self.setup, method, *call) for call in calls])


def spread(ready: Plan, pool: Pool, view: Scene) -> Spread:
    """Lets workers answer the pieces of a training.

    Args:
        ready: The training.
        pool: Workers that hold a `Bench` of its settings.
        view: The problem and its trajectories.

    Returns:
        Its method, as before but for rounding; what it asks is charged to the training's meter.
    """
    setup = pool.share(Setup(view.units, view.split.train))
    return Spread(
        ready.correction.method,
        _Training(pool, setup),
        queries_each=ready.correction.queries,
        charge=ready.meter.charge,
    )
