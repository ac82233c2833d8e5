"""Certified denoised smoothing of a classifier that can only be asked.

`Defended` puts a denoiser in front of a `Classifier`; ``methods`` and ``training`` train it;
`certify` issues a `Certificate` for each image, `predict` answers or abstains.
"""

__all__ = [
    "Certificate",
    "Classifier",
    "ClassifierError",
    "Defended",
    "Settings",
    "certify",
    "predict",
]

from deepzero_apps.smoothing.blackbox import Classifier, ClassifierError, Defended
from deepzero_apps.smoothing.certify import Certificate, Settings, certify, predict
