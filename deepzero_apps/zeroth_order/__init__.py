"""Gradients from values alone: estimators, engines, sparsity, and the training loop."""

__all__ = ["coordinate", "randomized"]

from deepzero_apps.zeroth_order.estimators import coordinate, randomized
