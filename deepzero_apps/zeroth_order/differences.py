r"""Loss differences of a network when one of its weights moves: the engines.

For a network with trainable weights :math:`\theta \in \mathbb{R}^d` on a batch of b samples, with
per-sample losses :math:`l_j`,

.. math::
    l(\theta) = \frac{1}{b} \sum_{j=1}^b l_j(\theta), \qquad
    \Delta_i = \frac{1}{b} \sum_{j=1}^b \left[ l_j(\theta + \mu e_i) - l_j(\theta) \right]  \tag{1}

The bracket is formed for each sample and in float64: the difference of two float32 means would
lose most of its digits, and it is divided by a small :math:`\mu` later.

All passes start from the same random generators and buffers, those of the moment of ``prepare``
(common random numbers; running statistics do not drift). Afterwards both are as one ordinary
pass of the network leaves them, and the weights hold the same bits as before. A wrong engine is
worse than a slow one, so each compares itself with the network at every ``prepare``.

=============== ===================================================== =====================
engine          what one query of a weight costs                      networks
=============== ===================================================== =====================
`Sequential`    one pass                                              any
`PrefixReuse`   the operations from the weight on                     torch.fx can trace
`BatchedSuffix` the same, K queries at once; at the weight itself     torch.fx can trace
                only the channel that changes
`Fastest`       as `BatchedSuffix`, or else as `Sequential`           any
=============== ===================================================== =====================

References:
    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 4
    | https://arxiv.org/abs/2310.02025
"""

__all__ = [
    "BatchedSuffix",
    "Engine",
    "Evaluation",
    "Fastest",
    "Head",
    "PrefixReuse",
    "Sequential",
    "SlowEngineWarning",
]

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.graph import Suffix, Traced, Untraceable, trace
from deepzero_apps.zeroth_order.replay import Replay
from deepzero_apps.zeroth_order.state import Surroundings, Weights, slots

Head = Callable[[Tensor], Tensor]
"""Outputs ``(k, b, ...)`` of k networks on b samples to per-sample losses ``(k, b)``.

It may be a black box and is never differentiated. It must be deterministic, and must treat all
networks and samples alike: how many networks come in one call is the engine's choice."""

Walk = Callable[[int, Sequence[int], float], Iterator[Tensor]]
"""A parameter's number, offsets in it and a step to the outputs ``(k, b, ...)`` of the networks
with one entry moved each, chunk by chunk in the order of the offsets."""

_BATCH_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class SlowEngineWarning(UserWarning):
    """A network or a parameter cannot be evaluated the fast way; the message says why."""


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


class _Pass:
    """A network on a batch, always from the surroundings of its first pass."""

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

    def again(self) -> Tensor:
        self.before.restore()
        output: Tensor = self.network(self.inputs)
        return output


class Evaluation:
    """The loss of one network on one batch, at its weights and around them.

    Made by ``prepare`` of an engine.

    Attributes:
        queries: The number of networks whose outputs the head has seen so far.
    """

    def __init__(self, first: _Pass, head: Head, walk: Walk) -> None:
        self.queries = 0
        self._pass = first
        self._head = head
        self._walk = walk
        self._base_losses: Tensor | None = None

    @property
    def base(self) -> Tensor:
        """The loss at theta, float64 of shape ``()``; one query when first asked for."""
        with self._pass.unnoticed():
            return self._reference().mean()

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
                values[positions] = torch.cat(list(self._chunks(index, offsets, mu, central)))
        return values

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
            other = self._displaced_losses(-step) if central else self._reference()
            return (self._displaced_losses(step) - other).mean()

    def _chunks(
        self, index: int, offsets: list[int], mu: float, central: bool
    ) -> Iterator[Tensor]:
        moved = map(self._losses, self._walk(index, offsets, mu))
        if central:
            others: Iterator[Tensor] = map(self._losses, self._walk(index, offsets, -mu))
        else:
            others = repeat(self._reference())
        for losses, other in zip(moved, others, strict=False):
            yield (losses - other).mean(1)

    def _displaced_losses(self, step: Tensor) -> Tensor:
        with self._pass.weights.displaced(step):
            output = self._pass.again()
        return self._losses(output[None])[0]

    def _reference(self) -> Tensor:
        if self._base_losses is None:
            self._base_losses = self._losses(self._pass.output[None])[0]
        return self._base_losses

    def _losses(self, outputs: Tensor) -> Tensor:
        losses = self._head(outputs)
        if not isinstance(losses, Tensor):
            raise TypeError(f"head must return a tensor, got {type(losses).__name__}")
        if losses.shape != outputs.shape[:2]:
            raise ValueError(
                f"head must return one loss a network and sample, shape "
                f"{tuple(outputs.shape[:2])}, got {tuple(losses.shape)}; do not average"
            )
        self.queries += len(losses)
        return losses.detach().to(self._pass.inputs.device, torch.float64)


