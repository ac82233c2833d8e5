r"""A short piece of a corrected simulation, as training sees it.

From a state :math:`s_0` of the reference, simulator S and corrector C alternate for n steps, in one of
two ways:

.. math::
    s_t = y_t + C(y_t), \quad y_t = S(s_{t-1})              \tag{after}

.. math::
    s_t = S(s_{t-1};\; f = C(s_{t-1}) / \Delta t)           \tag{inside}

and the loss is a weighted mean over steps of the squared error in units of the field,

.. math::
    L = \sum_t w_t\, \operatorname{mean}\, (s_t - r_t)^2 / \text{unit}^2, \qquad \sum_t w_t = 1

with weight on every step, on every k-th, or on the last alone (`loss_weights`).
"""

__all__ = [
    "Loop",
    "LossName",
    "Objective",
    "Push",
    "Trace",
    "Windows",
    "advance",
    "loss_weights",
]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.simulator import Array, Simulator
from deepzero_apps.zeroth_order.stacked import Copies

LossName = Literal["every", "every-k", "terminal"]

Push = Callable[[int], Tensor]
"""A step, counted from 0, to what is added to its controls, ``(k * b, channels, rows, columns)``."""

Native = NDArray[Any] | None
Networks = Callable[[Tensor], Tensor]
Fields = TypeVar("Fields", Tensor, Array)


