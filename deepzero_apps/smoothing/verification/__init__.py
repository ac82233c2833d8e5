"""Certificates recomputed from what is on disk: by anybody, without the classifier."""

__all__ = ["Claim", "Finding", "Report", "verify"]

from deepzero_apps.smoothing.verification.field_logs import Claim
from deepzero_apps.smoothing.verification.findings import Finding, Report
from deepzero_apps.smoothing.verification.verify import verify
