"""The command line: picks data, classifiers, methods and devices, and runs the applications."""

__all__ = ["main"]

from deepzero_apps.cli.main import main
