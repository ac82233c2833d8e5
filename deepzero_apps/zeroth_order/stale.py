r"""Sparse gradients that remember: a coordinate out of the support keeps its last slope, decayed.

A sparse estimate g on the support S of a step knows nothing of the other coordinates and puts zero there.
But slopes change slowly, so yesterday's are better than none:

.. math::
    m_i \leftarrow \begin{cases} g_i & i \in S \\ \gamma\, m_i & \text{otherwise} \end{cases} \tag{1}

and m is what the optimizer is given. :math:`\gamma = 0` is the sparse gradient itself,
:math:`\gamma = 1` keeps a slope until it is measured again. No query is added; one number a weight
is stored. CoCD walks the coordinates in blocks, in a fixed cycle
(`deepzero_apps.zeroth_order.cyclic`), so that no slope is older than one cycle; with supports
drawn at random some are.

References:
    | CoCD (2026), block-cyclic coordinate estimates with a decayed buffer
    | https://arxiv.org/abs/2605.14373
"""

__all__ = ["Remembered"]

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from deepzero_apps.zeroth_order.differences import Head
from deepzero_apps.zeroth_order.gradients import WeightGradient, read_gradient, write_gradient
from deepzero_apps.zeroth_order.state import Weights
from deepzero_apps.zeroth_order.training import Observation


class Remembered:
    """A sparse gradient whose unselected coordinates keep their last slopes, eq. (1).

    It is state: pass it as ``companion`` to `Training`, so that a run resumes exactly. Its
    support is all that is remembered, so ``hold_unselected`` holds weights not met so far.

    Args:
        plain: The sparse gradient; a dense one passes unchanged.
        decay: What a slope is multiplied by in each step in which it is not measured, in [0, 1].

    Raises:
        ValueError: If ``decay`` does not lie in [0, 1].
    """

    def __init__(self, plain: WeightGradient, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.plain = plain
        self.decay = decay
        self._slopes: Tensor | None = None

    def __call__(
        self, network: nn.Module, inputs: Tensor, head: Head, *, step: int
    ) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        seen = self.plain(network, inputs, head, step=step)
        if seen.support is None:
            return seen
        weights = Weights(network)
        fresh = read_gradient(weights)
        support = seen.support.to(fresh.device)
        self._slopes = self._updated(fresh, support)
        write_gradient(weights, self._slopes.clone())  # clipping must not reach the memory
        known = self._slopes != 0
        known[support] = True
        return replace(seen, support=known.nonzero().flatten())

    def state_dict(self) -> dict[str, Any]:
        """Returns the remembered slopes."""
        return {"slopes": self._slopes}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up what ``state_dict()`` returned."""
        self._slopes = state["slopes"]

    def _updated(self, fresh: Tensor, support: Tensor) -> Tensor:
        if self._slopes is None:
            return fresh
        if self._slopes.shape != fresh.shape:
            raise ValueError(
                f"network must have the {len(self._slopes)} trainable weights whose slopes are "
                f"remembered, got {len(fresh)}; make a new Remembered for another network"
            )
        stale = self.decay * self._slopes.to(fresh)
        return stale.index_copy_(0, support, fresh[support])
