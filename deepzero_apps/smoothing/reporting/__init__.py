"""What certificates come to: tables, curves, image grids, and one HTML page."""

__all__ = ["Row", "plot_certified_accuracy", "plot_images", "summarize", "table", "write_page"]

from deepzero_apps.smoothing.reporting.page import write_page
from deepzero_apps.smoothing.reporting.tables import (
    Row,
    plot_certified_accuracy,
    plot_images,
    summarize,
    table,
)