@dataclass(frozen=True)
class Windows:
    """Where pieces of simulations start and what they should become.

    Attributes:
        fields: The states at the start, float64 ``(b, c, *grid)``.
        parameters: Their parameters, float64 ``(b,)``.
        references: The states wanted after each step, float64 ``(b, n, c, *grid)``.
        native: The native parts at the start, ``(b, ...)``, or None.
    """

    fields: Tensor
    parameters: Tensor
    references: Tensor
    native: Native = None

    @property
    def steps(self) -> int:
        """The number of steps n."""
        return self.references.shape[1]

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of the fields."""
        return tuple(self.fields.shape[2:])

    def repeated(self, k: int) -> "Windows":
        """Returns k copies of all windows, one after the other: row ``i * b + j`` is window j."""
        if k == 1:
            return self
        return Windows(
            _repeat(self.fields, k),
            _repeat(self.parameters, k),
            _repeat(self.references, k),
            None if self.native is None else np.concatenate([self.native] * k),
        )


@dataclass(frozen=True)
class Trace:
    """What happened in an unrolled piece.

    Attributes:
        features: What the network saw at each step, ``(n, b, c + 1, rows, columns)``.
        states: The corrected states, float64 ``(n, b, c, *grid)``.
    """

    features: Tensor
    states: Tensor


@dataclass(frozen=True)
class Objective:
    """The loss of a piece.

    Args:
        weights: The weight of each step, ``(n,)``, with sum one.
        unit: The unit of the field.
    """

    weights: Tensor
    unit: float

    def losses(self, states: Tensor, windows: Windows) -> Tensor:
        """Returns the loss of each piece.

        Args:
            states: Of shape ``(n, b, c, *grid)``.
            windows: Where they started, b pieces.

        Returns:
            Losses ``(b,)``.
        """
        error = (states - windows.references.transpose(0, 1)) / self.unit
        return self.weights @ error.square().flatten(2).mean(2)

    def cotangents(self, states: Tensor, windows: Windows) -> Tensor:
        """Returns the gradient of the mean loss with respect to each state by itself."""
        error = (states - windows.references.transpose(0, 1)) / self.unit**2
        weights = self.weights.view(-1, *(1,) * (states.ndim - 1))
        return error * weights * (2 / states[0].numel())


class Loop:
    """Simulator and corrector, stepped together.

    Args:
        simulator: The coarse simulator.
        corrector: The corrector.
        inside: Whether corrections act inside of the simulator's step, as a forcing, and not
            after it.
        dt: The time step, by which a correction is divided to become an acceleration.

    Raises:
        ValueError: If ``inside`` is asked for and the simulator takes no forcing.
    """

    def __init__(
        self, simulator: Simulator, corrector: Corrector, *, inside: bool = False, dt: float = 1.0
    ) -> None:
        if inside and not simulator.accepts_forcing:
            raise ValueError(
                "inside must be False for a simulator that takes no forcing, got True; "
                "correct after the step instead"
            )
        self.simulator = simulator
        self.corrector = corrector
        self.inside = inside
        self.dt = dt

    @cached_property
    def copies(self) -> Copies:
        """Displaced copies of the network, side by side; its graph is traced once."""
        return Copies(self.corrector.network)

    def step(
        self,
        fields: Fields,
        native: Any,  # noqa: ANN401 - an array, or a twin's tensor
        *,
        advance: Callable[[Fields, Any, Fields | None], tuple[Fields, Any]],
        correction: Callable[[Fields], Fields],
    ) -> tuple[Fields, Any]:
        """Makes one corrected step, in whichever of the two ways.

        Args:
            fields: The states, tensors or arrays ``(b, c, *grid)``.
            native: Their native parts, or None.
            advance: The simulator's step: fields, native parts and a forcing (or None) to new
                fields and native parts.
            correction: Fields to their corrections.

        Returns:
            The corrected states and their native parts.
        """
        if self.inside:
            return advance(fields, native, correction(fields) / self.dt)
        fields, native = advance(fields, native, None)
        return fields + correction(fields), native

    def run(
        self, windows: Windows, *, push: Push | None = None, networks: Networks | None = None
    ) -> Trace:
        """Runs pieces without recording gradients.

        Args:
            windows: Where they start.
            push: What is added to the controls of each step.
            networks: Evaluates the network in the corrector's place, features to controls.

        Returns:
            The trace.
        """
        (trace,) = self.run_together([windows], pushes=[push], networks=networks)
        return trace

    @torch.no_grad()
    def run_together(
        self,
        sets: Sequence[Windows],
        *,
        pushes: Sequence[Push | None],
        networks: Networks | None = None,
    ) -> list[Trace]:
        """Runs sets of pieces that share the simulator's calls and nothing else.

        As the simulator's rows do not depend on each other, a set's bits are those it has alone.

        Args:
            sets: Where the pieces of each start, all of one number of steps.
            pushes: What is added to the controls of each set.
            networks: As `run` has it.

        Returns:
            The trace of each.
        """
        network = networks if networks is not None else self.corrector.network
        sizes = [len(one.fields) for one in sets]
        parameters = torch.cat([one.parameters for one in sets])
        fields, native = torch.cat([one.fields for one in sets]), _joined(sets)
        seen: list[list[Tensor]] = [[] for _ in sets]
        states = []

        def advanced(state: Tensor, kept: Native, forcing: Tensor | None) -> tuple[Tensor, Native]:
            return advance(self.simulator, state, parameters, kept, forcing=forcing)

        def corrected(state: Tensor, which: int, t: int) -> Tensor:
            windows, push = sets[which], pushes[which]
            seen[which].append(self.corrector.features(state, windows.parameters))
            controls: Tensor = network(seen[which][-1]).double()
            pushed = controls if push is None else controls + push(t)
            return self.corrector.correction(pushed, windows.grid)

        for t in range(sets[0].steps):

            def correction(state: Tensor, t: int = t) -> Tensor:
                parts = enumerate(state.split(sizes))
                return torch.cat([corrected(part, which, t) for which, part in parts])

            fields, native = self.step(fields, native, advance=advanced, correction=correction)
            states.append(fields)
        by_set = torch.stack(states).split(sizes, 1)
        return [Trace(torch.stack(own), one) for own, one in zip(seen, by_set, strict=True)]


def advance(
    simulator: Simulator,
    fields: Tensor,
    parameters: Tensor,
    native: Native,
    *,
    forcing: Tensor | None = None,
) -> tuple[Tensor, Native]:
    """Steps a simulator with tensors, outside of any graph."""
    pushed = {} if forcing is None else {"forcing": _array(forcing)}
    after, native = simulator.step(_array(fields), _array(parameters), native, **pushed)
    return torch.from_numpy(after).to(fields.device), native


def loss_weights(loss: LossName, steps: int, *, every: int = 2) -> Tensor:
    """Returns the weights of the steps of a piece.

    Args:
        loss: ``every`` step, ``every-k`` steps (counted so that the last one is among them), or
            the last alone (``terminal``).
        steps: The number of steps n.
        every: The k of ``every-k``.

    Returns:
        Weights, float64 ``(n,)``, with sum one.

    Raises:
        ValueError: If the loss is unknown or a number not positive.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    if loss not in ("every", "every-k", "terminal"):
        raise ValueError(f"loss must be every, every-k or terminal, got {loss!r}")
    spacing = {"every": 1, "every-k": every, "terminal": steps}[loss]
    weights = torch.zeros(steps, dtype=torch.float64)
    kept = torch.arange(steps - 1, -1, -spacing)
    weights[kept] = 1 / len(kept)
    return weights


def _joined(sets: Sequence[Windows]) -> Native:
    natives = [one.native for one in sets if one.native is not None]
    return np.concatenate(natives) if natives else None


def _repeat(x: Tensor, k: int) -> Tensor:
    return x.repeat(k, *(1,) * (x.ndim - 1))


def _array(x: Tensor) -> Array:
    return x.detach().cpu().numpy()
