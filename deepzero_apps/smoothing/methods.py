r"""Gradients of a denoiser that stands before a classifier: the methods of the defence table.

A batch of noisy images :math:`x + \sigma\epsilon` passes the denoiser :math:`D_\theta`, the result
:math:`z` passes the classifier :math:`f`, and its loss (``objectives``) is to fall: the cross-entropy
of scores to the target, or the errors of labels. The methods differ in where autograd ends and
finite differences begin:

================ ==================== ============================== =======================
class            name in the table    differences are taken in       queries an image, step
================ ==================== ============================== =======================
`Reconstruction` ``mse``              nothing; no classifier         0
`WhiteBox`       ``fo-ds``            nothing; all is autograd       (its gradients)
`AtImage`        ``zo-ds``            z, by RGE                      q + 1
`AtLatent`       ``zo-ae-ds``         a code of few numbers, by CGE  2 d_z + 1, d_z + 1 forward
`OnWeights`      ``deepzero``         theta, by sparse CGE           k + 1
`WithSurrogate`  ``zo-cv`` (ours)     z, by RGE with a control       q + 1
                                      variate
================ ==================== ============================== =======================

**The control variate.** Each answer of the black box is paid for, and each is a training pair. A
surrogate network :math:`s` is fitted to them while the denoiser is trained. Its gradient is free, and
what it gets wrong is measured by the same finite differences that `AtImage` takes. With
:math:`\ell` the loss through the black box and :math:`\ell_s` through the surrogate,

.. math::
    \hat g = \beta \nabla \ell_s + \frac{w}{q} \sum_{i=1}^{q} \left[
        \frac{\ell(z + \mu u_i) - \ell(z)}{\mu} - \beta \nabla \ell_s \cdot u_i \right] u_i    \tag{1}

With w = 1 this is unbiased for the smoothed loss whatever :math:`s` is; a surrogate that has
learnt nothing leaves the randomized estimate. Two numbers are chosen, not tuned:

- :math:`\beta` is the regression of measured slopes on predicted ones (a running one over the
  fifty or so steps before): 0 for a useless surrogate, 1 for a good one.
- For a residual :math:`r = \nabla\ell - \beta\nabla\ell_s` and Gaussian directions the second
  term has mean :math:`w r` and mean squared error :math:`|r|^2 [(1 - w)^2 + w^2 (d + 1) / q]`, least at

.. math::
    w = \frac{q}{q + d + 1}                                                        \tag{2}

  whatever :math:`r` is. The price is a bias towards the surrogate, never a wrong sign of r.

**Labels alone.** Then :math:`\ell` is the error, 0 or 1, and eq. (1) estimates the gradient of the
smoothed error :math:`\ell_\mu(z) = P[f(z + \mu u) \ne y]`. The surrogate is fitted to labels by
cross-entropy, so that its probabilities estimate those of the labels, and the loss through it that is in the
same unit as an error is its expectation,

.. math::
    \ell_s(z) = 1 - \mathrm{softmax}(s(z))_y                                        \tag{3}

With (3) in (1) everything above holds: unbiased for :math:`\nabla \ell_\mu` with w = 1 whatever
:math:`s` is, by the linearity of its second term in the predicted slopes. A cross-entropy through the
surrogate would be in another unit; with it, denoisers ran to where the surrogate was wrong.

**Rounded images.** A service of b bits sees :math:`\ell(Q(z))`, Q rounding to multiples of :math:`\delta =
1 / (2^b - 1)`. Randomized differences take that in their stride, if the step is wide enough. For a loss
linear in a pixel, by the Fourier series of rounding,

.. math::
    \frac{1}{\mu} \mathbb{E}[Q(z + \mu u) u] = 1 + 2 \sum_{k \ge 1} (-1)^k
        \cos\frac{2 \pi k z}{\delta} \, e^{-2 \pi^2 k^2 \mu^2 / \delta^2}             \tag{4}

which is 1 to 1.4 % at :math:`\mu = \delta / 2`, to 5e-9 at :math:`\delta` and to 1e-34 at
:math:`2 \delta`. What remains is noise: two rounding errors of variance :math:`\delta^2 / 12` beside a
displacement of variance :math:`\mu^2`, in all :math:`\delta^2 / 6 \mu^2` of the estimate's variance.
`smallest_step` is :math:`2 \delta`, where that is 1/24. The slope is multiplied with u and not with the
displacement :math:`v = [Q(z + \mu u) - Q(z)] / \mu` that the service saw: v has mean :math:`\rho / \mu` with
:math:`\rho = z - Q(z)`, so that :math:`\mathbb{E}[v v^\top] = (1 + \delta^2 / 12 \mu^2) I + \rho \rho^\top /
\mu^2`, and the last term, of norm up to :math:`d \delta^2 / 4 \mu^2`, turns gradients.
Steps in codes and weights move many pixels, each by less: there is no such rule for them.

References:
    | Denoised Smoothing (Salman et al., 2020), https://arxiv.org/abs/2003.01908

    | How to Robustify Black-Box ML Models? (Zhang et al., 2022), https://arxiv.org/abs/2203.14195

    | DeepZero (Chen et al., 2024), https://arxiv.org/abs/2310.02025

    | Guided evolutionary strategies (Maheswaranathan et al., 2019), https://arxiv.org/abs/1806.10230
"""

