r"""Random directions for randomized gradient estimates.

A direction :math:`u \in \mathbb{R}^d` comes with the scale :math:`c` that makes

.. math::
    c \, \mathbb{E}[u u^\top] = I                                                  \tag{1}

so that :math:`c (g \cdot u) u` is an unbiased estimate of :math:`g`. The scale matters: it is 1
for Gaussian and Rademacher directions and :math:`d` on the unit sphere, and an estimator
that forgets it is wrong by a factor of :math:`d`.

========== ==================================== ===== ==========================================
directions law                                  c     variance of one estimate of g, coordinate i
========== ==================================== ===== ==========================================
Gaussian   :math:`\mathcal{N}(0, I)`            1     :math:`|g|^2 + g_i^2`
Sphere     uniform on :math:`|u| = 1`           d     :math:`(d |g|^2 + 2 d g_i^2)/(d+2) - g_i^2`
Rademacher independent signs                    1     :math:`|g|^2 - g_i^2`
========== ==================================== ===== ==========================================

References:
    | Random Gradient-Free Minimization of Convex Functions (Nesterov & Spokoiny, 2017)
    | https://doi.org/10.1007/s10208-015-9296-2
"""

__all__ = ["Directions", "Gaussian", "Rademacher", "Sphere"]

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Directions(Protocol):
    """A law of directions, and the scale of eq. (1)."""

    def sample(self, like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws directions of the shape, dtype and device of ``like``; its last axis is d."""
        ...

    def scale(self, d: int) -> float:
        """Returns the factor c of eq. (1) in ``d`` dimensions."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Standard normal directions."""

    def sample(self, like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws directions of the shape, dtype and device of ``like``; its last axis is d."""
        return torch.empty_like(like).normal_(generator=generator)

    def scale(self, d: int) -> float:  # noqa: ARG002 - as the Protocol has it
        """Returns 1."""
        return 1.0


@dataclass(frozen=True)
class Sphere:
    """Directions uniform on the unit sphere."""

    def sample(self, like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws directions of the shape, dtype and device of ``like``; its last axis is d."""
        u = Gaussian().sample(like, generator=generator)
        return torch.nn.functional.normalize(u, dim=-1)

    def scale(self, d: int) -> float:
        """Returns d."""
        return float(d)


@dataclass(frozen=True)
class Rademacher:
    """Independent random signs; in total as little variance as the sphere, less than Gaussian."""

    def sample(self, like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws directions of the shape, dtype and device of ``like``; its last axis is d."""
        return torch.empty_like(like).bernoulli_(0.5, generator=generator) * 2 - 1

    def scale(self, d: int) -> float:  # noqa: ARG002 - as the Protocol has it
        """Returns 1."""
        return 1.0
