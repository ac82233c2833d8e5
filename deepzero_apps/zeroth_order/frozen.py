r"""A network on one batch whose samples do not meet: batch statistics become multipliers.

Let :math:`l_j` be the loss of sample j of b. Samples meet in the statistics s of batch norm alone,
and each statistic is a mean over samples, :math:`s = \tfrac1b \sum_j g_j(x_j)`, of the inputs
:math:`x_j` of its layer. The chain rule then reads, as in any problem with a constraint,

.. math::
    \tilde l_j = l_j\big|_{s\ \text{fixed}} + \sum_{s} \lambda_s\, g_j(x_j), \qquad
    \lambda_s = \frac{\partial l}{\partial s}, \qquad
    \nabla l = \nabla \frac1b \sum_j \tilde l_j                                          \tag{1}

where the derivative by s lets later statistics follow, as an ordinary pass does. With (1) the samples
are apart: what is moved in all of them at once is answered by each for itself.

For :math:`y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta`, whose statistics are the mean m and
the variance v, :math:`g_j` are the means over the sample's positions of x and of
:math:`(x - m)^2`, and moving a statistic moves y as moving :math:`\gamma` or :math:`\beta` would:

.. math::
    \lambda_m = -\frac{\gamma}{\sqrt{v + \epsilon}} \frac{\partial l}{\partial \beta}, \qquad
    \lambda_v = -\frac{\gamma}{2 (v + \epsilon)} \frac{\partial l}{\partial \gamma}           \tag{2}

So the multipliers cost nothing where the slopes of :math:`\gamma` and :math:`\beta` are known.
"""

