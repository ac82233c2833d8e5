r"""Loss differences of a network when one of its weights moves: the engines.

For a network with trainable weights :math:`\theta \in \mathbb{R}^d` on a batch of b samples, with
per-sample losses :math:`l_j`,

.. math::
    l(\theta) = \frac{1}{b} \sum_{j=1}^b l_j(\theta), \qquad
    \Delta_i = \frac{1}{b} \sum_{j=1}^b \left[ l_j(\theta + \mu e_i) - l_j(\theta) \right]  \tag{1}

The bracket is formed for each sample and in float64: the difference of two float32 means would
lose most of its digits, and it is divided by a small :math:`\mu` later. An engine that carries
differences gives those of the outputs, and a head that knows how its loss differs with them
(`DifferenceHead`) forms no bracket at all.

All passes start from the same random generators and buffers, those of the moment of ``prepare``
(common random numbers; running statistics do not drift). Afterwards both are as one ordinary
pass of the network leaves them, and the weights hold the same bits as before.
The engines but the first are in `deepzero_apps.zeroth_order.engines`; all agree to rounding.

======================= ============================================== ====================
engine                  what one query of a weight costs               networks
======================= ============================================== ====================
`Sequential`            one pass                                       any
`PrefixReuse`           the operations from the weight on              torch.fx can trace
`DifferencePropagation` the same on differences, K queries at once;    torch.fx can trace
                        on one channel until channels are mixed
`Fastest`               as the last, or else as `Sequential`           any
======================= ============================================== ====================

References:
    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 4
    | https://arxiv.org/abs/2310.02025
"""

__all__ = [
    "DifferenceHead",
    "Engine",
    "Evaluation",
    "Head",
    "Losses",
    "Pass",
    "Sequential",
    "sequential",
]

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.losses import DifferenceHead, Head, Losses
from deepzero_apps.zeroth_order.state import Surroundings, Weights, slots

Walk = Callable[[int, Sequence[int], float], Generator[Tensor, None, None]]
"""A parameter's number, offsets in it and a step to the outputs ``(k, b, ...)`` of the networks
with one entry moved each, or to how they differ from the base output, chunk by chunk in the
order of the offsets."""


class Engine(Protocol):
    """A way to evaluate a network under many single moves."""

    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> "Evaluation":
        """Runs the network once, as it is.

        Args:
            network: The network, in the mode (train or eval) that is wanted.
            inputs: A batch of shape ``(b, ...)``; must not change while the result is used.
            head: The rest of the loss.

        Returns:
            The loss at theta and around it. It refers to ``network``: it must be prepared anew
            after the weights changed.

        Raises:
            TypeError: If ``network`` is no module, or ``inputs`` or the output is no tensor.
            ValueError: If the output has not one row a sample, or nothing is trainable.
        """
        ...


