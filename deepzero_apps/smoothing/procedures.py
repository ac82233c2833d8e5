"""The bound that each procedure allows, and how far it can reach."""

__all__ = ["largest_radius", "probability_bound"]

from deepzero_apps.smoothing.bounds import Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.sequences import lower_bound_anytime


def probability_bound(votes: int, n: int, settings: Settings) -> float:
    """Bounds the probability of a class as the procedure of the settings allows.

    Args:
        votes: Votes for the class, in 0 ... n.
        n: Votes in all, at least 0.
        settings: The settings.

    Returns:
        The lower bound, in [0, 1); 0 without votes.

    Raises:
        ValueError: If a count is out of range.
    """
    if n == 0 and votes == 0:
        return 0.0
    bound = lower_bound_anytime if settings.is_sequential else lower_bound
    return bound(votes, n, settings.alpha)


def largest_radius(settings: Settings) -> float:
    """Gives the largest radius that settings can certify: with all votes for one class.

    Args:
        settings: The settings.

    Returns:
        The radius, rounded down, in the images' units.

    Example:
        >>> largest_radius(Settings(sigma=1.0, n=1_000, alpha=0.001))
        2.4632
        >>> largest_radius(Settings(sigma=1.0, n=1_000, alpha=0.001, procedure="anytime"))
        2.3626
    """
    p_lower = probability_bound(settings.n, settings.n, settings)
    return round_down(radius(p_lower, settings.sigma))
