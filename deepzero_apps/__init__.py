"""Trains neural networks around functions that can be evaluated and not differentiated."""

__all__ = ["__version__"]

from importlib.metadata import version

__version__ = version("deepzero-apps")
