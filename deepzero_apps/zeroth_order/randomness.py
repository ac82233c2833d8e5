"""Generators that are pure functions of a seed, a purpose and a counter.

A run whose random numbers depend on nothing but (seed, purpose, step) resumes exactly without
storing any generator's state, and gives the same numbers however its work is spread.
"""

__all__ = ["generator_for"]

import zlib

import numpy as np
import torch


def generator_for(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Seeds a fresh generator from a run's seed, what it is for, and counters.

    Args:
        seed: The run's seed, at least 0.
        purpose: What is drawn, such as "noise": different purposes never share numbers.
        counters: Steps, epochs or sample numbers, each at least 0.
        device: Where the numbers are drawn.

    Returns:
        A generator in the same state for the same arguments.

    Raises:
        ValueError: If the seed or a counter is negative.

    Example:
        >>> a, b = (generator_for(0, "noise", 7) for _ in range(2))
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    if min(seed, *counters, 0) < 0:
        raise ValueError(f"seed and counters must be at least 0, got {(seed, *counters)}")
    sequence = np.random.SeedSequence(
        [seed, zlib.crc32(purpose.encode()), len(counters), *counters]
    )
    (state,) = sequence.generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))
