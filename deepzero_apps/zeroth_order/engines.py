"""The engines that run only what depends on the moved weight.

They work on networks that torch.fx can trace. A wrong engine is worse than a slow one. So at
every ``prepare`` the output of the traced graph is compared with the network's own; and before
moves of a parameter are evaluated as one batch, two of them are compared with the same two
evaluated one by one, once for each parameter, shape and mode.
"""

__all__ = ["BatchedSuffix", "Fastest", "PrefixReuse", "SlowEngineWarning"]

import warnings
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.differences import Evaluation, Head, Pass, sequential
from deepzero_apps.zeroth_order.graph import Suffix, Traced, Untraceable, trace
from deepzero_apps.zeroth_order.replay import Replay

_BATCH_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


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
        return self._evaluation(Pass(network, inputs), head)

    def _evaluation(self, first: Pass, head: Head) -> Evaluation:
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

    def replay(self, first: Pass) -> tuple[Traced, Replay]:
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


def _replay(first: Pass, traced: Traced) -> Replay:
    first.before.restore()
    try:
        return Replay(traced, first.network, first.inputs, moves=first.moves)
    except _BATCH_FAILURES as error:
        raise Untraceable(f"the traced graph does not run: {_first_line(error)}") from error


def _mode(network: nn.Module) -> tuple[object, ...]:
    flags = tuple(module.training for module in network.modules())
    return (flags, tuple(id(p) for p in network.parameters()))


def _one(
    first: Pass, replay: Replay, suffix: Suffix, *, index: int, offset: int, mu: float
) -> Tensor:
    with first.weights.moved(index, offset, mu):
        return replay.rerun(suffix)[None].clone()


def _may_batch(first: Pass, traced: Traced, replay: Replay, index: int) -> bool:
    name = first.weights.names[index]
    inputs = first.inputs
    key = (name, inputs.shape, inputs.dtype, inputs.device)
    if key not in traced.verdicts:
        suffix = traced.suffix(name)
        traced.verdicts[key] = replay.batchable(suffix) and _batches(first, replay, suffix, index)
    return traced.verdicts[key]


def _batches(first: Pass, replay: Replay, suffix: Suffix, index: int) -> bool:
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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
