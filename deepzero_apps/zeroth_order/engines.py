"""The engines that run only what depends on the moved weight.

They work on networks that torch.fx can trace. A wrong engine is worse than a slow one. So at
every ``prepare`` the output of the traced graph is compared with the network's own; and before
differences of a parameter are propagated, those of three moves are compared with whole passes,
once for each parameter, shape and mode.
"""

__all__ = ["DifferencePropagation", "Fastest", "PrefixReuse", "SlowEngineWarning"]

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.agreement import agree, agree_by_moves
from deepzero_apps.zeroth_order.base_pass import BasePass
from deepzero_apps.zeroth_order.checks import case_of
from deepzero_apps.zeroth_order.differences import Evaluation, Head, Pass, sequential
from deepzero_apps.zeroth_order.graph import Suffix, Traced, Untraceable, trace
from deepzero_apps.zeroth_order.per_network import PerNetwork
from deepzero_apps.zeroth_order.propagation import Propagation
from deepzero_apps.zeroth_order.propagation.delta import NoDifference
from deepzero_apps.zeroth_order.propagation.starts import moves_weights
from deepzero_apps.zeroth_order.threads import in_order

_BUDGETS = {"cpu": 2**23, "cuda": 2**29}
"""Bytes of the largest difference of a chunk, by kind of device."""

_WHOLE = -1
"""The verdict on a parameter whose moves need passes of the network itself."""

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

        def walk(index: int, offsets: Sequence[int], mu: float) -> Generator[Tensor, None, None]:
            suffix = base.traced.suffix(first.weights.names[index])
            for offset in offsets:
                yield _one(first, base, suffix, index=index, offset=offset, mu=mu)

        return Evaluation(first, head, walk, relative=True)


class DifferencePropagation:
    """Carries the differences that a moved weight causes to the output, many moves at once.

    See `deepzero_apps.zeroth_order.propagation`. Where a parameter cannot be done so (it is used
    twice, or the check fails), its moves run one by one, after a `SlowEngineWarning` if it had to
    be tried. Its ``prepare`` raises `Untraceable` where torch.fx
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
        TypeError: If ``budget`` is no integer, or ``precision`` no type of floating point.
    """

    def __init__(self, budget: int | None = None, *, precision: torch.dtype | None = None) -> None:
        if budget is not None and not isinstance(budget, int):
            raise TypeError(f"budget must be a whole number of bytes, got {budget!r}")
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

    def checked(self, network: nn.Module) -> dict[str, int]:
        """Tells what checks of a network have found; see `Checking`."""
        return self._graphs.verdicts(network)

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Takes up what was found elsewhere; see `Checking`."""
        self._graphs.believe(network, checked)

    def _evaluation(self, first: Pass, head: Head) -> Evaluation:
        base = self._graphs.base(first)
        propagation = Propagation(base, precision=self._precision)
        threads, case = torch.get_num_threads(), case_of(first.network, first.inputs)

        def together(index: int) -> int:
            return max(1, self._size(first, propagation, index, case))

        def walk(index: int, offsets: Sequence[int], mu: float) -> Generator[Tensor, None, None]:
            name = first.weights.names[index]
            suffix, size = base.traced.suffix(name), self._size(first, propagation, index, case)
            alone = _whole if size == _WHOLE else _one
            one = partial(alone, first, base, suffix, index=index, mu=mu)
            if size <= 0:
                yield from (one(offset=offset) for offset in offsets)
                return
            move = partial(propagation.run, suffix, first.weights, index=index, mu=mu)
            chunks = [offsets[i : i + size] for i in range(0, len(offsets), size)]
            workers = 1 if _one_at_a_time(propagation, suffix) else threads
            with closing(in_order(partial(_tried, move), chunks, workers=workers)) as outputs:
                for chunk, output in zip(chunks, outputs, strict=True):
                    if isinstance(output, Tensor):
                        yield output
                        continue
                    _warn_slow(name, str(output))
                    yield from (one(offset=offset) for offset in chunk)

        return Evaluation(first, head, walk, relative=True, together=together)

    def _size(self, first: Pass, propagation: Propagation, index: int, case: str) -> int:
        """How many moves of a parameter make a chunk; 0 where they run one by one, or `_WHOLE`."""
        traced = propagation.base.traced
        name, inputs = first.weights.names[index], first.inputs
        key = f"{case} {self._precision} {name}"
        self._graphs.recall(first.network, traced, key)
        if key not in traced.verdicts:
            probe = _probe(first, propagation, self._precision)
            found = _checked_bytes(first, probe, index, self._precision)
            traced.verdicts[key] = -(-found * len(inputs) // len(probe.base.output))
        found = traced.verdicts[key]
        if found <= 0:
            return _WHOLE if found else 0
        budget = self._budget or _BUDGETS.get(inputs.device.type, _BUDGETS["cuda"])
        return max(1, budget // found)


class Fastest(DifferencePropagation):
    """`DifferencePropagation` for networks that torch.fx can trace, `Sequential` for the others.

    The second case is announced by one `SlowEngineWarning` a network.

    Args:
        budget: As for `DifferencePropagation`.
        precision: Likewise.
    """

    def __init__(self, budget: int | None = None, *, precision: torch.dtype | None = None) -> None:
        super().__init__(budget, precision=precision)
        self._warned: PerNetwork[bool] = PerNetwork()

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
        self._known: PerNetwork[dict[tuple[object, ...], Traced]] = PerNetwork()
        self._told: PerNetwork[dict[str, int]] = PerNetwork()

    def verdicts(self, network: nn.Module) -> dict[str, int]:
        """What was noted of a network's graphs, here or elsewhere."""
        noted = dict(self._told.get(network, {}))
        for traced in self._known.get(network, {}).values():
            noted |= traced.verdicts
        return noted

    def believe(self, network: nn.Module, told: Mapping[str, int]) -> None:
        """Takes up what was noted elsewhere, in place of what was noted here."""
        self._told[network] = dict(told)
        for traced in self._known.get(network, {}).values():
            traced.verdicts.clear()

    def recall(self, network: nn.Module, traced: Traced, case: str) -> None:
        """Notes what was noted of a case elsewhere."""
        told = self._told.get(network, {})
        if case in told:
            traced.verdicts.setdefault(case, told[case])

    def base(self, first: Pass) -> BasePass:
        known = self._known.setdefault(first.network, {})
        mode = _mode(first.network)
        with first.unnoticed():
            if mode in known:
                base = _base(first, known[mode])
                if agree(base.output, first.output):
                    return base
                self._told.pop(first.network, None)  # of a graph that holds no more
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
    modes = tuple(module.training for module in network.modules())
    return (modes, tuple(id(p) for p in network.parameters()))


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


