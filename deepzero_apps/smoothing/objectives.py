r"""What a denoiser is trained for.

For clean images :math:`x`, noisy ones :math:`x + \sigma \epsilon`, a denoiser :math:`D` and a
classifier :math:`f` with scores read as logits:

- **reconstruction**: :math:`|D(x + \sigma\epsilon) - x|^2`, the mean over pixels; needs no classifier.
- **classification**: cross-entropy of :math:`f(D(x + \sigma\epsilon))` to the label of x.
- **stability**: cross-entropy to the classifier's own clean answer, :math:`\arg\max f(x)`; needs no
  labels, and costs one query an image, once.

The last two differ in their targets only. As a head they take stacked images ``(k, b, c, h, w)``
to losses ``(k, b)``, so that the same object serves every estimator: the images may be
perturbed themselves, or come from k perturbed networks.

References:
    | Denoised Smoothing (Salman et al., 2020), https://arxiv.org/abs/2003.01908

    | How to Robustify Black-Box ML Models? (Zhang et al., 2022), https://arxiv.org/abs/2203.14195
"""

__all__ = ["Scores", "cross_entropy_head", "reconstruction"]

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Scores = Callable[[Tensor], Tensor]
"""Images ``(n, c, h, w)`` to scores ``(n, classes)``."""


def reconstruction(images: Tensor, clean: Tensor) -> Tensor:
    """Returns each image's mean squared error, of shape ``(b,)``."""
    return (images - clean).square().flatten(1).mean(1)


def cross_entropy_head(scores: Scores, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes the head of classification and stability.

    Args:
        scores: The classifier. It sees images clipped to [0, 1].
        targets: The classes wanted, int64 of shape ``(b,)``.

    Returns:
        Stacked images ``(k, b, c, h, w)`` to losses ``(k, b)``.
    """

    def head(images: Tensor) -> Tensor:
        k, b = images.shape[:2]
        logits = scores(images.flatten(0, 1).clamp(0, 1))
        losses = functional.cross_entropy(logits, targets.repeat(k), reduction="none")
        return losses.view(k, b)

    return head
