"""A classifier reduced to its labels, as many services answer.

It is for trials: what is lost where a service tells no more than a class? What is certified does not
change, since votes are labels anyway.
"""

__all__ = ["LabelsOnly"]

from torch import Tensor

from deepzero_apps.smoothing.adapters import Wrapper
from deepzero_apps.smoothing.answers import Classifier, labels_of
from deepzero_apps.smoothing.fingerprint import fingerprint


class LabelsOnly(Wrapper):
    """A classifier of which labels alone are read, itself a classifier.

    Args:
        classifier: The black box behind it.

    Example:
        >>> import torch
        >>> from deepzero_apps.smoothing.blackbox import CallableClassifier
        >>> first_two = CallableClassifier(lambda x: x[:, 0, 0, :2], classes=2, name="first two")
        >>> LabelsOnly(first_two)(torch.tensor([[[[0.4, 0.7]]]]))
        tensor([1])
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier, name="its labels")

    @property
    def fingerprint(self) -> str:
        """A sha256 over the classifier's own."""
        return fingerprint("labels", self.classifier.fingerprint)

    def _changed(self, images: Tensor) -> Tensor:
        return images

    def _answer(self, images: Tensor) -> Tensor:
        return labels_of(super()._answer(images))
