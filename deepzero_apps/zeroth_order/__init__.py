"""Gradients from values alone: estimators, engines, sparsity, and the training loop.

Three layers, each usable by itself:

- of a function of points: `coordinate` and `randomized`, `Oracle` to count and cap what they ask,
  `bridge` to put a black box inside a torch graph;
- of a network's loss: an engine such as `Fastest` evaluates it with single weights moved, and
  `Coordinates` (on the weights that a `SupportSchedule` draws), `Activations`, `Randomized` or
  `FirstOrder` write ``.grad``;
- of a run: `Training` steps any torch optimizer, yields metrics and resumes exactly.
"""

__all__ = [
    "Activations",
    "Coordinates",
    "Fastest",
    "FirstOrder",
    "Meter",
    "Oracle",
    "Randomized",
    "SupportSchedule",
    "Training",
    "bridge",
    "coordinate",
    "randomized",
]

from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.bridge import bridge
from deepzero_apps.zeroth_order.engines import Fastest
from deepzero_apps.zeroth_order.estimators import coordinate, randomized
from deepzero_apps.zeroth_order.gradients import Coordinates, FirstOrder, Randomized
from deepzero_apps.zeroth_order.oracle import Meter, Oracle
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.training import Training
