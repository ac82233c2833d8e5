r"""Which coordinates a sparse gradient estimate pays for.

A sparse estimate moves :math:`k` of :math:`d` weights, :math:`k_l` of the :math:`d_l` weights of each
layer :math:`l`, drawn at random anew every few steps: the *gradient* is sparse, the model stays dense.
Three ways to split :math:`k` over the layers:

**By score** (DeepZero). GraSP scores a weight by what its removal does to the gradient norm,

.. math::
    S = -\theta \odot H g \;\approx\; -\theta \odot
        \frac{\hat g(\theta + \mu \hat g(\theta)) - \hat g(\theta)}{\mu}              \tag{1}

with both estimates :math:`\hat g` from *the same* directions, so that their noise cancels. The
weights with the smallest scores are kept (a large score: removal raises the gradient norm), sign
included, and only their number in each layer is used. The estimate costs :math:`2 (q + 1)` queries.

**By size**: :math:`k_l \propto d_l`, no queries.

**By energy** (ours). What a layer gives is its mean squared slope :math:`|g_l|^2 / d_l`. Directions
:math:`u` that move one layer alone measure it without bias, since
:math:`\mathbb{E}[(g_l \cdot u)^2] = |g_l|^2` for Gaussian u; a few queries a layer suffice, where (1)
needs thousands to rise above its noise. Then

.. math::
    k_l \propto d_l \, (|g_l|^2 / d_l)^p, \quad k_l \le d_l                           \tag{2}

p = 0 is *by size*; p = 1/2 gives the unbiased estimate :math:`(d_l / k_l)\, g_S` of least variance
(Neyman's allocation); p = 1 spends in proportion to energy; a large p approaches the largest
energy that k coordinates can catch.

References:
    | DeepZero (Chen et al., 2024), Sec. 4, https://arxiv.org/abs/2310.02025

    | Picking Winning Tickets Before Training by Preserving Gradient Flow (Wang et al., 2020)
    | https://arxiv.org/abs/2002.07376

    | On the Two Different Aspects of the Representative Method (Neyman, 1934)
    | https://doi.org/10.2307/2342192
"""

__all__ = [
    "Schedule",
    "SupportSchedule",
    "counts_by_energy",
    "counts_by_score",
    "counts_by_size",
    "draw",
    "grasp",
    "layer_energies",
    "shares_by_energy",
    "shares_by_size",
    "zo_grasp",
]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.estimators import Loss, randomized
from deepzero_apps.zeroth_order.randomness import generator_for


def zo_grasp(loss: Loss, x: Tensor, *, mu: float, q: int, generator: torch.Generator) -> Tensor:
    """Estimates GraSP scores from values alone, eq. (1).

    Args:
        loss: The black box, points ``(k, d)`` to values ``(k,)``.
        x: The weights, of shape ``(d,)``.
        mu: The step, in the units of ``x``.
        q: The number of directions of each of the two estimates.
        generator: The source of the directions.

    Returns:
        The scores, of shape ``(d,)``; the smallest belong to the weights to keep.
    """
    before = generator.get_state()
    g = randomized(loss, x, mu=mu, q=q, generator=generator)
    generator.set_state(before)
    g_ahead = randomized(loss, x + mu * g, mu=mu, q=q, generator=generator)
    return -x.detach() * (g_ahead - g) / mu