class Sequential:
    """Moves a weight, runs the whole network, puts the weight back. The others must equal it."""

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        return _sequential(_Pass(network, inputs), head)


class PrefixReuse:
    """Runs only the operations that depend on the moved weight.

    Its ``prepare`` raises `Untraceable` where torch.fx finds no faithful graph.
    """

    def __init__(self) -> None:
        self._graphs = _Graphs()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        first = _Pass(network, inputs)
        traced, replay = self._graphs.replay(first)

        def walk(index: int, offsets: Sequence[int], mu: float) -> Iterator[Tensor]:
            suffix = traced.suffix(first.weights.names[index])
            for offset in offsets:
                yield _one(first, replay, suffix, index=index, offset=offset, mu=mu)

        return Evaluation(first, head, walk)


class BatchedSuffix:
    """Runs the operations that depend on the moved weight for many moves as one batch.

    Where a parameter cannot be batched (it is used twice, or samples are mixed), its moves run
    one by one, after a `SlowEngineWarning` if it had to be tried. Its ``prepare`` raises
    `Untraceable` where torch.fx finds no faithful graph.

    Args:
        budget: The size in bytes that no activation of a batch should exceed, at least one
            network's. It decides how many moves make a batch, whatever else happens, so that
            results depend on shapes alone. The default is the fastest on a CPU, where a batch
            must stay near the cache; a GPU wants more.

    Raises:
        ValueError: If ``budget`` is not positive.
    """

    def __init__(self, budget: int = 2**22) -> None:
        if not budget > 0:
            raise ValueError(f"budget must be a positive number of bytes, got {budget}")
        self._budget = budget
        self._graphs = _Graphs()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        return self._evaluation(_Pass(network, inputs), head)

    def _evaluation(self, first: _Pass, head: Head) -> Evaluation:
        traced, replay = self._graphs.replay(first)

        def walk(index: int, offsets: Sequence[int], mu: float) -> Iterator[Tensor]:
            suffix = traced.suffix(first.weights.names[index])
            size = 1
            if _may_batch(first, traced, replay, index):
                size = max(1, self._budget // replay.largest(suffix))
            for chunk in (offsets[i : i + size] for i in range(0, len(offsets), size)):
                if size == 1:
                    yield _one(first, replay, suffix, index=index, offset=chunk[0], mu=mu)
                else:
                    yield replay.rerun_moved(
                        suffix, first.weights, index=index, offsets=chunk, mu=mu
                    )

        return Evaluation(first, head, walk)


class Fastest(BatchedSuffix):
    """`BatchedSuffix` for networks that torch.fx can trace, `Sequential` for the others.

    The second case is announced by one `SlowEngineWarning` a network.

    Args:
        budget: As for `BatchedSuffix`.
    """

    def __init__(self, budget: int = 2**22) -> None:
        super().__init__(budget)
        self._warned: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        first = _Pass(network, inputs)
        try:
            return self._evaluation(first, head)
        except Untraceable as reason:
            if network not in self._warned:
                self._warned[network] = True
                warnings.warn(
                    f"{type(network).__name__} runs whole for every query, which is slower: "
                    f"{reason}",
                    SlowEngineWarning,
                    stacklevel=3,
                )
            return _sequential(first, head)


class _Graphs:
    """The graphs of networks, traced once for each mode they are in."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[object, Traced]] = WeakKeyDictionary()

    def replay(self, first: _Pass) -> tuple[Traced, Replay]:
        known = self._known.setdefault(first.network, {})
        mode = _mode(first.network)
        with first.unnoticed():
            if mode in known:
                replay = _replay(first, known[mode])
                if _agree(replay.output, first.output):
                    return known[mode], replay
            first.before.restore()
            known[mode] = trace(first.network)
            replay = _replay(first, known[mode])
        if not _agree(replay.output, first.output):
            raise Untraceable("the traced graph does not give the network's own output")
        return known[mode], replay


def _replay(first: _Pass, traced: Traced) -> Replay:
    first.before.restore()
    try:
        return Replay(traced, first.network, first.inputs, moves=first.moves)
    except _BATCH_FAILURES as error:
        raise Untraceable(f"the traced graph does not run: {_first_line(error)}") from error


def _mode(network: nn.Module) -> tuple[object, ...]:
    flags = tuple(module.training for module in network.modules())
    return (flags, tuple(id(p) for p in network.parameters()))


def _sequential(first: _Pass, head: Head) -> Evaluation:
    def walk(index: int, offsets: Sequence[int], mu: float) -> Iterator[Tensor]:
        for offset in offsets:
            with first.weights.moved(index, offset, mu):
                output = first.again()
            yield output[None]

    return Evaluation(first, head, walk)


def _one(
    first: _Pass, replay: Replay, suffix: Suffix, *, index: int, offset: int, mu: float
) -> Tensor:
    with first.weights.moved(index, offset, mu):
        return replay.rerun(suffix)[None]


def _may_batch(first: _Pass, traced: Traced, replay: Replay, index: int) -> bool:
    name = first.weights.names[index]
    inputs = first.inputs
    key = (name, inputs.shape, inputs.dtype, inputs.device)
    if key not in traced.verdicts:
        suffix = traced.suffix(name)
        traced.verdicts[key] = replay.batchable(suffix) and _batches(first, replay, suffix, index)
    return traced.verdicts[key]


def _batches(first: _Pass, replay: Replay, suffix: Suffix, index: int) -> bool:
    """Compares two moves at once with the same two one by one, by steps too large to miss."""
    offsets, mu = (0, first.weights.sizes[index] - 1), 1.0
    single = [_one(first, replay, suffix, index=index, offset=o, mu=mu) for o in offsets]
    reason = "samples or networks are mixed"
    try:
        both = replay.rerun_moved(suffix, first.weights, index=index, offsets=offsets, mu=mu)
        if _agree(both, torch.cat(single)):
            return True
    except _BATCH_FAILURES as error:
        reason = _first_line(error)
    warnings.warn(
        f"moves of {first.weights.names[index]!r} run one by one, which is slower: {reason}",
        SlowEngineWarning,
        stacklevel=2,
    )
    return False


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by rounding alone: a few thousand units, passed on by layers."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    tf32 = b.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    unit = 2.0**-11 if tf32 else torch.finfo(b.dtype).eps
    tolerance = min(4096 * unit, 0.05)
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


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
    if not isinstance(step, Tensor) or not step.is_floating_point():
        got = getattr(step, "dtype", type(step).__name__)
        raise TypeError(f"step must be a tensor of floating point, got {got}")
    if step.shape != (total,):
        raise ValueError(f"step must be of shape ({total},), got {tuple(step.shape)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
