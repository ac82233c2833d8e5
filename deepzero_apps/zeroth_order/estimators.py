r"""Estimates of the gradient of a black-box loss from its values alone.

For a loss :math:`f: \mathbb{R}^d \to \mathbb{R}`, a step :math:`\mu > 0`, a support
:math:`S` and directions :math:`u_i` of scale :math:`c` (see ``directions``):

.. math::
    \hat g_S = \sum_{i \in S} \frac{f(x + \mu e_i) - f(x)}{\mu} e_i                  \tag{1}

.. math::
    \hat g_q = \frac{c}{q} \sum_{i=1}^{q} \frac{f(x + \mu u_i) - f(x)}{\mu} u_i      \tag{2}

With ``central=True`` the quotient is :math:`[f(x + \mu v) - f(x - \mu v)] / 2 \mu`.

========================= ============= ==================================================
estimate                  queries       error
========================= ============= ==================================================
(1) forward               \|S\| + 1       bias :math:`\mu H_{ii} / 2`, no variance
(1) central               2 \|S\|         bias :math:`O(\mu^2)`, none on a quadratic
(2) forward               q + 1         bias O(mu^2) for a smooth f; variance ~ d / q
(2) central               2 q           the same bias; no variance from curvature
========================= ============= ==================================================

**Many problems at once.** ``x`` may carry ``batch_dims`` leading axes of independent problems
(one image each, say): the loss then answers one value a problem, every problem gets its own
directions, and a query is one point of one problem.

References:
    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 3
    | https://arxiv.org/abs/2310.02025

    | Random Gradient-Free Minimization of Convex Functions (Nesterov & Spokoiny, 2017)
    | https://doi.org/10.1007/s10208-015-9296-2
"""

__all__ = ["Loss", "coordinate", "randomized"]

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deepzero_apps.zeroth_order.directions import Directions, Gaussian

Loss = Callable[[Tensor], Tensor]
"""A black box: points ``(k, *x.shape)`` to values ``(k, *batch)``. Never differentiated."""

BLOCK = 2**24
"""The most numbers held at once in one block of points (64 MiB in float32)."""


def coordinate(
    loss: Loss,
    x: Tensor,
    *,
    mu: float,
    support: Tensor | None = None,
    central: bool = False,
    batch_dims: int = 0,
    base: Tensor | None = None,
) -> Tensor:
    r"""Estimates the gradient one coordinate at a time, eq. (1).

    Args:
        loss: The black box :math:`f`; see ``Loss``.
        x: The point, of shape ``(*batch, *event)``; d is the number of entries of an event.
        mu: The step :math:`\mu`, in the units of ``x``.
        support: Indices :math:`S` into the flattened event, of shape ``(s,)`` and without
            repeats; all d by default. The estimate is zero outside of it.
        central: Takes differences on both sides of ``x``.
        batch_dims: How many leading axes of ``x`` count independent problems.
        base: The values at ``x``, of shape ``(*batch,)``, where they are known already:
            saves one query a problem of the forward difference.

    Returns:
        The estimate, of the shape of ``x``.

    Raises:
        ValueError: If ``mu`` is not positive, or ``support`` is no set of coordinates.

    Example:
        >>> coordinate(lambda p: (p**2).sum(-1), torch.tensor([1.0, -2.0]), mu=0.5)
        tensor([ 2.5000, -3.5000])
    """
    flat = _flattened(x, mu, batch_dims)
    d = flat.shape[-1]
    support = _checked_support(support, d, x.device)
    difference = _Difference(loss, x, batch_dims, mu=mu, central=central, base=base)

    gradient = torch.zeros_like(flat)
    for part in _parts(support, flat.numel()):
        u = flat.new_zeros(part.numel(), d)
        u[torch.arange(part.numel(), device=x.device), part] = 1
        u = u.view(part.numel(), *(1,) * batch_dims, d).expand(part.numel(), *flat.shape)
        gradient.index_copy_(-1, part, difference(u).movedim(0, -1))
    return gradient.view(x.shape)


