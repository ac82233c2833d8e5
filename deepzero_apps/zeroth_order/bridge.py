r"""A black box inside a torch graph: forward by value, backward by estimate.

For :math:`y = F(x)` inside a larger network, autograd hands over the cotangent
:math:`\lambda = \partial \ell / \partial y` and asks for :math:`J^\top \lambda`. It is the gradient
at :math:`x` of the scalar

.. math::
    f(x') = \langle \lambda, F(x') - F(x) \rangle                                    \tag{1}

whose base value is zero and costs no query. Everything before and after :math:`F` stays with
autograd: finite differences are paid only where nothing else works. Each sample of the batch is a
problem of its own.
"""

__all__ = ["Estimator", "bridge"]

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepzero_apps.zeroth_order.estimators import Loss


class Estimator(Protocol):
    """``coordinate`` or ``randomized`` with every setting but the problem filled in."""

    def __call__(
        self, loss: Loss, x: Tensor, *, batch_dims: int, base: Tensor | None = None
    ) -> Tensor:
        """Estimates the gradient of ``loss`` at ``x``, of the shape of ``x``."""
        ...


def bridge(function: Callable[[Tensor], Tensor], x: Tensor, estimator: Estimator) -> Tensor:
    r"""Evaluates a black box so that gradients flow through it by estimate, eq. (1).

    Args:
        function: The black box, stacked points ``(k, b, *in)`` to answers ``(k, b, *out)``.
            Never differentiated.
        x: The batch, of shape ``(b, *in)``.
        estimator: How :math:`J^\top \lambda` is estimated, for example
            ``partial(randomized, mu=0.01, q=16)``.

    Returns:
        The answers :math:`F(x)`, of shape ``(b, *out)``; their gradient costs what the estimator
        costs, less the query at ``x``.

    Example:
        >>> from functools import partial
        >>> from deepzero_apps.zeroth_order import coordinate
        >>> x = torch.tensor([[1.0, -2.0]], requires_grad=True)
        >>> y = bridge(lambda p: (p**2).sum(-1), x, partial(coordinate, mu=0.5))
        >>> y.sum().backward()
        >>> x.grad
        tensor([[ 2.5000, -3.5000]])
    """
    answer: Tensor = _Bridge.apply(x, function, estimator)  # type: ignore[no-untyped-call]
    return answer


class _Bridge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        x: Tensor,
        function: Callable[[Tensor], Tensor],
        estimator: Estimator,
    ) -> Tensor:
        y = function(x.detach()[None])[0]
        ctx.save_for_backward(x, y)
        ctx.function, ctx.estimator = function, estimator
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        x, y = ctx.saved_tensors

        def loss(points: Tensor) -> Tensor:  # eq. (1)
            change: Tensor = (ctx.function(points) - y) * cotangent
            return change.flatten(2).sum(2) if change.ndim > 2 else change

        gradient: Tensor = ctx.estimator(loss, x, batch_dims=1, base=y.new_zeros(len(x)))
        return gradient, None, None
