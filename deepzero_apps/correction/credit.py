r"""Windows of credit: how far from its cause an effect is still believed.

Random signs :math:`\epsilon` are added to all controls of a piece at once. The loss then changes by
:math:`\sum \rho_t(k)`, one response a cell and step, and

.. math::
    g_l(k; o) = \epsilon_t(k)\, \rho_{t+l}(k + o) / \mu                           \tag{1}

has the mean :math:`\partial L_{t+l}(k + o) / \partial z_t(k)`: the part of the gradient at cell k that
comes about l steps later and o cells away. Their sum over all o and l is the randomized estimate
(RGE): unbiased, and drowned in the noise of all other signs. Far effects are small and just as
noisy as near ones. So each part is multiplied with the factor of least squared error (Wiener),

.. math::
    \lambda_t(k) = \sum_{l, o} w_l(o)\, \bar g_l(k; o), \qquad
    w_l(o) = \frac{\operatorname{E}_k\, (\operatorname{E}\, g_l)^2}
                  {\operatorname{E}_k\, (\bar g_l)^2}                             \tag{2}

where the bar is the mean over q directions. The numerator needs no truth: two directions have
independent noise, so that the mean product of their g is an unbiased estimate of it,

.. math::
    \frac1K \sum_k g^{(i)}(k; o)\, g^{(j)}(k; o) = \frac1K \sum_k
        [\epsilon^{(i)} \epsilon^{(j)}](k)\; [\rho^{(i)} \rho^{(j)}](k + o) / \mu^2,      \tag{3}

a correlation of two fields, which a Fourier transform gives for all offsets at once. All moments are
averaged over pairs of neighboring directions, steps, pieces and (fading) over the updates before, so
the window finds its size, its shape, its drift with the flow and its shrinkage from the queries
that are paid for anyway.
"""

__all__ = ["Credit"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Credit:
    """The factors of eq. (2), learned as they are used.

    Args:
        radius: The largest offset along each axis, in cells; less where a window would be wider
            than the grid and count a cell twice.
        periodic: Whether what leaves the grid comes in at the other side.
        memory: The most weight of all earlier measurements in the moments, in [0, 1); the first
            ones are weighted alike.
        least: Factors below this are taken for zero: measured from few directions, most of them
            are noise.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        radius: int = 4,
        *,
        periodic: bool = False,
        memory: float = 0.99,
        least: float = 0.1,
    ) -> None:
        if radius < 0:
            raise ValueError(f"radius must be at least 0 cells, got {radius}")
        if not 0 <= memory < 1:
            raise ValueError(f"memory must lie in [0, 1), got {memory}")
        if not 0 <= least < 1:
            raise ValueError(f"least must lie in [0, 1), got {least}")
        self.radius = radius
        self.periodic = periodic
        self.memory = memory
        self.least = least
        self._updates = 0
        self._moments: dict[int, Tensor] = {}
        self._fit: tuple[float, float] | None = None

    def assign(self, signs: Tensor, responses: Tensor, *, first_lag: int) -> Tensor:
        r"""Estimates the gradient with respect to the controls, eq. (2).

        Args:
            signs: Of shape ``(n, q, b, channels, rows, columns)``, q at least 2.
            responses: What each number of the states adds to the loss's change, already divided
                by :math:`\mu`, of shape ``(n, q, b, c, rows, columns)``.
            first_lag: The steps after which an effect can first be seen, 0 or 1.

        Returns:
            The estimate :math:`\lambda`, of shape ``(n, b, channels, rows, columns)``.

        Raises:
            ValueError: If q is less than 2.
        """
        n, q = signs.shape[:2]
        if q < 2:
            raise ValueError(f"q must be at least 2, to tell signal from noise, got {q}")
        self._updates += 1
        total = torch.zeros_like(signs[:, 0])
        for lag in range(first_lag, n):
            causes, effects = signs[: n - lag], responses[lag:]
            self._measure(lag, causes, effects)
            believed = functional.conv2d(self._padded(effects), self.window(lag))
            total[: n - lag] += (causes * believed.unflatten(0, causes.shape[:3])).mean(1)
        return total

    def share(self, changes: Tensor, predicted: Tensor) -> float:
        """Fits how much of a prediction comes true, by least squares over fading updates.

        Args:
            changes: What was measured.
            predicted: What was predicted, of the same shape.

        Returns:
            The slope of the one on the other.
        """
        now = (float((changes * predicted).sum()), float(predicted.square().sum()))
        kept = self.memory
        before = self._fit
        self._fit = (
            now
            if before is None
            else (
                kept * before[0] + (1 - kept) * now[0],
                kept * before[1] + (1 - kept) * now[1],
            )
        )
        return self._fit[0] / self._fit[1] if self._fit[1] > 0 else 0.0

    def window(self, lag: int) -> Tensor:
        """Returns the factors at a lag, ``(channels, c, 2 r + 1, 2 r + 1)``, for figures."""
        signal, total = self._moments[lag]
        factors: Tensor = signal / total.clamp_min(torch.finfo(total.dtype).tiny)
        return torch.where(factors < self.least, 0, factors.clamp(0, 1))

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments."""
        moments = {str(lag): moments for lag, moments in self._moments.items()}
        return {"updates": self._updates, "moments": moments, "fit": self._fit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict()`` returned."""
        self._updates = state["updates"]
        self._fit = None if state["fit"] is None else tuple(state["fit"])
        self._moments = {int(lag): moments for lag, moments in state["moments"].items()}

    def _measure(self, lag: int, causes: Tensor, effects: Tensor) -> None:
        now = self._powers(causes, effects)
        before = self._moments.get(lag)
        kept = min(self.memory, 1 - 1 / self._updates)  # a mean of all at first
        self._moments[lag] = now if before is None else kept * before + (1 - kept) * now

    def _powers(self, causes: Tensor, effects: Tensor) -> Tensor:
        """Signal and total power by offset, ``(2, channels, c, 2 r + 1, 2 r + 1)``, eqs. (2), (3)."""
        signal = self._correlated(*(x * x.roll(1, 1) for x in (causes, effects)))
        single = self._correlated(causes.square(), effects.square())
        return torch.stack((signal, signal + (single - signal) / causes.shape[1])).to(effects)

    def _correlated(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean of a(k) b(k + o) over all but channels and offsets o, float64."""
        down, across = self._radii(a)
        rows, columns = a.shape[-2:]
        beyond = 0 if self.periodic else 1  # zeros around, so that nothing comes in again
        size = (rows + beyond * down, columns + beyond * across)
        first, second = (torch.fft.rfft2(x.double(), s=size) for x in (a, b))
        together = torch.einsum("nqbzij,nqbcij->zcij", first.conj(), second)
        sums = torch.fft.irfft2(together, s=size).roll((down, across), (-2, -1))
        count = a[:, :, :, 0].numel()
        means: Tensor = sums[..., : 2 * down + 1, : 2 * across + 1] / count
        return means

    def _padded(self, effects: Tensor) -> Tensor:
        down, across = self._radii(effects)
        by = (across, across, down, down)
        mode = "circular" if self.periodic else "constant"
        return functional.pad(effects.flatten(0, 2), by, mode=mode)

    def _radii(self, x: Tensor) -> tuple[int, int]:
        """The radius along rows and columns; on a periodic side no two offsets meet in a cell."""
        rows, columns = ((n - 1) // 2 if self.periodic else n - 1 for n in x.shape[-2:])
        return min(self.radius, rows), min(self.radius, columns)
