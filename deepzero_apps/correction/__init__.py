"""Correctors trained inside the time loop of a simulator that has no gradient.

A `Problem` names a coarse `Simulator`, the black box, and what it should follow. A `Loop` steps it
with a `Corrector`; `correction_training` trains the network on `Trajectories` by any of ``methods``.
`Windowed` is the one for simulators that act far: it estimates the gradient of an `Objective` from calls
alone, with windows of `Credit`. The result is `Corrected`, itself a simulator: `probe` finds its
noise and its reach, `rollout` runs it.
"""

__all__ = [
    "Corrected",
    "Corrector",
    "Credit",
    "Loop",
    "Objective",
    "Problem",
    "Simulator",
    "Trajectories",
    "Windowed",
    "correction_training",
    "probe",
    "rollout",
]

from deepzero_apps.correction.correctors import Corrector
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.probing import probe
from deepzero_apps.correction.problem import Problem
from deepzero_apps.correction.rollout import Corrected, rollout
from deepzero_apps.correction.simulator import Simulator
from deepzero_apps.correction.training import correction_training
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective
from deepzero_apps.correction.windowed import Windowed