def _tried(move: Callable[..., tuple[Tensor, int]], chunk: Sequence[int]) -> Tensor | NoDifference:
    """The differences of a chunk, or why it has none: a chunk's bits depend on itself alone."""
    try:
        return move(offsets=chunk)[0]
    except NoDifference as reason:
        return reason


def _one(
    first: Pass, base: BasePass, suffix: Suffix, *, index: int, offset: int, mu: float
) -> Tensor:
    """How the output differs when a weight moves, by running what depends on it."""
    with first.weights.moved(index, offset, mu):
        return (base.rerun(suffix) - base.output)[None]


def _whole(
    first: Pass, base: BasePass, _: Suffix, *, index: int, offset: int, mu: float
) -> Tensor:
    """The same by running the network itself, on as many samples as the base pass has."""
    rows = len(base.output)
    reference = first.output if rows == len(first.output) else base.output
    with first.weights.moved(index, offset, mu):
        return (first.again(rows=rows) - reference)[None]


def _checked_bytes(
    first: Pass, propagation: Propagation, index: int, precision: torch.dtype | None
) -> int:
    """Compares some moves with whole passes of the network, by steps too large to miss.

    Returns:
        The bytes of the largest difference of one network; 0 if moves must run one by one, -1 if
        not even the graph's suffix gives what the network does.
    """
    base, name = propagation.base, first.weights.names[index]
    suffix, size = base.traced.suffix(name), first.weights.sizes[index]
    offsets, mu = sorted({0, size // 2, size - 1}), 1.0
    moves = partial(_moves, first, base, suffix, index=index, offsets=offsets, mu=mu)
    whole = moves(_whole)
    if len(suffix.sites) == 1:
        reason = "its differences do not add up to whole passes"
        try:
            moved, largest = propagation.run(
                suffix, first.weights, index=index, offsets=offsets, mu=mu
            )
            if agree_by_moves(moved, whole, base.output, precision):
                return max(1, largest)
        except _FAILURES as error:
            reason = _first_line(error)
        _warn_slow(name, reason)
    if agree_by_moves(moves(_one), whole, base.output):
        return 0
    _warn_slow(name, "the graph does not show all that depends on it; the whole network is run")
    return -1


def _moves(
    first: Pass,
    base: BasePass,
    suffix: Suffix,
    one: Callable[..., Tensor],
    *,
    index: int,
    offsets: Sequence[int],
    mu: float,
) -> Tensor:
    return torch.cat(
        [one(first, base, suffix, index=index, offset=offset, mu=mu) for offset in offsets]
    )


def _warn_slow(name: str, reason: str) -> None:
    warnings.warn(
        f"moves of {name!r} run one by one, which is slower: {reason}",
        SlowEngineWarning,
        stacklevel=2,
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
