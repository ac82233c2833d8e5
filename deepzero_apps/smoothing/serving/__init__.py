"""Predict-with-abstain and certificates over HTTP, for one smoothed classifier.

`Subject` is what is served and `Limits` what a request may take. ``worker`` packs the votes of
waiting requests into full calls, ``application`` speaks HTTP, ``process`` listens and stops
gracefully; the last two need the extra ``serve``.
"""

__all__ = ["Limits", "Subject"]

from deepzero_apps.smoothing.serving.subject import Limits, Subject
