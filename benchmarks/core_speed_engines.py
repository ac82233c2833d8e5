r"""The engines that `core_speed` compares, each on the same problem.

Each engine estimates slopes :math:`[l(\theta + \mu e_i) - l(\theta)] / \mu` of the same network (the
same weights, images, labels and mask) in train mode. What its authors leave to the user is chosen so:

- *the public DeepZero code*: its ``DistributedCGEModel``, the object that a worker of its training
  holds, is made and called as its training does, where the batch is, in this process. Its inputs
  come through remote references; objects with the same one method stand in for them, so that no time
  goes into messages. Nothing of it is changed or replaced.
- *torch.func.vmap*: all weights are stacked, k copies of the network run as one. vmap refuses
  running statistics in train mode, so batch norm loses them.
- *polystep*: its `SiteVmapEvaluator` gets as many candidates at once as its own optimizer would give
  it. It puts networks into eval mode; batch norm without running statistics computes batch
  statistics there too.
"""

__all__ = ["ENGINES", "MU", "Ours", "Problem", "Runner", "Task", "missing", "problem"]

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, Protocol

import torch
from core_speed_costs import Rule, block, moved_channel, one_channel, suffix, whole
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from deepzero_apps.vision import resnet
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import draw
from deepzero_apps.zeroth_order.state import Weights

MU = 5e-3
POLYSTEP_BUDGET = 2**26
"""The entries that a chunk of polystep's own optimizer may take."""


@dataclass(frozen=True)
class Task:
    """What a process is to measure.

    Attributes:
        engine: A name in `ENGINES`.
        batch: The number of images.
        threads: The number of threads.
        seconds: How long to measure, about.
        counts: The coordinates of each parameter.
        chunk: How many copies vmap stacks.
        peer: The public code's checkout.
    """

    engine: str
    batch: int
    threads: int
    seconds: float
    counts: list[int]
    chunk: int = 1
    peer: str = ""


@dataclass(frozen=True)
class Problem:
    """A network on a batch, and a mask.

    Attributes:
        network: ResNet-20 in train mode.
        inputs: Images of shape ``(b, 3, 32, 32)``.
        labels: Classes of shape ``(b,)``.
        weights: The network's weights.
        offsets: For each parameter, the mask's coordinates inside it, sorted.
    """

    network: nn.Module
    inputs: Tensor
    labels: Tensor
    weights: Weights
    offsets: list[list[int]]


class Runner(Protocol):
    """An engine on a problem.

    Attributes:
        starts_anew: Whether every call of ``slopes`` also pays for ``start``.
    """

    starts_anew: bool

    def start(self) -> None:
        """Does what an estimate does before its first coordinate."""
        ...

    def slopes(self, index: int, offsets: Sequence[int]) -> Tensor:
        """Estimates the slopes along entries of one parameter."""
        ...

    def chunk(self, index: int) -> int:
        """Says how many entries of one parameter it would rather have at once, if it does."""
        ...


def problem(batch: int, counts: Sequence[int]) -> Problem:
    """Makes the network, the batch and the mask; the same in every process.

    Args:
        batch: The number of images.
        counts: The coordinates of each parameter.
    """
    network = resnet(20, generator=generator_for(0, "weights"))
    weights = Weights(network)
    drawn = draw(counts, weights.sizes, generator=generator_for(0, "support"))
    found = weights.locate(drawn)
    generator = generator_for(0, "batch")
    return Problem(
        network.train(),
        torch.randn(batch, 3, 32, 32, generator=generator),
        torch.randint(10, (batch,), generator=generator),
        weights,
        [found.get(i, ([], []))[1] for i in range(len(counts))],
    )


