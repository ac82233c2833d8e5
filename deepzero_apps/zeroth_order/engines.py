"""The engines that run only what depends on the moved weight.

They work on networks that torch.fx can trace. A wrong engine is worse than a slow one. So at
every ``prepare`` the output of the traced graph is compared with the network's own; and before
differences of a parameter are propagated, those of two moves are compared with whole re-runs,
once for each parameter, shape and mode.
"""

__all__ = ["DifferencePropagation", "Fastest", "PrefixReuse", "SlowEngineWarning"]

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.agreement import agree
from deepzero_apps.zeroth_order.base_pass import BasePass
from deepzero_apps.zeroth_order.differences import Evaluation, Head, Pass, sequential
from deepzero_apps.zeroth_order.graph import Suffix, Traced, Untraceable, trace
from deepzero_apps.zeroth_order.propagation import Propagation
from deepzero_apps.zeroth_order.propagation.starts import moves_weights
from deepzero_apps.zeroth_order.threads import in_order

_BUDGETS = {"cpu": 2**23, "cuda": 2**29}
"""Bytes of the largest difference of a chunk, by kind of device."""

_PROBED = 8
"""Samples of the batch on which differences are compared with whole re-runs: rules do not depend
on their number, and re-runs are slow."""

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class SlowEngineWarning(UserWarning):
    """A network or a parameter cannot be evaluated the fast way; the message says why."""


class PrefixReuse:
    """Runs only the operations that depend on the moved weight.

    Its ``prepare`` raises `Untraceable` where torch.fx finds no faithful graph.
    """

    def __init__(self) -> None:
        self._graphs = _Graphs()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        first = Pass(network, inputs)
        base = self._graphs.base(first)

        def walk(index: int, offsets: Sequence[int], mu: float) -> Iterator[Tensor]:
            suffix = base.traced.suffix(first.weights.names[index])
            for offset in offsets:
                yield _one(first, base, suffix, index=index, offset=offset, mu=mu)

        return Evaluation(first, head, walk)


