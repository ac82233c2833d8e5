r"""What a denoiser is trained for.

For clean images :math:`x`, noisy ones :math:`x + \sigma \epsilon`, a denoiser :math:`D` and a
classifier :math:`f`:

- **reconstruction**: :math:`|D(x + \sigma\epsilon) - x|^2`, the mean over pixels; needs no classifier.
- **classification**: :math:`f(D(x + \sigma\epsilon))` is to be the label of x.
- **stability**: it is to be the classifier's own clean answer, :math:`\arg\max f(x)`; needs no
  labels, and costs one query an image, once.

The last two differ in their targets only. What is measured of an answer depends on what came:

- **scores**, read as logits: their cross-entropy to the target y.
- **a label alone**: the error :math:`\ell(z) = 1[f(z) \ne y]`. It is flat wherever it is smooth, so
  that its differences say something of a step as wide as the boundary is near:

.. math::
    \ell_\mu(z) = \mathbb{E}_u \, \ell(z + \mu u) = P[f(z + \mu u) \ne y], \qquad u \sim
    \mathcal{N}(0, I)                                                              \tag{1}

  is smooth, and randomized differences are unbiased for its gradient at any :math:`\mu`. Averaged
  over noise and images it is the share of noisy votes that are lost, which certificates bound.
- **nothing**, for an image that a service lost: scores that are all NaN count as uniform ones, and
  label -1 counts as an error. Neither is a class.

As a head, classification and stability take stacked images ``(k, b, c, h, w)``
to losses ``(k, b)``, so that the same object serves every estimator: the images may be
perturbed themselves, or come from k perturbed networks. All k meet the same noise (common random
numbers), without which a difference of errors would measure the noise.

References:
    | Denoised Smoothing (Salman et al., 2020), https://arxiv.org/abs/2003.01908

    | How to Robustify Black-Box ML Models? (Zhang et al., 2022), https://arxiv.org/abs/2203.14195
"""

__all__ = ["Answers", "loss_head", "losses_of", "reconstruction", "usable"]

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Answers = Callable[[Tensor], Tensor]
"""Images ``(n, c, h, w)`` to scores ``(n, classes)`` or labels ``(n,)``, -1 for none."""


def reconstruction(images: Tensor, clean: Tensor) -> Tensor:
    """Returns each image's mean squared error, of shape ``(b,)``."""
    return (images - clean).square().flatten(1).mean(1)


def usable(answer: Tensor) -> Tensor:
    """Reads scores of lost images, all NaN, as scores that prefer no class.

    Args:
        answer: Scores ``(n, classes)`` or labels ``(n,)``.

    Returns:
        The same, with zeros in rows that are all NaN; labels as they are.
    """
    if answer.ndim == 1:
        return answer
    return answer.masked_fill(answer.isnan().all(1, keepdim=True), 0)


def losses_of(answer: Tensor, targets: Tensor) -> Tensor:
    """Measures answers: cross-entropy of scores, errors of labels.

    Args:
        answer: Scores ``(n, classes)`` or labels ``(n,)``; lost ones as above.
        targets: The classes wanted, int64 of shape ``(n,)``.

    Returns:
        Losses of shape ``(n,)``, in the dtype of scores; of labels, 0 or 1 in float32.
    """
    if answer.ndim == 1:
        return (answer != targets).float()
    return functional.cross_entropy(usable(answer), targets, reduction="none")


def expected_errors(scores: Tensor, targets: Tensor) -> Tensor:
    """Returns the probability of an error, 1 - softmax(scores) at the target.

    It is to errors of labels what the cross-entropy is to itself: where scores are those of a
    network fitted to labels, both are in the same unit.

    Args:
        scores: Scores ``(n, classes)``.
        targets: The classes wanted, int64 of shape ``(n,)``.

    Returns:
        Losses of shape ``(n,)``, differentiable.
    """
    return 1 - scores.softmax(1).gather(1, targets[:, None])[:, 0]


def loss_head(answers: Answers, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes the head of classification and stability.

    Args:
        answers: The classifier. It sees images clipped to [0, 1].
        targets: The classes wanted, int64 of shape ``(b,)``.

    Returns:
        Stacked images ``(k, b, c, h, w)`` to losses ``(k, b)``.
    """

    def head(images: Tensor) -> Tensor:
        k, b = images.shape[:2]
        answer = answers(images.flatten(0, 1).clamp(0, 1))
        return losses_of(answer, targets.repeat(k)).view(k, b)

    return head
