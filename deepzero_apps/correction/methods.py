r"""The methods of the correction table: how the gradient of an unrolled loss comes about.

With the controls :math:`z_t = N_\theta(x_t)` of step t, the gradient is

.. math::
    \frac{dL}{d\theta} = \sum_t \Big(\frac{\partial z_t}{\partial \theta}\Big)^{\!\top} \lambda_t,
    \qquad \lambda_t = \frac{dL}{dz_t},                                              \tag{1}

where the first factor is autograd's and needs no simulator. The methods differ in :math:`\lambda`:

=============== ==================================================================== ================
method          :math:`\lambda_t`                                                    queries a state
=============== ==================================================================== ================
`nog`           the effect on :math:`s_t` alone; what passes the simulator is lost   n
`zo-field`      the same, exactly, and a windowed estimate of the rest (`credit`);   (q + 1) n
                where the simulator is local, all of it by colors (`coloured`)       n + 2 colors (n - 1)
`fo`            autograd through a differentiable twin of the simulator              n
=============== ==================================================================== ================

The windowed estimate is that of ``windowed``. `zo-weights` knows nothing of (1): see ``weight_methods``. `non` is `nog` on pieces of one step, from states
of the reference.

References:
    | Differentiability in unrolled training of neural physics simulators (List et al., 2024), NOG
    | https://arxiv.org/abs/2402.12971
"""

__all__ = [
    "Colored",
    "Method",
    "ThroughTwin",
    "WithoutSolver",
    "at_once",
    "direct",
    "plane",
    "pull_back",
]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.coloured import Coloring, coloured_step
from deepzero_apps.correction.simulator import Twin
from deepzero_apps.correction.unrolled import Loop, Objective, Windows
from deepzero_apps.zeroth_order.training import Observation

Native = NDArray[Any] | None
Advance = Callable[[Tensor, Any, Tensor | None], tuple[Tensor, Any]]