class Ours:
    """An engine of this package."""

    starts_anew = False

    def __init__(self, at: Problem, _: Task, *, name: str, **options: object) -> None:
        module = "differences" if name == "Sequential" else "engines"
        kind = getattr(import_module(f"deepzero_apps.zeroth_order.{module}"), name)
        self._engine = kind(**options)
        self._at, self._head = at, CrossEntropy(at.labels)
        self._firsts = [0, *accumulate(at.weights.sizes)]
        self._evaluation: Any = None

    def start(self) -> None:
        """Runs the base pass."""
        self._evaluation = None
        self._evaluation = self._engine.prepare(self._at.network, self._at.inputs, self._head)
        _ = self._evaluation.base

    def slopes(self, index: int, offsets: Sequence[int]) -> Tensor:
        """Estimates the slopes along entries of one parameter."""
        moved: Tensor = self._evaluation.differences(
            torch.tensor(offsets) + self._firsts[index], mu=MU
        )
        return moved / MU

    def chunk(self, index: int) -> int:  # noqa: ARG002
        """Returns the least."""
        return 1


class Public:
    """The worker of the public DeepZero code."""

    starts_anew = True

    def __init__(self, at: Problem, task: Task, *, reuse: bool) -> None:
        sys.dont_write_bytecode = True
        sys.path.insert(0, task.peer)
        models: Any = import_module("models.resnet_s")
        worker: Any = import_module("models.distributed_model").DistributedCGEModel
        place = models.param_name_to_module_id_rn20
        self._worker = worker(
            str(at.inputs.device),
            models.resnet20,
            functional.cross_entropy,
            place,
            None,
            False,
            reuse,
        )
        network = self._worker.network
        ours = at.network.state_dict()
        network.load_state_dict({k.replace("linear", "fc"): v for k, v in ours.items()})
        self._names = [name for name, _ in network.named_parameters()]
        self._batch = (_Here(at.inputs), _Here(at.labels))

    def start(self) -> None:
        """Runs the base pass."""
        self.slopes(0, [])

    def slopes(self, index: int, offsets: Sequence[int]) -> Tensor:
        """Estimates the slopes along entries of one parameter."""
        moves = torch.tensor([[index, offset] for offset in offsets]).view(-1, 2)
        self._worker.set_params_to_be_perturbed(_Here(moves), self._names)
        rows: Tensor = self._worker.calculate_grads(*self._batch, MU)
        return rows[:, 2]

    def chunk(self, index: int) -> int:  # noqa: ARG002
        """Returns the least."""
        return 1


@dataclass(frozen=True)
class _Here:
    """Stands in for a remote reference to a tensor."""

    value: Tensor

    def to_here(self) -> Tensor:
        return self.value


class Stacked:
    """torch.func.vmap over k copies of all weights."""

    starts_anew = False

    def __init__(self, at: Problem, task: Task) -> None:
        _forget_statistics(at.network)
        self._at, self._chunk = at, task.chunk
        self._theta = {name: p.detach() for name, p in at.network.named_parameters()}
        self._base = torch.zeros(())

    def start(self) -> None:
        """Runs the base pass."""
        self._base = self._loss(self._theta)

    def slopes(self, index: int, offsets: Sequence[int]) -> Tensor:
        """Estimates the slopes along entries of one parameter."""
        chunks = torch.tensor(offsets).split(self._chunk)
        return torch.cat([self._chunk_slopes(index, chunk) for chunk in chunks])

    def chunk(self, index: int) -> int:  # noqa: ARG002
        """Returns the number of copies."""
        return self._chunk

    def _chunk_slopes(self, index: int, offsets: Tensor) -> Tensor:
        k = len(offsets)
        stack = {name: p.repeat(k, *[1] * p.ndim) for name, p in self._theta.items()}
        moved = stack[self._at.weights.names[index]].view(k, -1)
        moved[torch.arange(k), offsets] += MU
        losses: Tensor = vmap(self._loss)(stack)
        return (losses - self._base) / MU

    def _loss(self, theta: dict[str, Tensor]) -> Tensor:
        logits = functional_call(self._at.network, theta, (self._at.inputs,))
        return functional.cross_entropy(logits, self._at.labels)


