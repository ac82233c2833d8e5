"""A correction problem: a coarse simulator, what it should follow, and how its fields are read."""

__all__ = ["Problem", "Start"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from deepzero_apps.correction.correctors import Output
from deepzero_apps.correction.simulator import Array, Simulator, Twin

Start = Callable[[Array, int], tuple[Array, NDArray[Any] | None]]
"""Parameters ``(b,)`` and a seed to the states that reference simulations start from."""


@dataclass(frozen=True)
class Problem:
    """Everything that training and evaluation need to know.

    Attributes:
        name: What it is called; trajectories of another name are refused.
        coarse: The simulator that is corrected.
        dt: The time between two frames, one step of ``coarse``.
        outputs: How a corrector's controls become corrections, by name: ``free`` and, where the
            flow is incompressible, ``streamfunction``. The first is the default.
        train: The parameters of the training simulations.
        validation: Those of the simulations that settings are tuned on.
        test: Those of the simulations that are looked at last; in no other list.
        periodic: Whether the grid is periodic.
        settings: What the trajectories follow from, besides the seed: grids, time step, warm-up.
        reference: The simulator that makes the trajectories; None if they are given as a folder.
        every: Steps of the reference from one frame to the next.
        warm_up: Steps of the reference before the first frame.
        frames: The number of frames of a simulation.
        restrict: From the reference's fields to the coarse grid.
        restrict_native: From its native parts to those of ``coarse``; unchanged where None.
        start: Where reference simulations start.
        twin: A differentiable twin of ``coarse``, for `fo` alone.
        observe: What is drawn and correlated, fields ``(b, c, *grid)`` to ``(b, *grid)``, such as
            the vorticity; the first component where there is none.
        quantity: What ``observe`` gives, for figures.
        divergence: The divergence of each cell, ``(b, *grid)``.
        solid: Cells of an obstacle, ``(*grid)``.
        cfl: The Courant number of each state, ``(b,)``.
    """

    name: str
    coarse: Simulator
    dt: float
    outputs: Mapping[str, Output]
    train: tuple[float, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    periodic: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: Simulator | None = None
    every: int = 1
    warm_up: int = 0
    frames: int = 0
    restrict: Callable[[Array], Array] | None = None
    restrict_native: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    start: Start | None = None
    twin: Twin | None = None
    observe: Callable[[Array], Array] | None = None
    quantity: str = "field"
    divergence: Callable[[Array], Array] | None = None
    solid: NDArray[Any] | None = None
    cfl: Callable[[Array], Array] | None = None

    @property
    def parameters(self) -> tuple[float, ...]:
        """The parameters of all simulations: training, validation, test."""
        return self.train + self.validation + self.test