def grasp(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Computes GraSP scores by autograd, for comparison with ``zo_grasp``.

    Args:
        loss: The scalar loss, with its graph.
        parameters: The weights, in the order of the flat coordinates.

    Returns:
        The scores, of shape ``(d,)``.
    """
    g = torch.autograd.grad(loss, parameters, create_graph=True)
    norm = sum(((part * part.detach()).sum() for part in g), start=loss.new_zeros(()))
    curvature = torch.autograd.grad(norm, parameters)
    return torch.cat(
        [(-w.detach() * h).flatten() for w, h in zip(parameters, curvature, strict=True)]
    )


def layer_energies(
    loss: Loss,
    x: Tensor,
    sizes: Sequence[int],
    *,
    mu: float,
    q: int,
    generator: torch.Generator,
) -> Tensor:
    """Estimates the squared gradient norm of each layer, without bias as ``mu`` goes to 0.

    Args:
        loss: The black box, points ``(k, d)`` to values ``(k,)``.
        x: The weights, of shape ``(d,)``.
        sizes: The number of weights of each layer; their sum is d.
        mu: The step, in the units of ``x``.
        q: The number of directions a layer; the relative error of a layer is sqrt(2 / q).
        generator: The source of the directions.

    Returns:
        The energies, of shape ``(len(sizes),)``; ``len(sizes) * q + 1`` queries.

    Raises:
        ValueError: If the sizes do not add up to d, or ``q`` is not positive.
    """
    if sum(sizes) != x.numel():
        raise ValueError(f"sizes must add up to {x.numel()}, got {sum(sizes)}")
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    x = x.detach()
    base = loss(x[None])[0]
    energies = []
    start = 0
    for size in sizes:
        points = x.repeat(q, 1)
        u = torch.empty(q, size, dtype=x.dtype, device=x.device).normal_(generator=generator)
        points[:, start : start + size] += mu * u
        energies.append((((loss(points) - base) / mu) ** 2).mean())
        start += size
    return torch.stack(energies)


def shares_by_size(sizes: Sequence[int], kept: int) -> list[float]:
    """Splits coordinates over layers in proportion to the layers' sizes.

    Returns:
        The expected number of coordinates of each layer, often a fraction; their sum is ``kept``.
    """
    return [float(share) for share in _shares(np.asarray(sizes, dtype=float), sizes, kept)]


def counts_by_size(sizes: Sequence[int], kept: int) -> list[int]:
    """Rounds ``shares_by_size`` to whole numbers that add up to ``kept``."""
    return _rounded(shares_by_size(sizes, kept), sizes, kept)


def counts_by_score(scores: Tensor, sizes: Sequence[int], kept: int) -> list[int]:
    """Counts, for each layer, its coordinates among the ``kept`` smallest scores.

    Args:
        scores: GraSP scores, of shape ``(d,)``.
        sizes: The number of weights of each layer; their sum is d.
        kept: The number of coordinates in all, from 1 to d.

    Returns:
        The number of coordinates of each layer.
    """
    _check_kept(sizes, kept)
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.argsort(stable=True)[:kept].cpu()] = True
    return [int(part.sum()) for part in chosen.split(list(sizes))]


def counts_by_energy(
    energies: Tensor, sizes: Sequence[int], kept: int, *, exponent: float = 0.5
) -> list[int]:
    """Rounds ``shares_by_energy`` to whole numbers that add up to ``kept``."""
    return _rounded(shares_by_energy(energies, sizes, kept, exponent=exponent), sizes, kept)


def shares_by_energy(
    energies: Tensor, sizes: Sequence[int], kept: int, *, exponent: float = 0.5
) -> list[float]:
    """Splits coordinates over layers by what the layers give, eq. (2).

    Args:
        energies: Squared gradient norms of the layers, from ``layer_energies``.
        sizes: The number of weights of each layer.
        kept: The number of coordinates in all, from 1 to d.
        exponent: The exponent p of eq. (2), at least 0.

    Returns:
        The expected number of coordinates of each layer; their sum is ``kept``.

    Raises:
        ValueError: If ``exponent`` is negative or an energy is negative or not finite.
    """
    if not exponent >= 0:
        raise ValueError(f"exponent must be at least 0, got {exponent}")
    energy = energies.detach().cpu().double().numpy()
    if not (np.isfinite(energy) & (energy >= 0)).all():
        raise ValueError(f"energies must be finite and at least 0, got {energy.tolist()}")
    d = np.asarray(sizes, dtype=float)
    density = energy / d
    density /= density.max() or 1.0
    return [float(share) for share in _shares(d * density**exponent, sizes, kept)]


def draw(counts: Sequence[int], sizes: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Draws coordinates at random inside each layer, without repeats.

    Returns:
        Sorted flat coordinates, of shape ``(sum(counts),)``.
    """
    parts, start = [], 0
    for count, size in zip(counts, sizes, strict=True):
        order = torch.randperm(size, generator=generator, device=generator.device)
        parts.append(order[:count].sort().values + start)
        start += size
    return torch.cat(parts)


class Schedule(Protocol):
    """Which coordinates a step moves: a pure function of the step."""

    @property
    def total(self) -> int:
        """The number of coordinates of every draw."""
        ...

    def at(self, step: int) -> Tensor:
        """Returns the sorted flat coordinates of a step."""
        ...

    def redrawn(self, step: int) -> bool:
        """Tells whether a step is the first of a draw."""
        ...


@dataclass(frozen=True)
class SupportSchedule:
    """Coordinates drawn anew every ``interval`` steps: a pure function of seed and step.

    A share may be a fraction: a layer with a share of .3 gets one coordinate in 30 % of the draws
    (systematic sampling with one random start), so that no layer is left out for good however few
    coordinates there are. Every draw has the same number of coordinates in all.

    Args:
        shares: The expected number of coordinates of each layer; their sum is a whole number.
        sizes: The number of weights of each layer.
        interval: How many steps share a draw.
        seed: The seed of the draws.

    Raises:
        ValueError: If ``interval`` is not positive, a share does not lie in [0, size], or the sum
            is no whole number.
    """

    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    interval: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")
        for share, size in zip(self.shares, self.sizes, strict=True):
            if not 0 <= share <= size + 1e-9:
                raise ValueError(f"shares must lie in [0, size], got {share} of {size}")
        if abs(sum(self.shares) - self.total) > 1e-6:
            raise ValueError(f"shares must add up to a whole number, got {sum(self.shares)}")

    @property
    def total(self) -> int:
        """The number of coordinates of every draw."""
        return round(sum(self.shares))

    def at(self, step: int) -> Tensor:
        """Returns the sorted flat coordinates of a step."""
        generator = generator_for(self.seed, "support", step // self.interval)
        return draw(self._counts(generator), self.sizes, generator=generator)

    def redrawn(self, step: int) -> bool:
        """Tells whether a step is the first of a draw."""
        return step % self.interval == 0

    def _counts(self, generator: torch.Generator) -> list[int]:
        start = float(torch.rand((), generator=generator, dtype=torch.float64))
        ends = np.round(np.cumsum(self.shares), 9)
        ends[-1] = self.total
        steps = np.floor(np.concatenate(([0.0], ends)) + start).astype(int)
        return [int(count) for count in np.diff(steps)]


def _check_kept(sizes: Sequence[int], kept: int) -> None:
    if not 1 <= kept <= sum(sizes):
        raise ValueError(f"kept must lie in [1, {sum(sizes)}], got {kept}")


def _shares(weight: np.ndarray, sizes: Sequence[int], kept: int) -> np.ndarray:
    """Fractions in proportion to ``weight`` that add up to ``kept``, none above its size."""
    _check_kept(sizes, kept)
    size = np.asarray(sizes)
    share = np.zeros(len(size))
    free = np.ones(len(size), dtype=bool)
    while (left := kept - share.sum()) > 1e-9:  # fill, cap what is full, hand the rest on
        w = np.where(free, weight, 0.0)
        w = w if w.sum() > 0 else free * size
        share = np.minimum(share + left * w / w.sum(), size)
        free = share < size
    return share


def _rounded(shares: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """Whole numbers near the shares that add up to ``kept``, by largest remainder."""
    share = np.asarray(shares)
    counts = np.floor(share + 1e-9).astype(int)
    by_remainder = np.argsort(-(share - counts), kind="stable")
    room = [i for i in by_remainder if counts[i] < sizes[i]]
    counts[room[: kept - int(counts.sum())]] += 1
    return [int(c) for c in counts]