class Polystep:
    """polystep's evaluator of candidates that move one parameter."""

    starts_anew = False

    def __init__(self, at: Problem, _: Task) -> None:
        _forget_statistics(at.network)
        cost_nn: Any = import_module("polystep.cost_nn")
        layout = import_module("polystep.transform").ParamLayout.from_module(at.network)
        evaluator = cost_nn.NNCostEvaluator(
            at.network, functional.cross_entropy, use_inplace=False
        )
        self._at = at
        self._site = cost_nn.SiteVmapEvaluator.try_build(evaluator, layout)
        self._entries = {entry.key: entry for entry in layout.entries}
        self._widths = evaluator._activation_ratios(at.inputs)
        self._theta = {name: p.detach() for name, p in at.network.named_parameters()}
        self._base = torch.zeros(())

    def start(self) -> None:
        """Runs the base pass."""
        logits = self._at.network(self._at.inputs)
        self._base = functional.cross_entropy(logits, self._at.labels)

    def slopes(self, index: int, offsets: Sequence[int]) -> Tensor:
        """Estimates the slopes along entries of one parameter."""
        name = self._at.weights.names[index]
        chunks = torch.tensor(offsets).split(self.chunk(index))
        return torch.cat([self._chunk_slopes(name, places[:, None]) for places in chunks])

    def chunk(self, index: int) -> int:
        """Returns the number of candidates that its own optimizer would take."""
        ratio: float = self._widths[self._at.weights.names[index]]
        entries = 2 * round(ratio * self._at.inputs.numel()) + max(self._at.weights.sizes)
        return max(1, POLYSTEP_BUDGET // entries)

    def _chunk_slopes(self, name: str, places: Tensor) -> Tensor:
        values = (self._theta[name].flatten()[places] + MU)[:, None]
        losses: Tensor = self._site.evaluate(
            self._theta, self._entries[name], places, values, self._at.inputs, self._at.labels
        )
        return (losses - self._base) / MU


def _forget_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


@dataclass(frozen=True)
class Way:
    """A way to run an engine on several threads.

    Attributes:
        chunk: How many copies vmap stacks.
        apart: Whether every thread is a process that takes its share of the coordinates, or all
            threads are in one process.
    """

    chunk: int = 1
    apart: bool = False


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        build: Makes the runner.
        rule: The multiply-adds of a query.
        dtype: The precision whose matrix peak counts.
        alike: Whether all parameters cost the same.
        needs: A module to be installed, or ``peer`` for the public code's checkout.
        ways: How it can be run; the fastest counts.
    """

    build: Callable[[Problem, Task], Runner]
    rule: Rule
    dtype: str = "float32"
    alike: bool = False
    needs: str = ""
    ways: tuple[Way, ...] = (Way(),)


BOTH_WAYS = (Way(), Way(apart=True))

ENGINES: dict[str, Engine] = {
    "public, no reuse": Engine(
        partial(Public, reuse=False), whole, alike=True, needs="peer", ways=BOTH_WAYS
    ),
    "public, reuse": Engine(partial(Public, reuse=True), block, needs="peer", ways=BOTH_WAYS),
    "vmap": Engine(Stacked, whole, alike=True, ways=(Way(2), Way(8), Way(2, apart=True))),
    "polystep": Engine(Polystep, moved_channel, needs="polystep"),
    "sequential": Engine(partial(Ours, name="Sequential"), whole, alike=True),
    "prefix reuse": Engine(partial(Ours, name="PrefixReuse"), suffix),
    "propagation": Engine(partial(Ours, name="DifferencePropagation"), one_channel),
    "propagation, bfloat16": Engine(
        partial(Ours, name="DifferencePropagation", precision=torch.bfloat16),
        one_channel,
        dtype="bfloat16",
    ),
}


def missing(name: str, peer: str) -> str:
    """Says why an engine cannot be measured here; empty if it can."""
    needs = ENGINES[name].needs
    if needs == "peer":
        return "" if peer else "no --peer"
    return "" if not needs or find_spec(needs) else f"{needs} is not installed"
