r"""Losses of a network's outputs that know their own differences.

A head maps outputs to one loss a sample (`deepzero_apps.zeroth_order.differences`). Any function
will do; but where an engine carries differences :math:`\delta` of the outputs, the loss can take
them as they are. For logits z, probabilities p and the label y,

.. math::
    \Delta l = \log\Big(1 + \sum_c p_c (e^{\delta_c} - 1)\Big) - \delta_y                \tag{1}

in which no two nearly equal losses are subtracted.
"""

__all__ = ["CrossEntropy"]

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from deepzero_apps.zeroth_order.propagation.softmax import log_sum_exp_difference


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with labels, in float64.

    Args:
        labels: The samples' classes, int64 of shape ``(b,)``.
    """

    labels: Tensor

    def __call__(self, outputs: Tensor) -> Tensor:
        """Maps logits ``(k, b, classes)`` to losses ``(k, b)``."""
        scores = functional.log_softmax(outputs.double(), dim=-1)
        return -_at(scores, self.labels)

    def differences(self, base: Tensor, deltas: Tensor) -> Tensor:
        """Maps base logits ``(b, classes)`` and differences ``(k, b, classes)``, eq. (1)."""
        deltas = deltas.double()
        total = log_sum_exp_difference(base.double()[None], deltas, dim=-1)
        return total[..., 0] - _at(deltas, self.labels)


def _at(values: Tensor, labels: Tensor) -> Tensor:
    return values.gather(-1, labels.expand(len(values), -1)[..., None])[..., 0]