__all__ = [
    "AtImage",
    "AtLatent",
    "Batch",
    "Compressed",
    "Method",
    "OnWeights",
    "Reconstruction",
    "WhiteBox",
    "smallest_step",
]

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from deepzero_apps.smoothing.denoisers import Autoencoder
from deepzero_apps.smoothing.objectives import Answers, loss_head, reconstruction
from deepzero_apps.zeroth_order.bridge import Estimator, bridge
from deepzero_apps.zeroth_order.estimators import coordinate, randomized
from deepzero_apps.zeroth_order.gradients import WeightGradient
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        step: The number of the step.
        clean: Images ``(b, c, h, w)`` in [0, 1].
        noisy: The same with Gaussian noise, not clipped.
        targets: The classes wanted, int64 ``(b,)``.
    """

    step: int
    clean: Tensor
    noisy: Tensor
    targets: Tensor


class Method(Protocol):
    """A way to the gradient of a denoiser."""

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """Mean squared error to the clean image; asks the classifier nothing."""

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        return _backward(reconstruction(network(batch.noisy), batch.clean))


@dataclass(frozen=True)
class WhiteBox:
    """Backpropagation through the classifier: the ceiling, where one exists.

    Args:
        scores: The differentiable classifier.
    """

    scores: Answers

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        head = loss_head(self.scores, batch.targets)
        return _backward(head(network(batch.noisy)[None])[0])


@dataclass(frozen=True)
class AtImage:
    """Randomized differences at the denoised image, autograd through the denoiser.

    Args:
        answers: The metered black box.
        mu: The step, in units of the pixels.
        q: The number of directions an image.
        seed: The seed of the directions.
    """

    answers: Answers
    mu: float
    q: int
    seed: int = 0

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        generator = generator_for(self.seed, "directions", batch.step, device=batch.noisy.device)
        estimator: Estimator = partial(randomized, mu=self.mu, q=self.q, generator=generator)
        head = loss_head(self.answers, batch.targets)
        return _backward(bridge(head, network(batch.noisy), estimator))


class Compressed(nn.Module):
    """A denoiser followed by an autoencoder whose decoder belongs to the black box.

    Args:
        denoiser: Images to images.
        autoencoder: Its encoder is trained with the denoiser; its decoder stays as it is.
    """

    def __init__(self, denoiser: nn.Module, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.autoencoder = autoencoder

    def encode(self, images: Tensor) -> Tensor:
        """Maps noisy images ``(n, c, h, w)`` to codes ``(n, latent)``."""
        return self.autoencoder.encode(self.denoiser(images))

    def forward(self, images: Tensor) -> Tensor:
        """Maps noisy images ``(n, c, h, w)`` to denoised ones."""
        return self.autoencoder.decode(self.encode(images))


@dataclass(frozen=True)
class AtLatent:
    """Coordinate-wise differences at an autoencoder's code (ZO-AE-DS).

    Args:
        answers: The metered black box.
        mu: The step, in units of the code.
        central: Whether to take differences on both sides, as the paper's code does.
    """

    answers: Answers
    mu: float
    central: bool = False

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of denoiser and encoder and returns what it saw.

        Raises:
            TypeError: If ``network`` is not `Compressed`.
        """
        if not isinstance(network, Compressed):
            raise TypeError(f"network must be Compressed, got {type(network).__name__}")
        estimator: Estimator = partial(coordinate, mu=self.mu, central=self.central)
        head = loss_head(self.answers, batch.targets)
        decode = network.autoencoder.decode

        def decoded_head(codes: Tensor) -> Tensor:
            return head(decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]))

        return _backward(bridge(decoded_head, network.encode(batch.noisy), estimator))


@dataclass(frozen=True)
class OnWeights:
    """Differences in the denoiser's weights: DeepZero's own mode.

    Args:
        answers: The metered black box.
        gradient: How the weights are moved, for example `Coordinates` on a sparse support.
    """

    answers: Answers
    gradient: WeightGradient

    def __call__(self, network: nn.Module, batch: Batch) -> Observation:
        """Writes ``.grad`` of the trainable parameters and returns what it saw."""
        head = loss_head(self.answers, batch.targets)
        return self.gradient(network, batch.noisy, head, step=batch.step)


def smallest_step(bits: int) -> float:
    """Returns the least step for differences in pixels rounded to ``bits`` bits: two levels."""
    levels: int = 2**bits - 1
    return 2 / levels


def _backward(losses: Tensor) -> Observation:
    loss = losses.mean()
    loss.backward()
    return Observation(float(loss.detach()))
