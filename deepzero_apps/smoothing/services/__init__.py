"""Prediction services behind HTTP as classifiers that can be asked.

A `Service` is read from a file: where it is, how images are written into a request, where the
answers stand in what comes back. `HttpClassifier` asks it: in batches, several requests at a
time, at no more than a given rate, with retries; and what is not answered is a lost vote.
"""

__all__ = ["HttpClassifier", "Service"]

try:
    import httpx  # noqa: F401
    import jmespath  # noqa: F401
    import pyrate_limiter  # noqa: F401
    import tenacity  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"services need {error.name}; install them by: pip install 'deepzero-apps[services]'"
    ) from error

from deepzero_apps.smoothing.services.classifier import HttpClassifier
from deepzero_apps.smoothing.services.service import Service
