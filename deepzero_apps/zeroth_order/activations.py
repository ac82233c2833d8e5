r"""Gradients from moved layer outputs: fewer queries where a layer has fewer outputs than weights.

Let a be the output of a layer (convolution, linear) before its nonlinearity, of u numbers a
sample. Moving number i by :math:`\mu` in all samples at once changes the loss of every sample j
for itself, if samples do not meet later on, so that one query has b answers,

.. math::
    \frac{\partial l_j}{\partial a_{ji}} \approx \frac{l_j(a_j + \mu e_i) - l_j(a_j)}{\mu}     \tag{1}

and the layer's own chain rule, the only one that is used, turns them into the slopes of its weights:

.. math::
    \frac{\partial l}{\partial w} = \frac1b \sum_{j, i} \frac{\partial l_j}{\partial a_{ji}}
        \frac{\partial a_{ji}}{\partial w}                                               \tag{2}

(2) costs u queries for all weights of the layer; CGE costs one for each weight. `Activations` takes,
layer by layer, whichever is fewer, and moves all other weights directly. A whole gradient of ResNet-20
on 32x32 images then costs 85,788 queries instead of 269,723, of ResNet-8 on gray 8x8 images 4,220
instead of 75,003.

**Batch norm with batch statistics** lets samples meet. It is accounted for exactly and at no further
query, by multipliers from the slopes of its own weights (`deepzero_apps.zeroth_order.frozen`).

**A share of the outputs** is enough: k of u, drawn anew each step, weighted by u / k, give an unbiased
estimate whose cosine to the gradient is about :math:`\sqrt{k / u}` on ResNet-8, as that
of k weights out of d is about :math:`\sqrt{k / d}`. So what decides is again the smaller of the two.
"""

__all__ = ["Activations"]

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.agreement import agree
from deepzero_apps.zeroth_order.checks import case_of
from deepzero_apps.zeroth_order.differences import Head, Losses
from deepzero_apps.zeroth_order.engines import Fastest, SlowEngineWarning
from deepzero_apps.zeroth_order.frozen import Frozen, uses_batch_statistics
from deepzero_apps.zeroth_order.gradients import write_gradient
from deepzero_apps.zeroth_order.graph import Traced, Untraceable, trace
from deepzero_apps.zeroth_order.per_network import PerNetwork
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.state import Surroundings, Weights, slots
from deepzero_apps.zeroth_order.training import Observation

# Exact types, no subclasses: those may compute something else.
_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class _Outputs:
    """A layer that is moved by its outputs: their number, and the bytes that moving one takes."""

    module: nn.Module
    units: int
    bytes_a_unit: int


@dataclass(frozen=True)
class _Plan:
    """What is moved: layers by their outputs, the parameters of all else by themselves.

    Attributes:
        traced: The network's graph.
        outputs: The layers that are moved by their outputs.
        weights: The parameters that are moved by themselves: the flat address of the first
            weight, the number of weights, and whether all of them are needed.
    """

    traced: Traced
    outputs: tuple[_Outputs, ...]
    weights: tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True)
