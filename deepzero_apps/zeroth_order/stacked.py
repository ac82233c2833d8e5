r"""Many displaced copies of a small network in one pass, for randomized estimates with many directions.

A pass of a small network costs more in launches than in arithmetic, and a direction moves *every*
weight, so that nothing of the base pass can be reused. But K copies of a network are one network
whose layers lie side by side in the channels:

- a convolution becomes a grouped one with K times the groups (the first one, whose input all
  copies share, an ordinary one with K times the output channels);
- a batch norm becomes one with K times the channels, hence with statistics of its own for each copy;
- a linear layer becomes a batched product;
- whatever treats channels alike (ReLU, pooling, flattening) stays as it is.

On 8x8 images and one CPU core this makes a pass of the adjustable CNN several times cheaper, in
``channels_last`` order. The last point is an assumption about the network. So before a
network is trusted, in each mode and for each shape of inputs, two displaced copies are compared
with ordinary passes; if they disagree, `Randomized` does the work, after a `SlowEngineWarning`.
"""

__all__ = ["Copies", "StackedRandomized"]

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.checks import case_of
from deepzero_apps.zeroth_order.differences import Head, Pass
from deepzero_apps.zeroth_order.engines import SlowEngineWarning
from deepzero_apps.zeroth_order.gradients import Randomized, write_gradient
from deepzero_apps.zeroth_order.per_network import PerNetwork
from deepzero_apps.zeroth_order.pieces import Work, all_at_once
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Observation

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class _Known:
    """The graph of a network (None where it has no faithful one) and what was checked on it."""

    def __init__(self, network: nn.Module) -> None:
        self.graph: fx.Graph | None = None
        self.verdicts: dict[str, bool] = {}
        try:
            self.graph = fx.symbolic_trace(network).graph
        except _FAILURES as error:
            _warn(network, f"torch.fx cannot trace it ({str(error).splitlines()[0]})")


