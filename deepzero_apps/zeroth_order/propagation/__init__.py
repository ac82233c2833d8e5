"""Difference propagation: finite differences of a network without differencing its losses.

`Propagation` carries K differences from a moved weight to the output. Importing this package
fills the table of rules.
"""

__all__ = ["Delta", "Propagation", "rule"]

from deepzero_apps.zeroth_order.propagation import (
    arithmetic,  # noqa: F401  (enters its rules)
    linear_layers,  # noqa: F401
    normalization,  # noqa: F401
    pointwise,  # noqa: F401
    pooling,  # noqa: F401
    shapes,  # noqa: F401
    softmax,  # noqa: F401
)
from deepzero_apps.zeroth_order.propagation.delta import Delta
from deepzero_apps.zeroth_order.propagation.propagate import Propagation
from deepzero_apps.zeroth_order.propagation.table import rule