class Activations:
    """Gradients from moved layer outputs or weights, whichever are fewer in a layer.

    Args:
        mu: The step of weights, in their units.
        mu_outputs: The step of layer outputs, in theirs.
        share: The share of outputs, and of weights that are moved by themselves, that a step
            moves, in (0, 1]; those of batch norm are always moved.
        seed: The seed of the draws.
        budget: The size in bytes that the moved outputs of a pass should not exceed; it decides
            how many queries run at once.
        precision: The type in which differences pass through dense convolutions and linear
            layers; that of the network by default.

    Raises:
        ValueError: If a step or ``budget`` is not positive, or ``share`` not in (0, 1].
    """

    mu: float
    mu_outputs: float = 3e-3
    share: float = 1.0
    seed: int = 0
    budget: int = 2**23
    precision: torch.dtype | None = None
    _engine: Fastest = field(init=False, repr=False, compare=False)
    _plans: "PerNetwork[dict[str, _Plan]]" = field(
        default_factory=PerNetwork, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("mu", "mu_outputs", "budget"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        object.__setattr__(self, "_engine", Fastest(precision=self.precision))

    def queries(self, network: nn.Module, inputs: Tensor) -> int:
        """Counts the queries of one step.

        Args:
            network: The network, in the mode that is wanted.
            inputs: A batch, of shape ``(b, ...)``.

        Returns:
            The moves, one for the loss, and one more for the loss with frozen statistics.

        Raises:
            ValueError: If samples meet elsewhere than in batch norm, or the slopes that account
                for batch norm are not to be had.
            Untraceable: If torch.fx finds no faithful graph.
        """
        plan = self._plan(network, inputs)
        weights = sum(self._count(size, whole=whole) for _, size, whole in plan.weights)
        return weights + sum(self._count(layer.units) for layer in plan.outputs) + 2

    def checked(self, network: nn.Module) -> Mapping[str, int]:
        """Tells what the checks of single weights have found; see `Checking`."""
        return self._engine.checked(network)

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Takes up what they found elsewhere; see `Checking`."""
        self._engine.believe(network, checked)

    @torch.no_grad()
    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        plan = self._plan(network, inputs)
        frozen = Frozen(network, plan.traced, inputs, precision=self.precision)
        loss, gradient = self._by_weights(network, inputs, head, plan=plan, step=step)
        weights = Weights(network)
        slopes = dict(zip(weights.parameters, gradient.split(list(weights.sizes)), strict=True))
        frozen.hold(slopes)
        losses = Losses(head, frozen.output)
        for number, layer in enumerate(plan.outputs):
            generator = generator_for(self.seed, "outputs", step, number)
            moved = _drawn(layer.units, self._count(layer.units), generator)
            answers = self._by_outputs(frozen, losses, layer, moved=moved)
            slopes |= _chained(layer.module, frozen.taken(layer.module), answers)
        write_gradient(weights, torch.cat([slopes[p].flatten() for p in weights.parameters]))
        return Observation(loss)

    def _count(self, size: int, *, whole: bool = False) -> int:
        return size if whole else math.ceil(self.share * size)

    def _by_weights(
        self, network: nn.Module, inputs: Tensor, head: Head, *, plan: _Plan, step: int
    ) -> tuple[float, Tensor]:
        """The loss, and the slopes of the weights that are moved by themselves, else zero."""
        evaluation = self._engine.prepare(network, inputs, head)
        gradient = torch.zeros(Weights(network).total, dtype=torch.float64, device=inputs.device)
        for start, size, whole in plan.weights:
            count = self._count(size, whole=whole)
            generator = generator_for(self.seed, "weights", step, start)
            moved = _drawn(size, count, generator) + start
            slopes = evaluation.differences(moved, mu=self.mu) / self.mu
            gradient.index_copy_(0, moved.to(gradient.device), slopes * (size / count))
        return float(evaluation.base), gradient

    def _by_outputs(
        self, frozen: Frozen, losses: Losses, layer: _Outputs, *, moved: Tensor
    ) -> Tensor:
        """The slopes of eq. (1) as a layer's output, weighted, of shape ``(b, *units)``."""
        given = frozen.given(layer.module)
        slopes = torch.zeros(len(given), layer.units, dtype=given.dtype, device=given.device)
        for chunk in moved.split(max(1, self.budget // layer.bytes_a_unit)):
            outputs, added = frozen.shifted(layer.module, chunk, mu=self.mu_outputs)
            change = losses.changes(outputs) + added
            slopes[:, chunk.to(given.device)] = (change.T / self.mu_outputs).to(slopes.dtype)
        return (slopes * (layer.units / len(moved))).view(given.shape)

    def _plan(self, network: nn.Module, inputs: Tensor) -> _Plan:
        key = case_of(network, inputs)
        known = self._plans.setdefault(network, {})
        if key not in known:
            known[key] = _planned(network, inputs, self.precision)
        return known[key]


def _drawn(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)[:count].sort().values


def _planned(network: nn.Module, inputs: Tensor, precision: torch.dtype | None) -> _Plan:
    weights, traced = Weights(network), trace(network)
    _check_norms(network, traced, weights)
    frozen = Frozen(network, traced, inputs, precision=precision)
    _check_graph(network, inputs, frozen)
    layers = list(_layers(network, traced))
    _check_apart(frozen, layers)
    outputs = tuple(_outputs(frozen, layers))
    covered = {p for layer in outputs for p in _trainable(layer.module)}
    needed = {p for m in network.modules() if uses_batch_statistics(m) for p in m.parameters()}
    starts = accumulate(weights.sizes, initial=0)
    return _Plan(
        traced,
        outputs,
        tuple(
            (start, p.numel(), p in needed)
            for start, p in zip(starts, weights.parameters, strict=False)
            if p not in covered
        ),
    )


def _outputs(frozen: Frozen, layers: list[nn.Module]) -> Iterator[_Outputs]:
    """The layers with fewer outputs than weights."""
    for layer in layers:
        units = frozen.given(layer)[0].numel()
        if units < sum(p.numel() for p in _trainable(layer)):
            size = frozen.bytes_a_unit(layer)
            if size:
                yield _Outputs(layer, units, size)
            else:
                warnings.warn(
                    f"{layer} is moved by its weights, which costs more queries: differences of "
                    "its outputs do not agree with whole passes",
                    SlowEngineWarning,
                    stacklevel=2,
                )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _layers(network: nn.Module, traced: Traced) -> Iterator[nn.Module]:
    """The layers that run once and keep their weights to themselves."""
    for name, module in network.named_modules():
        trainable = [n for n, p in module.named_parameters(name) if p.requires_grad]
        if type(module) in _LAYERS and trainable:
            sites = [site for n in trainable for site in traced.suffix(n).sites]
            if {site.op for site in sites} == {"call_module"} and len(set(sites)) == 1:
                yield module


def _check_norms(network: nn.Module, traced: Traced, weights: Weights) -> None:
    """Refuses batch statistics that the multipliers do not cover."""
    trainable = set(weights.parameters)
    for name, module in network.named_modules():
        if not uses_batch_statistics(module):
            continue
        if not {module.weight, module.bias} <= trainable:
            raise ValueError(
                f"batch norm must have a trainable weight and bias, got {name!r} without; "
                "put it in eval mode or use Coordinates"
            )
        if len({s for n, _ in module.named_parameters(name) for s in traced.suffix(n).sites}) > 1:
            raise ValueError(f"batch norm must run once in a pass, got {name!r}; use Coordinates")


def _check_graph(network: nn.Module, inputs: Tensor, frozen: Frozen) -> None:
    before = Surroundings(slots(network), inputs.device)
    with torch.no_grad():
        output = network(inputs)
    before.restore()
    if not agree(frozen.output, output):
        raise Untraceable("the traced graph does not give the network's own output")


def _check_apart(frozen: Frozen, layers: list[nn.Module]) -> None:
    """Refuses networks whose first sample alone is treated otherwise than in the batch."""
    alone = frozen.alone(1)
    pairs = [(alone.output, frozen.output)]
    pairs += [(alone.values[frozen.node(layer)], frozen.given(layer)) for layer in layers]
    for one, together in pairs:
        scale = float(together.abs().max()) or 1.0
        tolerance = max(1e-3, 10 * torch.finfo(together.dtype).eps) * scale
        apart = one.shape == together[:1].shape and (
            frozen.random or torch.allclose(one, together[:1], rtol=0, atol=tolerance)
        )
        if not apart:
            raise ValueError(
                "network must treat samples apart, batch norm excepted, got one whose first "
                "sample alone gives another value; use Coordinates"
            )


def _chained(layer: nn.Module, taken: Tensor, slopes: Tensor) -> dict[nn.Parameter, Tensor]:
    """The slopes of a layer's own weights, eq. (2)."""
    own = _trainable(layer)
    with torch.enable_grad():
        found = torch.autograd.grad(layer(taken.detach()), own, slopes / len(slopes))
    return {p: g.flatten().double() for p, g in zip(own, found, strict=True)}