class DifferencePropagation:
    """Carries the differences that a moved weight causes to the output, many moves at once.

    See `deepzero_apps.zeroth_order.propagation`. Where a parameter cannot be done so (it is used
    twice, or samples have no row of their own), its moves run one by one, after a
    `SlowEngineWarning` if it had to be tried. Its ``prepare`` raises `Untraceable` where torch.fx
    finds no faithful graph. Chunks of moves run in as many threads as torch is set to use.

    Args:
        budget: The size in bytes that no difference of a chunk should exceed, at least one
            network's. It decides how many moves make a chunk, whatever else happens, so that
            results depend on shapes alone. By default 8 MiB on a CPU, where a chunk must stay
            near the cache, and 512 MiB on a GPU, which needs work for all its cores.
        precision: The type in which differences pass through dense convolutions and linear
            layers, such as ``torch.bfloat16``; that of the network by default.

    Raises:
        ValueError: If ``budget`` is not positive.
        TypeError: If ``precision`` is no type of floating point.
    """

    def __init__(self, budget: int | None = None, *, precision: torch.dtype | None = None) -> None:
        if budget is not None and not budget > 0:
            raise ValueError(f"budget must be a positive number of bytes, got {budget}")
        if precision is not None and not getattr(precision, "is_floating_point", False):
            raise TypeError(f"precision must be a torch type of floating point, got {precision}")
        self._budget = budget
        self._precision = precision
        self._graphs = _Graphs()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        return self._evaluation(Pass(network, inputs), head)

    def _evaluation(self, first: Pass, head: Head) -> Evaluation:
        base = self._graphs.base(first)
        propagation = Propagation(base, precision=self._precision)

        def walk(index: int, offsets: Sequence[int], mu: float) -> Iterator[Tensor]:
            suffix = base.traced.suffix(first.weights.names[index])
            move = partial(propagation.run, suffix, first.weights, index=index, mu=mu)
            size = self._size(first, propagation, index)
            if size:
                chunks = [offsets[i : i + size] for i in range(0, len(offsets), size)]
                workers = 1 if _one_at_a_time(propagation, suffix) else None
                for output, _ in in_order(
                    lambda part: move(offsets=part), chunks, workers=workers
                ):
                    yield output
                return
            for offset in offsets:
                yield _one(first, base, suffix, index=index, offset=offset, mu=mu) - base.output

        return Evaluation(first, head, walk, relative=True)

    def _size(self, first: Pass, propagation: Propagation, index: int) -> int:
        """How many moves of a parameter make a chunk; none where they run one by one."""
        traced = propagation.base.traced
        name, inputs = first.weights.names[index], first.inputs
        key = (name, inputs.shape, inputs.dtype, inputs.device, self._precision)
        if key not in traced.verdicts:
            probe = _probe(first, propagation, self._precision)
            found = _checked_bytes(first, probe, index, self._precision)
            traced.verdicts[key] = -(-found * len(inputs) // len(probe.base.output))
        found = traced.verdicts[key]
        budget = self._budget or _BUDGETS.get(inputs.device.type, _BUDGETS["cuda"])
        return max(1, budget // found) if found else 0


class Fastest(DifferencePropagation):
    """`DifferencePropagation` for networks that torch.fx can trace, `Sequential` for the others.

    The second case is announced by one `SlowEngineWarning` a network.

    Args:
        budget: As for `DifferencePropagation`.
        precision: Likewise.
    """

    def __init__(self, budget: int | None = None, *, precision: torch.dtype | None = None) -> None:
        super().__init__(budget, precision=precision)
        self._warned: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    @torch.no_grad()
    def prepare(self, network: nn.Module, inputs: Tensor, head: Head) -> Evaluation:
        """Runs the network once, as it is; see `Engine`."""
        first = Pass(network, inputs)
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
            return sequential(first, head)


class _Graphs:
    """The graphs of networks, traced once for each mode they are in."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[object, Traced]] = WeakKeyDictionary()

    def base(self, first: Pass) -> BasePass:
        known = self._known.setdefault(first.network, {})
        mode = _mode(first.network)
        with first.unnoticed():
            if mode in known:
                base = _base(first, known[mode])
                if agree(base.output, first.output):
                    return base
            first.before.restore()
            known[mode] = trace(first.network)
            base = _base(first, known[mode])
        if not agree(base.output, first.output):
            raise Untraceable("the traced graph does not give the network's own output")
        return base


def _base(first: Pass, traced: Traced, *, rows: int | None = None) -> BasePass:
    first.before.restore()
    try:
        return BasePass(traced, first.network, first.inputs[:rows], moves=first.moves)
    except _FAILURES as error:
        raise Untraceable(f"the traced graph does not run: {_first_line(error)}") from error


def _mode(network: nn.Module) -> tuple[object, ...]:
    flags = tuple(module.training for module in network.modules())
    return (flags, tuple(id(p) for p in network.parameters()))


def _probe(first: Pass, propagation: Propagation, precision: torch.dtype | None) -> Propagation:
    """The same on the first samples, if the network takes fewer."""
    if len(first.inputs) <= _PROBED:
        return propagation
    try:
        base = _base(first, propagation.base.traced, rows=_PROBED)
    except Untraceable:
        return propagation
    return Propagation(base, precision=precision) if len(base.output) == _PROBED else propagation


def _one_at_a_time(propagation: Propagation, suffix: Suffix) -> bool:
    """Whether chunks would disturb each other, or share one device's queue anyway."""
    base = propagation.base
    on_cpu = base.output.device.type == "cpu"
    return not on_cpu or propagation.draws(suffix) or moves_weights(base, suffix.sites[0])


def _one(
    first: Pass, base: BasePass, suffix: Suffix, *, index: int, offset: int, mu: float
) -> Tensor:
    with first.weights.moved(index, offset, mu):
        return base.rerun(suffix)[None].clone()


def _checked_bytes(
    first: Pass, propagation: Propagation, index: int, precision: torch.dtype | None
) -> int:
    """Compares two moves with whole re-runs, by steps too large to miss.

    Returns:
        The bytes of the largest difference of one network, or 0 if they do not agree.
    """
    base, name = propagation.base, first.weights.names[index]
    suffix = base.traced.suffix(name)
    if len(suffix.sites) != 1:
        return 0
    offsets, mu = (0, first.weights.sizes[index] - 1), 1.0
    single = torch.cat([_one(first, base, suffix, index=index, offset=o, mu=mu) for o in offsets])
    reason = "its differences do not add up to whole passes"
    try:
        moved, largest = propagation.run(
            suffix, first.weights, index=index, offsets=offsets, mu=mu
        )
        if agree(base.output + moved, single, precision):
            return max(1, largest)
    except _FAILURES as error:
        reason = _first_line(error)
    warnings.warn(
        f"moves of {name!r} run one by one, which is slower: {reason}",
        SlowEngineWarning,
        stacklevel=2,
    )
    return 0


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
