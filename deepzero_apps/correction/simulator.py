r"""What a simulator is, and the one door through which every call of it goes.

A simulator advances many independent states by one time step, numpy in and numpy out. Whoever
writes one imports nothing: the protocol stands here, on the consumer's side. A state is the
corrected **field** plus a **native** part (fluxes, clocks, scalars; whatever a restart needs) that
nobody but the simulator reads.

A `Metered` simulator counts state-steps, its currency: one state advanced by one step is one query.
It refuses what is not finite or has another shape, and names the step.
"""

__all__ = ["Array", "Metered", "Simulator", "SimulatorFailure", "Twin"]

import math
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.zeroth_order.oracle import Meter

Array = NDArray[np.float64]


class Simulator(Protocol):
    """A time step of many independent states, deterministic, in float64."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one field, ``(channels, *grid)``."""
        ...

    @property
    def reach(self) -> float | None:
        """How many cells a step carries a change: a whole number, ``math.inf`` or None (unknown)."""
        ...

    @property
    def accepts_forcing(self) -> bool:
        """Whether a step takes ``forcing``."""
        ...

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        """Advances b states by one time step.

        Args:
            fields: Of shape ``(b, channels, *grid)``; never changed.
            parameters: The parameter of each state, such as its Reynolds number, ``(b,)``.
            native: The native parts, ``(b, ...)``; None for a simulator that has none.
            forcing: An acceleration field added inside of the step, of the shape of ``fields``.

        Returns:
            New fields and new native parts. Row i depends on row i alone.
        """
        ...


class Twin(Protocol):
    """A simulator's step in torch, equal to it within rounding: what `fo` differentiates."""

    def __call__(
        self,
        fields: Tensor,
        parameters: Tensor,
        native: Tensor | None = None,
        *,
        forcing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Advances b states by one time step; see `Simulator.step`."""
        ...


class SimulatorFailure(RuntimeError):
    """A simulator answered nothing that could be used.

    Attributes:
        step: The number of steps that this simulator had made before.
        fields: The last good fields, those handed to the failed step.
        native: Their native parts.
    """

    def __init__(
        self, message: str, *, step: int, fields: Array, native: NDArray[Any] | None
    ) -> None:
        super().__init__(message)
        self.step = step
        self.fields = fields
        self.native = native

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets the error reach the parent of the process that it was raised in."""
        make = partial(SimulatorFailure, step=self.step, fields=self.fields, native=self.native)
        return make, self.args


class Metered:
    """A simulator whose every step is charged, checked and counted; itself a simulator.

    Args:
        simulator: The simulator.
        meter: Charged one query for each state and step; a fresh one without limit by default.
        name: What it is called in errors.

    Attributes:
        steps: How many steps (calls) were made.

    Raises:
        TypeError: If ``simulator`` lacks a member of the protocol.
    """

    def __init__(
        self, simulator: Simulator, *, meter: Meter | None = None, name: str = "the simulator"
    ) -> None:
        for member in ("shape", "reach", "accepts_forcing", "step"):
            if not hasattr(simulator, member):
                raise TypeError(
                    f"simulator must have {member}, got {type(simulator).__name__}, which has not; "
                    "see deepzero_apps.correction.simulator.Simulator"
                )
        self._simulator = simulator
        self.meter = meter if meter is not None else Meter()
        self.name = name
        self.steps = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one field, ``(channels, *grid)``."""
        return tuple(self._simulator.shape)

    @property
    def reach(self) -> float | None:
        """How many cells a step carries a change."""
        reach = self._simulator.reach
        if reach is not None and not (reach >= 0 and (reach == math.inf or reach == int(reach))):
            raise ValueError(
                f"{self.name}'s reach must be a whole number of cells, math.inf or None, got {reach}"
            )
        return reach

    @property
    def accepts_forcing(self) -> bool:
        """Whether a step takes ``forcing``."""
        return self._simulator.accepts_forcing

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        """Advances b states by one time step; see `Simulator.step`.

        Raises:
            BudgetExhausted: Before the step, if the meter does not cover b state-steps.
            ValueError: If the fields do not fit the simulator, or it takes no forcing.
            SimulatorFailure: If the answer is not finite or of another shape.
        """
        self._check(fields, parameters, forcing)
        self.meter.charge(len(fields))
        if forcing is None:
            after, kept = self._simulator.step(fields, parameters, native)
        else:
            after, kept = self._simulator.step(fields, parameters, native, forcing=forcing)
        self._check_answer(after, fields, native)
        self.steps += 1
        return after, kept

    def _check(self, fields: Array, parameters: Array, forcing: Array | None) -> None:
        if fields.shape[1:] != self.shape or not len(fields):
            raise ValueError(
                f"fields must be of shape (b, {', '.join(map(str, self.shape))}) for {self.name}, "
                f"got {fields.shape}"
            )
        if parameters.shape != (len(fields),):
            raise ValueError(
                f"parameters must be one a state, ({len(fields)},), got {parameters.shape}"
            )
        if forcing is not None and not self.accepts_forcing:
            raise ValueError(
                f"forcing must be left out, {self.name} takes none; correct after the step instead"
            )
        if forcing is not None and forcing.shape != fields.shape:
            raise ValueError(f"forcing must be of shape {fields.shape}, got {forcing.shape}")

    def _check_answer(self, after: Array, fields: Array, native: NDArray[Any] | None) -> None:
        if after.shape != fields.shape or after.dtype != np.float64:
            problem = f"float64 fields of shape {fields.shape}, got {after.dtype} of {after.shape}"
        elif not np.isfinite(after).all():
            row = int(np.argmin(np.isfinite(after.reshape(len(after), -1)).all(1)))
            problem = f"finite fields, got NaN or infinity in state {row}"
        else:
            return
        raise SimulatorFailure(
            f"{self.name} must answer {problem} at step {self.steps + 1}; it may have blown up: "
            "shorten its time step or the correction",
            step=self.steps,
            fields=fields,
            native=native,
        )