__all__ = ["Frozen", "uses_batch_statistics"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from deepzero_apps.zeroth_order.agreement import agree_by_moves
from deepzero_apps.zeroth_order.base_pass import BasePass
from deepzero_apps.zeroth_order.graph import Traced
from deepzero_apps.zeroth_order.propagation import Delta, Propagation
from deepzero_apps.zeroth_order.propagation.delta import laid_out
from deepzero_apps.zeroth_order.state import Surroundings, slots

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def uses_batch_statistics(module: nn.Module) -> TypeGuard[_Norm]:
    """Tells whether a module is a batch norm that takes its statistics from the batch."""
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    return module.training or module.running_mean is None


class Frozen:
    """A network on one batch, with the batch statistics of its base pass.

    Buffers and random generators are, after each call, as they were before. The network's own
    buffers and modes are borrowed during a call, so a network serves one call at a time.

    Args:
        network: The network, in the mode that is wanted.
        traced: Its graph.
        inputs: The batch, of shape ``(b, ...)``.
        precision: The type in which differences pass through dense convolutions and linear
            layers; that of the network by default.

    Attributes:
        output: The network's output, of shape ``(b, ...)``.
        random: Whether a pass draws random numbers; all passes draw the same.
    """

    def __init__(
        self,
        network: nn.Module,
        traced: Traced,
        inputs: Tensor,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        self._network, self._traced, self._inputs = network, traced, inputs
        self._precision = precision
        self._before = Surroundings(slots(network), inputs.device)
        self._statistics: dict[_Norm, tuple[Tensor, Tensor]] = {}
        self._multipliers: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        with self._unnoticed():
            base = BasePass(traced, network, inputs, moves=True)
        self._nodes = {module: node for node, module in base.modules.items()}
        for norm, node in self._nodes.items():
            if uses_batch_statistics(norm):
                x = base.values[node.all_input_nodes[0]]
                variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
                self._statistics[norm] = mean, variance
        with self._frozen():
            self._base = BasePass(traced, network, inputs, moves=True)
            self._propagation = Propagation(self._base, precision=precision)
        self.output: Tensor = self._base.output
        self.random = bool(self._base.moving)

    def node(self, layer: nn.Module) -> fx.Node:
        """Returns the node of the graph that calls a layer."""
        return self._nodes[layer]

    def taken(self, layer: nn.Module) -> Tensor:
        """Returns what a layer takes, of shape ``(b, ...)``."""
        taken: Tensor = self._base.values[self._nodes[layer].all_input_nodes[0]]
        return taken

    def given(self, layer: nn.Module) -> Tensor:
        """Returns what a layer gives, of shape ``(b, *units)``."""
        given: Tensor = self._base.values[self._nodes[layer]]
        return given

    def alone(self, count: int) -> BasePass:
        """Runs the first samples alone, with the statistics of the whole batch.

        Args:
            count: The number of samples.

        Returns:
            Their base pass, of ``count`` rows in each value if samples are apart.
        """
        with self._frozen():
            return BasePass(self._traced, self._network, self._inputs[:count], moves=True)

    def hold(self, slopes: Mapping[nn.Parameter, Tensor]) -> None:
        """Sets the multipliers of the statistics, eq. (2).

        Args:
            slopes: The derivative of the mean loss by each weight and bias of batch norms with
                batch statistics, flat.
        """
        for norm, (mean, variance) in self._statistics.items():
            gamma, spread = norm.weight.detach(), variance + norm.eps
            by_gamma, by_beta = (slopes[p].to(gamma.dtype) for p in (norm.weight, norm.bias))
            by_mean, by_variance = (
                -gamma / spread.sqrt() * by_beta,
                -gamma / (2 * spread) * by_gamma,
            )
            source = self._nodes[norm].all_input_nodes[0]
            x = self._base.values[source]
            shape = (1, -1, *[1] * (x.ndim - 2))
            of_mean, of_variance, center = (v.view(shape) for v in (by_mean, by_variance, mean))
            linear = laid_out(of_mean + 2 * (x - center) * of_variance)
            self._multipliers[source] = linear, of_variance

    def bytes_a_unit(self, layer: nn.Module) -> int:
        """Checks moves of a layer's first and last unit against whole passes.

        Args:
            layer: The layer.

        Returns:
            The bytes of the largest difference on the way of one unit; 0 if the differences do
            not agree with whole passes.
        """
        given, node = self.given(layer), self._nodes[layer]
        units, mu = torch.tensor([0, given[0].numel() - 1]), float(given.abs().max()) or 1.0
        suffix = self._traced.after(node)
        with self._frozen():
            moves = _moves(given, units, mu=mu, dim=_channels(layer, given))
            whole = torch.stack(
                [self._base.rerun(suffix, given={node: given + d}) for d in moves.dense(given)]
            )
            try:
                moved, largest = self._propagation.carry(suffix, moves, networks=2)
            except (RuntimeError, ValueError, TypeError, IndexError):
                return 0
        agreed = agree_by_moves(moved, whole - self.output, self.output, self._precision)
        return max(1, largest) if agreed else 0

    def shifted(self, layer: nn.Module, units: Tensor, *, mu: float) -> tuple[Tensor, Tensor]:
        r"""Moves units of a layer's output, each in a network of its own, in all samples at once.

        Args:
            layer: The layer, see `bytes_a_unit`.
            units: Their numbers, row-major in the output of a sample, int64 of shape ``(k,)``.
            mu: The step, in the units of the output.

        Returns:
            How the network's output differs, of shape ``(k, b, ...)``, and how far the
            multipliers' part of eq. (1) does, of shape ``(k, b)``.

        Raises:
            ValueError: If a unit is not one of the layer's.
        """
        given, node = self.given(layer), self._nodes[layer]
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < given[0].numel():
            raise ValueError(f"units must lie in [0, {given[0].numel()}), got {units.tolist()}")
        added = [given.new_zeros(len(units), len(given))]

        def see(seen: fx.Node, delta: Delta) -> None:
            if seen in self._multipliers:
                added.append(self._weighed(seen, delta))

        with self._frozen():
            moves = _moves(given, units, mu=mu, dim=_channels(layer, given))
            suffix = self._traced.after(node)
            moved, _ = self._propagation.carry(suffix, moves, networks=len(units), see=see)
        return moved, torch.stack(added).sum(0)

    def _weighed(self, source: fx.Node, delta: Delta) -> Tensor:
        """The multipliers' part of one norm, from the differences of what it takes."""
        linear, of_variance = (delta.on(v) for v in self._multipliers[source])
        d = delta.values.to(linear.dtype)
        part = d * (linear + d * of_variance)
        return (part.flatten(3).mean(3) if part.ndim > 3 else part).sum(2)

    @contextmanager
    def _unnoticed(self) -> Iterator[None]:
        now = Surroundings(slots(self._network), self._inputs.device)
        self._before.restore()
        try:
            with torch.no_grad():
                yield
        finally:
            now.restore()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Puts the measured statistics in the place of the running ones."""
        names = ("running_mean", "running_var")
        kept = [(m, m.training, [m._buffers[n] for n in names]) for m in self._statistics]
        with self._unnoticed():
            try:
                for norm, statistics in self._statistics.items():
                    norm.training = False
                    norm._buffers.update(zip(names, statistics, strict=True))
                yield
            finally:
                for norm, training, buffers in kept:
                    norm.training = training
                    norm._buffers.update(zip(names, buffers, strict=True))


def _channels(layer: nn.Module, given: Tensor) -> int:
    return given.ndim - 1 if isinstance(layer, nn.Linear) else 1


def _moves(given: Tensor, units: Tensor, *, mu: float, dim: int) -> Delta:
    """One unit a network, the same in all samples: a difference on one channel."""
    place = list(torch.unravel_index(units.to(given.device), given.shape[1:]))
    channels = place[dim - 1]
    place[dim - 1] = torch.zeros_like(channels)
    shape = list(given.shape)
    shape[dim] = 1
    values = given.new_zeros(len(units), *shape)
    networks = torch.arange(len(units), device=given.device)
    values.movedim(1, -1)[(networks, *place)] = mu
    return Delta(values, channels, dim)