@dataclass(frozen=True)
class StackedRandomized:
    """`Randomized`, with the displaced networks of many directions evaluated in one pass.

    It draws the same directions and gives the same gradient up to rounding.

    Args:
        plain: The estimate.
        copies: How many displaced networks make a pass; what fits the cache, and the
            allocator keeps, is fastest.

    Raises:
        ValueError: If ``copies`` is not positive.
    """

    plain: Randomized
    copies: int = 8
    _known: PerNetwork[_Known] = field(
        default_factory=PerNetwork, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1, got {self.copies}")

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        return all_at_once(self.begin(network, inputs, head, step=step))

    @torch.no_grad()
    def begin(self, network: nn.Module, inputs: Tensor, head: Head, *, step: int) -> Work:
        """Makes the base pass; a piece is a pass of displaced networks."""
        graph = self._trusted_graph(network, inputs)
        if graph is None:
            return self.plain.begin(network, inputs, head, step=step)
        first = Pass(network, inputs)
        return _StackedWork(self, first, Copies(network, graph), head, step=step)

    def checked(self, network: nn.Module) -> Mapping[str, int]:
        """Tells which modes and shapes are stacked; see `Checking`."""
        return dict(self._known[network].verdicts) if network in self._known else {}

    def believe(self, network: nn.Module, checked: Mapping[str, int]) -> None:
        """Takes up which are; see `Checking`."""
        self._known_of(network).verdicts = {key: bool(verdict) for key, verdict in checked.items()}

    def _known_of(self, network: nn.Module) -> _Known:
        if network not in self._known:
            self._known[network] = _Known(network)
        return self._known[network]

    def _trusted_graph(self, network: nn.Module, inputs: Tensor) -> fx.Graph | None:
        known = self._known_of(network)
        if known.graph is None:
            return None
        key = case_of(network, inputs)
        if key not in known.verdicts:
            known.verdicts[key] = _agrees(network, known.graph, inputs)
        return known.graph if known.verdicts[key] else None


class _StackedWork:
    """Loss differences along directions, many in a pass; see `Work`."""

    def __init__(
        self, owner: StackedRandomized, first: Pass, copies: "Copies", head: Head, *, step: int
    ) -> None:
        self._plain, self._first, self._copies, self._head = owner.plain, first, copies, head
        self._step = step
        self._theta = copies.theta()
        self._base = _losses(head, first.output[None])
        self._passes = list(torch.arange(owner.plain.q).split(owner.copies))
        self.kinds = [0] * len(self._passes)
        self.lengths = [len(part) for part in self._passes]

    @torch.no_grad()
    def measure(self, pieces: Sequence[int]) -> Tensor:
        """Evaluates the displaced networks of pieces."""
        return torch.cat([self._changes(self._steps(piece)) for piece in pieces])

    def finish(self, measured: Tensor) -> Observation:
        """Writes the mean over directions."""
        gradient = torch.zeros_like(self._theta, dtype=torch.float64)
        for piece, changes in enumerate(measured.split(self.lengths)):
            u = self._steps(piece)
            gradient += changes.to(u.dtype) @ u
        write_gradient(self._first.weights, gradient * self._plain.factor(len(self._theta)))
        return Observation(float(self._base.mean()))

    def _changes(self, u: Tensor) -> Tensor:
        inputs, mu, other = self._first.inputs, self._plain.mu, self._base
        if self._plain.central:
            other = _losses(self._head, self._copies(inputs, self._theta - mu * u))
        return (_losses(self._head, self._copies(inputs, self._theta + mu * u)) - other).mean(1)

    def _steps(self, piece: int) -> Tensor:
        """The directions of a piece, of shape ``(k, d)``."""
        numbers = self._passes[piece].tolist()
        draw = partial(self._plain.direction, self._step, like=self._theta)
        return torch.stack([draw(number) for number in numbers])


class Copies:
    """K copies of a network as one network, by the rules of the module's docstring.

    Args:
        network: The network.
        graph: Its graph, where it was traced before.

    Raises:
        ValueError: When called, if a layer has no rule.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph | None = None) -> None:
        self._network = network
        self._graph = graph if graph is not None else fx.symbolic_trace(network).graph
        self._weights = Weights(network)

    def theta(self) -> Tensor:
        """Returns the network's weights, of shape ``(d,)``."""
        return torch.cat([p.detach().flatten() for p in self._weights.parameters])

    def __call__(self, inputs: Tensor, points: Tensor) -> Tensor:
        """Evaluates the network at K weights.

        Args:
            inputs: Of shape ``(b, c, ...)``, shared by all copies, or ``(b, k * c, ...)``, each
                copy's own channels side by side.
            points: The weights, of shape ``(k, d)``.

        Returns:
            The outputs, of shape ``(k, b, ...)``.
        """
        parts = points.split(list(self._weights.sizes), dim=1)
        named = zip(self._weights.names, self._weights.parameters, parts, strict=True)
        moved = {name: part.reshape(len(points), *p.shape) for name, p, part in named}
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        output = _Interpreter(self._network, self._graph, moved, len(points)).run(inputs)
        by_copy: Tensor = output.unflatten(1, (len(points), -1)).transpose(0, 1)
        return by_copy


class _Interpreter(fx.Interpreter):
    def __init__(
        self, network: nn.Module, graph: fx.Graph, moved: Mapping[str, Tensor], k: int
    ) -> None:
        super().__init__(network, graph=graph)
        self._moved = moved
        self._k = k

    def call_module(
        self,
        target: "fx.node.Target",
        args: tuple["fx.node.Argument", ...],
        kwargs: dict[str, object],
    ) -> object:
        name = str(target)
        layer = self.fetch_attr(name)
        x = cast("Tensor", args[0]) if args else None
        if isinstance(layer, nn.Conv2d) and x is not None:
            return self._convolution(layer, name, x)
        if isinstance(layer, nn.BatchNorm2d) and x is not None:
            return self._batch_norm(layer, name, x)
        if isinstance(layer, nn.Linear) and x is not None:
            return self._linear(layer, name, x)
        if next(layer.parameters(), None) is not None:
            raise ValueError(f"a {type(layer).__name__} has no rule")
        return layer(*args, **kwargs)

    def _convolution(self, layer: nn.Conv2d, name: str, x: Tensor) -> Tensor:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(f"a convolution with padding {layer.padding_mode!r} has no rule")
        weight, bias = self._own(layer, f"{name}.weight"), self._own(layer, f"{name}.bias")
        if weight is None:
            raise ValueError("a convolution without weights has no rule")
        y = functional.conv2d(
            x,
            weight.flatten(0, 1).contiguous(memory_format=torch.channels_last),
            None if bias is None else bias.flatten(),
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups * (x.shape[1] // layer.in_channels),
        )
        # a gray image is in both orders at once, and its convolution then takes the slow one
        return y.contiguous(memory_format=torch.channels_last)

    def _batch_norm(self, layer: nn.BatchNorm2d, name: str, x: Tensor) -> Tensor:
        shared = x.shape[1] == layer.num_features
        weight, bias = self._own(layer, f"{name}.weight"), self._own(layer, f"{name}.bias")
        by_batch = layer.training or layer.running_mean is None
        mean, variance = (
            None if by_batch or b is None else b.repeat(self._k)
            for b in (layer.running_mean, layer.running_var)
        )
        return functional.batch_norm(
            x.repeat(1, self._k, 1, 1) if shared else x,
            mean,
            variance,
            None if weight is None else weight.flatten(),
            None if bias is None else bias.flatten(),
            training=by_batch,
            eps=layer.eps,
        )

    def _linear(self, layer: nn.Linear, name: str, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(f"a linear layer on shape {tuple(x.shape)} has no rule")
        weight, bias = self._own(layer, f"{name}.weight"), self._own(layer, f"{name}.bias")
        if weight is None:
            raise ValueError("a linear layer without weights has no rule")
        shared = x.shape[1] == layer.in_features
        shape = (self._k, layer.in_features)
        by_copy = x.expand(self._k, -1, -1) if shared else x.unflatten(1, shape).transpose(0, 1)
        y = (by_copy @ weight.mT).transpose(0, 1)
        return (y if bias is None else y + bias).flatten(1)

    def _own(self, layer: nn.Module, name: str) -> Tensor | None:
        """A parameter's K values, of shape ``(k, ...)``; None where the layer has none."""
        if name in self._moved:
            return self._moved[name]
        fixed: Tensor | None = getattr(layer, name.rpartition(".")[2])
        return None if fixed is None else fixed.detach().expand(self._k, *fixed.shape)


@torch.no_grad()
def _agrees(network: nn.Module, graph: fx.Graph, inputs: Tensor) -> bool:
    """Compares two displaced copies, by steps too large to miss, with ordinary passes."""
    now = Pass(network, inputs)
    now.before.restore()
    copies = Copies(network, graph)
    theta = copies.theta()
    generator = generator_for(0, "check", device=theta.device)
    steps = torch.empty(2, theta.numel(), dtype=theta.dtype, device=theta.device)
    steps.normal_(generator=generator).mul_(0.1)
    reason = "its displaced copies do not give the network's own outputs"
    try:
        with now.unnoticed():
            both = copies(inputs, theta + steps)
            for step, output in zip(steps, both, strict=True):
                with now.weights.displaced(step):
                    if not _close(output, now.again()):
                        raise ValueError(reason)
    except _FAILURES as error:
        _warn(network, (str(error).splitlines() or [type(error).__name__])[0])
        return False
    return True


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by rounding alone, amplified a few thousand times by layers."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = min(4096 * torch.finfo(b.dtype).eps, 0.05)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def _losses(head: Head, outputs: Tensor) -> Tensor:
    return head(outputs).detach().to(outputs.device, torch.float64)


def _warn(network: nn.Module, reason: str) -> None:
    warnings.warn(
        f"{type(network).__name__} runs once for every direction, which is slower: {reason}",
        SlowEngineWarning,
        stacklevel=3,
    )
