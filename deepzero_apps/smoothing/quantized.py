r"""A classifier that is shown 8-bit images, as most services are.

Images on their way to a service are clipped and rounded, as files or as bytes:

.. math::
    f_b(x) = f\big(q_b(x)\big), \qquad
    q_b(x) = \frac{\mathrm{round}\big((2^b - 1)\, \mathrm{clip}_{[0, 1]}(x)\big)}{2^b - 1}  \tag{1}

**Certificates hold as they are.** Randomized smoothing makes no demand on the classifier but that
it answers each image by itself: :math:`f_b` is one such function, rounding and clipping
are part of it, and noise is added before. What is certified is the rounded pipeline, for
perturbations of the unrounded image.

**The zeroth-order step must reach the next level.** :math:`q_b` is constant on cells of width
:math:`\delta = 1 / (2^b - 1)` (1/255 at 8 bits). A displacement of a pixel by :math:`\mu` changes
its cell with probability about :math:`\min(1, \mu / \delta)`, and then by a whole :math:`\delta`:
far below :math:`\delta` a difference over :math:`\mu` is mostly zero and sometimes
:math:`\delta / \mu` times too large. A step whose displacement of single pixels is at least
:math:`\delta` averages over cells: keep ``mu`` no smaller than that. Noise of
:math:`\sigma \gg \delta`, as in smoothing, dithers the steps besides.
"""

__all__ = ["Quantized"]

import torch
from torch import Tensor

from deepzero_apps.smoothing.adapters import Wrapper
from deepzero_apps.smoothing.answers import Classifier
from deepzero_apps.smoothing.fingerprint import fingerprint


class Quantized(Wrapper):
    """A classifier behind clipping and rounding, eq. (1), itself a classifier.

    Args:
        classifier: The black box behind it; is shown float32 images on the grid.
        bits: Bits of a pixel and channel, from 1 to 16.

    Attributes:
        step: The distance between neighboring levels.

    Raises:
        TypeError: If ``bits`` is no integer.
        ValueError: If ``bits`` is out of range.

    Example:
        >>> from deepzero_apps.smoothing.blackbox import CallableClassifier
        >>> first_two = CallableClassifier(lambda x: x[:, 0, 0, :2], classes=2, name="first two")
        >>> Quantized(first_two, bits=1)(torch.tensor([[[[0.4, 1.7]]]])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, classifier: Classifier, *, bits: int = 8) -> None:
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"bits must be an integer, got {type(bits).__name__}")
        if not 1 <= bits <= 16:
            raise ValueError(f"bits must be in 1 ... 16, got {bits}")
        super().__init__(classifier, name=f"{bits}-bit images")
        self.bits, self.step = bits, 1 / (2**bits - 1)

    @property
    def fingerprint(self) -> str:
        """A sha256 over the bits and the classifier's own."""
        return fingerprint("quantized", self.bits, self.classifier.fingerprint)

    def _changed(self, images: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        rounded: Tensor = (images.to(torch.float32).clamp(0, 1) * levels).round() / levels
        return rounded