class Pass:
    """A network on a batch, always run from the surroundings of its first pass.

    Args:
        network: The network.
        inputs: The batch, of shape ``(b, ...)``.

    Attributes:
        weights: The network's trainable weights.
        before: The surroundings before the first pass.
        output: The output of the first pass.
        moves: Whether a pass moves buffers or random generators.

    Raises:
        TypeError: If ``network`` is no module, or ``inputs`` or the output is no tensor.
        ValueError: If the output has not one row a sample, or nothing is trainable.
    """

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch module, got {type(network).__name__}")
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
        if inputs.ndim == 0 or len(inputs) == 0:
            raise ValueError(f"inputs must hold samples, got shape {tuple(inputs.shape)}")
        self.network, self.inputs = network, inputs
        self.weights = Weights(network)
        self.before = self.surroundings()
        self.output = _checked_output(network(inputs), len(inputs))
        self.moves = self.before.moved()

    def surroundings(self) -> Surroundings:
        """Remembers the network's buffers and the random generators as they are now."""
        return Surroundings(slots(self.network), self.inputs.device)

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Leaves buffers and generators, at the end, as they are now."""
        now = self.surroundings()
        try:
            with torch.no_grad():
                yield
        finally:
            now.restore()

    def again(self, *, rows: int | None = None) -> Tensor:
        """Runs the network as in the first pass, with the weights as they are now.

        Args:
            rows: The number of samples, all by default.

        Returns:
            The output.
        """
        self.before.restore()
        output: Tensor = self.network(self.inputs[:rows])
        return output.clone()  # it may be a view of a weight that is about to move back


class Evaluation:
    """The loss of one network on one batch, at its weights and around them.

    Made by ``prepare`` of an engine.

    Args:
        first: The base pass.
        head: The rest of the loss.
        walk: How moved networks are evaluated.
        relative: Whether ``walk`` gives differences from the base output.
        together: A parameter's number to how many of its moves ``walk`` evaluates in one pass.
    """

    def __init__(
        self,
        first: Pass,
        head: Head,
        walk: Walk,
        *,
        relative: bool = False,
        together: Callable[[int], int] = lambda _: 1,
    ) -> None:
        self._pass = first
        self._losses = Losses(head, first.output)
        self._walk = walk
        self._relative = relative
        self._together = together

    @property
    def queries(self) -> int:
        """The number of networks whose outputs the head has seen so far."""
        return self._losses.queries

    @property
    def base(self) -> Tensor:
        """The loss at theta, float64 of shape ``()``; one query when first asked for."""
        with self._pass.unnoticed():
            return self._losses.base.mean()

    def differences(self, coordinates: Tensor, *, mu: float, central: bool = False) -> Tensor:
        r"""Evaluates the loss with one weight moved, for many weights, eq. (1).

        Args:
            coordinates: The weights to move, of shape ``(n,)`` and int64, by their flat
                addresses (`deepzero_apps.zeroth_order.state.Weights`).
            mu: The step, in the units of the weights; may be negative.
            central: Whether to compare with the opposite move instead of with theta.

        Returns:
            :math:`l(\theta + \mu e_i) - l(\theta)`, or if ``central``
            :math:`l(\theta + \mu e_i) - l(\theta - \mu e_i)`, float64 of shape ``(n,)`` on the
            inputs' device, not divided by anything. Costs n queries, and one for the base unless
            it is known; if ``central``, 2n queries.

        Raises:
            TypeError: If ``coordinates`` is no int64 tensor, ``mu`` no number, or the head does
                not return a tensor.
            ValueError: If ``coordinates`` is no vector of valid addresses, ``mu`` is zero or not
                finite, or the head does not return one loss a network and sample.
        """
        _check_step(mu)
        groups = self._pass.weights.locate(coordinates)
        values = torch.zeros(
            len(coordinates), dtype=torch.float64, device=self._pass.inputs.device
        )
        with self._pass.unnoticed():
            for index, (positions, offsets) in groups.items():
                with closing(self._chunks(index, offsets, mu, central)) as chunks:
                    values[positions] = torch.cat(list(chunks))
        return values

    def passes(self, coordinates: Tensor) -> list[tuple[int, Tensor]]:
        """Says which weights are moved in one pass: their differences do not depend on others.

        Args:
            coordinates: As for `differences`.

        Returns:
            For every pass the number of the parameter and the positions in ``coordinates``, int64,
            ascending by parameter.

        Raises:
            TypeError: As `differences`.
            ValueError: As `differences`.
        """
        found = []
        with self._pass.unnoticed():
            for index, (positions, _) in self._pass.weights.locate(coordinates).items():
                parts = torch.tensor(positions).split(self._together(index))
                found += [(index, part) for part in parts]
        return found

    def displaced(self, step: Tensor, *, central: bool = False) -> Tensor:
        r"""Evaluates the loss with all weights moved at once.

        Args:
            step: The move s, of shape ``(total,)``, in the order of the flat addresses.
            central: Whether to compare with the opposite move instead of with theta.

        Returns:
            :math:`l(\theta + s) - l(\theta)`, or if ``central``
            :math:`l(\theta + s) - l(\theta - s)`, float64 of shape ``()``. Costs one query, and
            one for the base unless it is known; if ``central``, two.

        Raises:
            TypeError: If ``step`` is no tensor of floating point.
            ValueError: If its shape is another one.
        """
        _check_vector(step, self._pass.weights.total)
        with self._pass.unnoticed():
            other = self._displaced_losses(-step) if central else self._losses.base
            return (self._displaced_losses(step) - other).mean()

    def _chunks(
        self, index: int, offsets: list[int], mu: float, central: bool
    ) -> Generator[Tensor, None, None]:
        with ExitStack() as stack:  # closed at once if the head raises, and not by a collector
            ups = stack.enter_context(closing(self._walk(index, offsets, mu)))
            if not central:
                yield from (self._change(up).mean(1) for up in ups)
                return
            downs = stack.enter_context(closing(self._walk(index, offsets, -mu)))
            for up, down in zip(ups, downs, strict=True):
                yield self._between(up, down).mean(1)

    def _change(self, up: Tensor) -> Tensor:
        losses = self._losses
        return losses.changes(up) if self._relative else losses.of(up) - losses.base

    def _between(self, up: Tensor, down: Tensor) -> Tensor:
        losses = self._losses
        return losses.between(up, down) if self._relative else losses.of(up) - losses.of(down)

    def _displaced_losses(self, step: Tensor) -> Tensor:
        with self._pass.weights.displaced(step):
            output = self._pass.again()
        return self._losses.of(output[None])[0]


class Sequential:
    """Moves a weight, runs the whole network, puts the weight back. The others must equal it."""

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        return sequential(Pass(network, inputs), head)


def sequential(first: Pass, head: Head) -> Evaluation:
    """Evaluates moves by whole passes, one by one.

    Args:
        first: The base pass.
        head: The rest of the loss.

    Returns:
        The evaluation.
    """

    def walk(index: int, offsets: Sequence[int], mu: float) -> Generator[Tensor, None, None]:
        for offset in offsets:
            with first.weights.moved(index, offset, mu):
                output = first.again()
            yield output[None]

    return Evaluation(first, head, walk)


def _checked_output(output: object, rows: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"network must return one tensor, got {type(output).__name__}")
    if output.ndim == 0 or len(output) != rows:
        raise ValueError(
            f"network must return one row a sample, {rows} rows, got shape {tuple(output.shape)}"
        )
    return output


def _check_step(mu: float) -> None:
    if isinstance(mu, bool) or not isinstance(mu, int | float):
        raise TypeError(f"mu must be a number, got {type(mu).__name__}")
    if mu == 0 or not math.isfinite(mu):
        raise ValueError(f"mu must be finite and not zero, got {mu}")


def _check_vector(step: Tensor, total: int) -> None:
    kind = getattr(step, "dtype", type(step).__name__)
    if not getattr(kind, "is_floating_point", False):
        raise TypeError(f"step must be a tensor of floating point, got {kind}")
    if step.shape != (total,):
        raise ValueError(f"step must be of shape ({total},), got {tuple(step.shape)}")
