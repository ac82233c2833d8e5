"""The ways to spend queries that `fewer_queries.py` compares."""

__all__ = ["FINALISTS", "RECIPE", "Variant", "rates", "variants"]

from dataclasses import dataclass, replace
from typing import Literal

RECIPE = "DeepZero's recipe"
FINALISTS = (
    RECIPE,
    "sparse .97",
    "energy, cyclic, sparse .99",
    "energy, cyclic, hold, sparse .99",
    "energy, cyclic, hold, sparse .997",
    "outputs, share 0.25",
    "outputs, share 0.1",
)


@dataclass(frozen=True)
class Variant:
    """A way to spend queries.

    Attributes:
        kind: Weights or layer outputs.
        sparsity: The share that a step does not move.
        allocation: How layers share the coordinates.
        order: Random or cyclic draws.
        interval: The steps that share a draw.
        decay: Of unselected coordinates' slopes; None to leave them zero.
        forget: Whether the optimizer forgets at each draw.
        hold: Whether unselected weights stay where they are.
        optimizer: SGD or Adam.
        momentum: Of SGD.
        mu: The step of a real finite difference; None for autograd in its place.
        central: Whether that takes both sides.
    """

    kind: Literal["weights", "outputs"] = "weights"
    sparsity: float = 0.97
    allocation: Literal["uniform", "energy", "zo-grasp"] = "uniform"
    order: Literal["random", "cyclic"] = "random"
    interval: int = 1
    decay: float | None = None
    forget: bool = False
    hold: bool = False
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: float = 0.9
    mu: float | None = None
    central: bool = False


def variants(network: str) -> dict[str, Variant]:
    """Names what is tried: one option at a time from a common base, then what won together."""
    base = Variant()
    found = {
        "sparse .97": base,
        "sparse .9": replace(base, sparsity=0.9),
        "sparse .99": replace(base, sparsity=0.99),
        "interval 100": replace(base, interval=100),
        "energy": replace(base, allocation="energy"),
        "zo-grasp": replace(base, allocation="zo-grasp"),
        "hold": replace(base, hold=True),
        "cyclic": replace(base, order="cyclic"),
        RECIPE: replace(base, optimizer="sgd", sparsity=0.9, allocation="zo-grasp", interval=15),
    }
    found |= _stale(base) | _reset(base) | _outputs() | _combined(base)
    if network == "cnn2":
        found |= _measured(base)
        # ten coordinates a step, and as many steps as make hours
        del found["energy, cyclic, hold, sparse .997"]
    return found


def _stale(base: Variant) -> dict[str, Variant]:
    plain = replace(base, optimizer="sgd", momentum=0.0)
    found = {"SGD without momentum": plain}
    for decay in (0.5, 0.9, 0.97, 1.0):
        found[f"decay {decay:g}"] = replace(base, decay=decay)
        for name, start in (("", base), ("SGD without momentum, ", plain)):
            cycled = replace(start, order="cyclic", decay=decay)
            found[f"{name}cyclic, decay {decay:g}"] = cycled
    return found


def _reset(base: Variant) -> dict[str, Variant]:
    sgd = replace(base, optimizer="sgd")
    found = {"SGD": sgd}
    for name, start in (("", base), ("SGD, ", sgd)):
        kept = replace(start, interval=10)
        found[f"{name}interval 10"] = kept
        found[f"{name}interval 10, reset"] = replace(kept, forget=True)
        found[f"{name}interval 10, reset, hold"] = replace(kept, forget=True, hold=True)
    return found


def _outputs() -> dict[str, Variant]:
    return {
        f"outputs, share {share:g}": Variant(kind="outputs", sparsity=1 - share)
        for share in (1.0, 0.5, 0.25, 0.1, 0.05)
    }


def _measured(base: Variant) -> dict[str, Variant]:
    found = {f"measured, mu {mu:g}": replace(base, mu=mu) for mu in (1e-2, 1e-3, 1e-4)}
    return found | {"measured, mu 0.01, central": replace(base, mu=1e-2, central=True)}


def _combined(base: Variant) -> dict[str, Variant]:
    both = replace(base, allocation="energy", order="cyclic")
    return {
        "energy, cyclic": both,
        "energy, cyclic, sparse .99": replace(both, sparsity=0.99),
        "energy, cyclic, decay 0.5": replace(both, decay=0.5),
        "energy, cyclic, hold": replace(both, hold=True),
        "energy, cyclic, hold, sparse .99": replace(both, hold=True, sparsity=0.99),
        "energy, cyclic, hold, sparse .997": replace(both, hold=True, sparsity=0.997),
    }


def rates(variant: Variant) -> tuple[float, ...]:
    """The learning rates that are tried."""
    if variant.mu:
        return (0.03,)
    if variant.optimizer == "sgd":
        return (0.03, 0.1, 0.3, 1.0) if variant.momentum else (0.1, 0.3, 1.0, 3.0)
    return (0.001, 0.003, 0.01, 0.03) if (variant.decay or 0) > 0.5 else (0.01, 0.03, 0.1, 0.3)
