"""Training a corrector in the loop of its simulator, by any of ``methods``.

Every step draws a minibatch of pieces of the training simulations. All draws are pure functions of
(seed, step), so that methods see the same pieces and a killed run resumes to the same bits.
"""

__all__ = ["Recipe", "correction_training", "one_step_error", "pieces"]

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deepzero_apps.correction.methods import Method
from deepzero_apps.correction.simulator import Simulator
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective, Windows
from deepzero_apps.zeroth_order.oracle import Meter
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Observation, Stateful, Training


@dataclass(frozen=True)
class Recipe:
    """How a corrector is trained: Adam along a cosine schedule.

    Args:
        unrolled: The steps n of a piece.
        batch: The number of pieces a training step.
        updates: The number of training steps; the learning rate reaches zero after the last.
        lr: The learning rate at the start.
        seed: The seed of the pieces.

    Raises:
        ValueError: If a number is not positive or the seed is negative.
    """

    unrolled: int
    batch: int
    updates: int
    lr: float
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("unrolled", "batch", "updates", "lr"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


def correction_training(
    loop: Loop,
    method: Method,
    objective: Objective,
    trajectories: Trajectories,
    *,
    recipe: Recipe,
    meter: Meter | None = None,
    companion: Stateful | None = None,
) -> Training:
    """Sets up the training of a corrector.

    Args:
        loop: Simulator and corrector; the corrector's network is trained.
        method: The gradient.
        objective: The loss, with a weight for each of ``recipe.unrolled`` steps.
        trajectories: The training simulations.
        recipe: Pieces, steps and learning rate.
        meter: The meter of the simulator's queries.
        companion: What else learns, such as a `Credit`.

    Returns:
        The run; ``run(recipe.updates)`` trains.

    Raises:
        ValueError: If the simulations are too short or of another shape, or the objective has
            another number of steps.
    """
    if tuple(trajectories.fields.shape[2:]) != tuple(loop.simulator.shape):
        raise ValueError(
            f"trajectories must hold fields of the simulator's shape {loop.simulator.shape}, "
            f"got {trajectories.fields.shape[2:]}"
        )
    if len(objective.weights) != recipe.unrolled:
        raise ValueError(
            f"objective must weigh {recipe.unrolled} steps, got {len(objective.weights)}"
        )

    def gradient(step: int) -> Observation:
        return method(loop, objective, pieces(trajectories, recipe, step), step=step)

    pieces(trajectories, recipe, 0)  # refuses simulations that are too short at once
    network = loop.corrector.network
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], recipe.lr)
    return Training(
        network,
        optimizer,
        gradient,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.updates),
        meter=meter,
        companion=companion,
        seed=recipe.seed,
    )


def pieces(
    trajectories: Trajectories,
    recipe: Recipe,
    step: int,
    *,
    only: Sequence[int] | None = None,
) -> Windows:
    """Draws the minibatch of a training step: a simulation and a first frame for each piece.

    Args:
        trajectories: The training simulations.
        recipe: How many pieces of how many steps, and the seed.
        step: The number of the training step.
        only: Which pieces of the minibatch are wanted; all by default.

    Returns:
        The pieces.

    Raises:
        ValueError: If the simulations have too few frames.
    """
    simulations, frames = trajectories.fields.shape[:2]
    if frames <= recipe.unrolled:
        raise ValueError(
            f"unrolled must be less than the {frames} frames of a simulation, "
            f"got {recipe.unrolled}"
        )
    generator = generator_for(recipe.seed, "pieces", step)
    which = torch.randint(simulations, (recipe.batch,), generator=generator).numpy()
    first = torch.randint(frames - recipe.unrolled, (recipe.batch,), generator=generator).numpy()
    if only is not None:
        which, first = which[list(only)], first[list(only)]
    after = first[:, None] + np.arange(1, recipe.unrolled + 1)
    native = trajectories.native
    return Windows(
        torch.from_numpy(trajectories.fields[which, first]),
        torch.from_numpy(trajectories.parameters[which]),
        torch.from_numpy(trajectories.fields[which[:, None], after]),
        None if native is None else native[which, first],
    )


def one_step_error(simulator: Simulator, trajectories: Trajectories, *, most: int = 64) -> float:
    """Measures the root mean square error of one uncorrected step, the unit of corrections.

    Args:
        simulator: The coarse simulator.
        trajectories: The training simulations, at least two frames each.
        most: The most state-steps to spend.

    Returns:
        The error, in the units of the field.

    Raises:
        ValueError: If the simulations have a single frame.
    """
    simulations, frames = trajectories.fields.shape[:2]
    if frames < 2:
        raise ValueError(f"trajectories must hold at least two frames, got {frames}")
    every = max(1, -(-simulations * (frames - 1) // most))
    picked = np.arange(0, simulations * (frames - 1), every)
    which, first = picked // (frames - 1), picked % (frames - 1)
    native = None if trajectories.native is None else trajectories.native[which, first]
    after, _ = simulator.step(
        trajectories.fields[which, first], trajectories.parameters[which], native
    )
    error = after - trajectories.fields[which, first + 1]
    return float(np.sqrt(np.square(error).mean()))