class Method(Protocol):
    """Writes ``.grad`` of the corrector's network."""

    def __call__(
        self, loop: Loop, objective: Objective, windows: Windows, *, step: int
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows.

        Args:
            loop: Simulator and corrector.
            objective: The loss.
            windows: The minibatch.
            step: The number of the training step, for what is drawn at random.

        Returns:
            What was seen.
        """
        ...

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        ...


@dataclass(frozen=True)
class WithoutSolver:
    """`nog`: the gradient stops at the simulator."""

    def __call__(
        self,
        loop: Loop,
        objective: Objective,
        windows: Windows,
        *,
        step: int,  # noqa: ARG002
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows."""
        trace = loop.run(windows)
        cotangents = objective.cotangents(trace.states, windows)
        pull_back(loop, trace.features, direct(loop, cotangents))
        return _observation(objective, trace.states, windows)

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return steps


@dataclass(frozen=True)
class ThroughTwin:
    """`fo`: autograd through a differentiable twin of the simulator; the ceiling.

    The twin's steps are charged to the meter of the simulator, so that methods stay comparable.

    Args:
        twin: The twin.
        charge: Charges state-steps.
    """

    twin: Twin
    charge: Callable[[int], None] = lambda _: None

    def __call__(
        self,
        loop: Loop,
        objective: Objective,
        windows: Windows,
        *,
        step: int,  # noqa: ARG002
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows."""

        def advance(fields: Tensor, native: Any, forcing: Tensor | None) -> tuple[Tensor, Any]:  # noqa: ANN401
            self.charge(len(fields))
            pushed = {} if forcing is None else {"forcing": forcing}
            return self.twin(fields, windows.parameters, native, **pushed)

        native = None if windows.native is None else torch.from_numpy(windows.native)
        return _through(advance, loop, objective, windows, native=native)

    def queries(self, steps: int) -> int:
        """Returns the state-steps that a window of so many steps costs."""
        return steps


@dataclass(frozen=True)
class Colored:
    """`zo-field` for a local simulator: backpropagation whose simulator steps go by colors.

    Args:
        coloring: The colors.
        mu: The step, in the units of the field.

    Raises:
        ValueError: If ``mu`` is not positive.
    """

    coloring: Coloring
    mu: float

    def __post_init__(self) -> None:
        _check_positive(mu=self.mu)

    def __call__(
        self,
        loop: Loop,
        objective: Objective,
        windows: Windows,
        *,
        step: int,  # noqa: ARG002
    ) -> Observation:
        """Writes the gradient of the mean loss over the windows."""

        def advance(
            fields: Tensor, native: Native, forcing: Tensor | None
        ) -> tuple[Tensor, Native]:
            return step_by_colors(
                fields, windows.parameters, native=native, mu=self.mu, forcing=forcing
            )

        step_by_colors = partial(coloured_step, loop.simulator, self.coloring)
        return _through(advance, loop, objective, windows, native=windows.native)

    def queries(self, steps: int, *, inside: bool = False) -> int:
        """Returns the state-steps that a window of so many steps costs.

        The first state of a window is data, so its step needs no gradient; inside of a step
        every forcing has colors of its own.
        """
        moved = 2 * steps - 1 if inside else steps - 1
        return steps + 2 * self.coloring.colors * moved


def direct(loop: Loop, cotangents: Tensor) -> Tensor:
    """The part of the gradient that no simulator stands before: what a control does to its step.

    Args:
        loop: Simulator and corrector.
        cotangents: Of shape ``(n, b, c, *grid)``.

    Returns:
        Of shape ``(n, b, channels, rows, columns)``; zero where corrections act inside.
    """
    gradient = at_once(loop, cotangents)
    return torch.zeros_like(gradient) if loop.inside else gradient


def at_once(loop: Loop, cotangents: Tensor) -> Tensor:
    """The gradient if a control changed its step's answer by its correction and by nothing else."""
    n, b = cotangents.shape[:2]
    grid = tuple(cotangents.shape[3:])
    shape = (n * b, loop.corrector.output.channels, *plane(grid))
    controls = torch.zeros(shape, dtype=torch.float64, device=cotangents.device)
    with torch.enable_grad():
        controls.requires_grad_()
        corrections = loop.corrector.correction(controls, grid)
        (gradient,) = torch.autograd.grad(corrections, controls, cotangents.flatten(0, 1))
    by_step: Tensor = gradient.unflatten(0, (n, b))
    return by_step


def pull_back(loop: Loop, features: Tensor, gradient: Tensor) -> None:
    """Writes eq. (1) to ``.grad``: one pass through the network for all steps.

    Args:
        loop: Simulator and corrector.
        features: Of shape ``(n, b, c + 1, rows, columns)``.
        gradient: The gradient with respect to the controls, ``(n, b, channels, rows, columns)``.
    """
    with torch.enable_grad():
        controls = loop.corrector.network(features.flatten(0, 1))
        controls.backward(gradient.flatten(0, 1).to(controls))


def _through(
    advance: Advance,
    loop: Loop,
    objective: Objective,
    windows: Windows,
    *,
    native: Any,  # noqa: ANN401
) -> Observation:
    """Backpropagation through a whole piece, the simulator's step being ``advance``."""

    def correction(fields: Tensor) -> Tensor:
        answer: Tensor = loop.corrector(fields, windows.parameters)
        return answer

    with torch.enable_grad():
        fields, states = windows.fields, []
        for _ in range(windows.steps):
            fields, native = loop.step(fields, native, advance=advance, correction=correction)
            states.append(fields)
        stacked = torch.stack(states)
        objective.losses(stacked, windows).mean().backward()
    return _observation(objective, stacked.detach(), windows)


def _observation(objective: Objective, states: Tensor, windows: Windows) -> Observation:
    return Observation(float(objective.losses(states, windows).mean()))


def plane(grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid as the network has it: a line of cells is a grid of one row."""
    return grid if len(grid) == 2 else (1, *grid)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