def randomized(
    loss: Loss,
    x: Tensor,
    *,
    mu: float,
    q: int,
    directions: Directions | None = None,
    central: bool = False,
    batch_dims: int = 0,
    base: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimates the gradient along random directions, eq. (2).

    Args:
        loss: The black box :math:`f`; see ``Loss``.
        x: The point, of shape ``(*batch, *event)``.
        mu: The smoothing radius :math:`\mu`, in the units of ``x``.
        q: The number of directions a problem.
        directions: Their law; Gaussian by default.
        central: Takes differences on both sides of ``x`` (antithetic pairs).
        batch_dims: How many leading axes of ``x`` count independent problems.
        base: The values at ``x``, of shape ``(*batch,)``, where they are known already.
        generator: The source of the directions; torch's global one by default.

    Returns:
        The estimate, of the shape of ``x``.

    Raises:
        ValueError: If ``mu`` or ``q`` is not positive.
    """
    flat = _flattened(x, mu, batch_dims)
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    directions = directions if directions is not None else Gaussian()
    difference = _Difference(loss, x, batch_dims, mu=mu, central=central, base=base)

    total = torch.zeros_like(flat)
    for part in _parts(torch.arange(q), flat.numel()):
        u = directions.sample(flat.new_empty(part.numel(), *flat.shape), generator=generator)
        total += (difference(u)[..., None] * u).sum(0)
    return (total * (directions.scale(flat.shape[-1]) / q)).view(x.shape)


class _Difference:
    """The one line of calculus: directions ``(k, *batch, d)`` to slopes ``(k, *batch)``."""

    def __init__(
        self,
        loss: Loss,
        x: Tensor,
        batch_dims: int,
        *,
        mu: float,
        central: bool,
        base: Tensor | None,
    ) -> None:
        self.loss = loss
        self.x = x.detach()
        self.batch = tuple(x.shape[:batch_dims])
        self.mu = mu
        self.central = central
        self.base = base
        if base is not None and tuple(base.shape) != self.batch:
            raise ValueError(f"base must be of shape {self.batch}, got {tuple(base.shape)}")

    @torch.no_grad()
    def __call__(self, u: Tensor) -> Tensor:
        steps = self.mu * u.reshape(-1, *self.x.shape)
        if self.central:
            slopes = (self._values(self.x + steps) - self._values(self.x - steps)) / (2 * self.mu)
        elif self.base is None:
            values = self._values(torch.cat((self.x[None], self.x + steps)))
            self.base = values[0]
            slopes = (values[1:] - values[0]) / self.mu
        else:
            slopes = (self._values(self.x + steps) - self.base) / self.mu
        return slopes.to(self.x.dtype)

    def _values(self, points: Tensor) -> Tensor:
        values = self.loss(points)
        expected = (len(points), *self.batch)
        if tuple(values.shape) != expected:
            raise ValueError(
                f"loss must answer values of shape {expected}, got {tuple(values.shape)}"
            )
        return values


def _flattened(x: Tensor, mu: float, batch_dims: int) -> Tensor:
    if not (mu > 0 and math.isfinite(mu)):
        raise ValueError(f"mu must be positive and finite, got {mu}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    if not 0 <= batch_dims < x.ndim:
        raise ValueError(
            f"x must have an axis more than batch_dims, got shape {tuple(x.shape)} "
            f"and batch_dims {batch_dims}"
        )
    return x.detach().flatten(batch_dims)


def _checked_support(support: Tensor | None, d: int, device: torch.device) -> Tensor:
    if support is None:
        return torch.arange(d, device=device)
    if support.ndim != 1 or support.is_floating_point() or support.dtype == torch.bool:
        raise ValueError(
            f"support must be integer indices of shape (s,), got {support.dtype} of shape "
            f"{tuple(support.shape)}"
        )
    outside = support[(support < 0) | (support >= d)]
    if outside.numel():
        raise ValueError(f"support must lie in [0, {d}), got {int(outside[0])}")
    if support.unique().numel() < support.numel():
        raise ValueError("support must not repeat a coordinate, got repeats; use torch.unique")
    return support.to(device)


def _parts(indices: Tensor, numel: int) -> Iterator[Tensor]:
    """Cuts indices so that a block of points stays below ``BLOCK`` numbers."""
    yield from indices.split(max(1, BLOCK // max(1, numel))) if indices.numel() else ()
