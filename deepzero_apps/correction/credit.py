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

from collections.abc import Iterable, Mapping
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
        powers = self.powers(signs, responses, first_lag=first_lag)
        self.learn({lag: now.to(responses) for lag, now in powers.items()})
        return self.estimate(signs, responses, self.windows(powers))

    def powers(self, signs: Tensor, responses: Tensor, *, first_lag: int) -> dict[int, Tensor]:
        """Measures signal and total power by lag and offset, eqs. (2), (3); learns nothing.

        Equal pieces may be measured apart: the mean of their powers is that of them all.

        Args:
            signs: As `assign` has them.
            responses: As `assign` has them.
            first_lag: As `assign` has it.

        Returns:
            By lag, float64 ``(2, channels, c, 2 r + 1, 2 r + 1)``.

        Raises:
            ValueError: If q is less than 2.
        """
        n, q = signs.shape[:2]
        if q < 2:
            raise ValueError(f"q must be at least 2, to tell signal from noise, got {q}")
        if n <= first_lag:
            return {}
        size = self._size(signs)
        both = signs[: n - first_lag], responses[first_lag:]
        products = [torch.fft.rfft2((x * x.roll(1, 1)).double(), s=size) for x in both]
        squares = [torch.fft.rfft2(x.square().double(), s=size) for x in both]
        powers = {}
        for lag in range(first_lag, n):
            kept, passed = n - lag, lag - first_lag
            signal, single = (
                self._correlated(a[:kept], b[passed:], like=signs) for a, b in (products, squares)
            )
            powers[lag] = torch.stack((signal, signal + (single - signal) / q))
        return powers

    def learn(self, powers: Mapping[int, Tensor]) -> None:
        """Takes an update's powers into the moments."""
        self._updates += 1
        kept = min(self.memory, 1 - 1 / self._updates)  # a mean of all at first
        for lag, now in powers.items():
            before = self._moments.get(lag)
            self._moments[lag] = now if before is None else kept * before + (1 - kept) * now

    def estimate(self, signs: Tensor, responses: Tensor, windows: Mapping[int, Tensor]) -> Tensor:
        r"""Weighs causes and effects by windows, eq. (2); learns nothing.

        Args:
            signs: As `assign` has them.
            responses: As `assign` has them.
            windows: The factors by lag, as `windows` gives them.

        Returns:
            The estimate :math:`\lambda`, of shape ``(n, b, channels, rows, columns)``.
        """
        n = len(signs)
        total = torch.zeros_like(signs[:, 0])
        for lag, window in windows.items():
            causes, effects = signs[: n - lag], responses[lag:]
            believed = functional.conv2d(self._padded(effects), window)
            total[: n - lag] += (causes * believed.unflatten(0, causes.shape[:3])).mean(1)
        return total

    def windows(self, lags: Iterable[int]) -> dict[int, Tensor]:
        """Returns the factors at some lags, each as `window` has it."""
        return {lag: self.window(lag) for lag in lags}

    def share(self, changes: Tensor, predicted: Tensor) -> float:
        """Fits how much of a prediction comes true, by least squares over fading updates.

        Args:
            changes: What was measured.
            predicted: What was predicted, of the same shape.

        Returns:
            The slope of the one on the other.
        """
        return self.fit(self.sums(changes, predicted))

    @staticmethod
    def sums(changes: Tensor, predicted: Tensor) -> tuple[float, float]:
        """Returns the two sums that least squares need; those of pieces add up."""
        return float((changes * predicted).sum()), float(predicted.square().sum())

    def fit(self, now: tuple[float, float]) -> float:
        """Takes an update's `sums` into the fit, and returns the slope."""
        kept, before = self.memory, self._fit
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

    def _size(self, x: Tensor) -> tuple[int, int]:
        """The grid of the transforms: zeros around, so that nothing comes in again."""
        down, across = self._radii(x)
        rows, columns = x.shape[-2:]
        beyond = 0 if self.periodic else 1
        return rows + beyond * down, columns + beyond * across

    def _correlated(self, a: Tensor, b: Tensor, *, like: Tensor) -> Tensor:
        """The mean of a(k) b(k + o) over all but channels and offsets o, from their transforms."""
        down, across = self._radii(like)
        together = torch.einsum("nqbzij,nqbcij->zcij", a.conj(), b)
        sums = torch.fft.irfft2(together, s=self._size(like)).roll((down, across), (-2, -1))
        count = a.shape[0] * like[0, :, :, 0].numel()
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
