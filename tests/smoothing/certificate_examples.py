"""Certificates made by hand, for the tests of what is done with them."""

from dataclasses import replace

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate, Source

SETTINGS = Settings(sigma=0.5, n0=10, n=100)
SOURCE = Source(
    classifier="bb",
    classes=3,
    dtype="float32",
    device="cpu",
    package_version="0.1.0",
    torch_version="2.13.0",
)


def certificate(
    index: int, *, label: int = 1, predicted: int = 1, radius: float = 0.1, **other: object
) -> Certificate:
    """A certificate at sigma .5 by 10 + 100 votes over three classes."""
    ours: dict[str, object] = {
        k: other.pop(k) for k in ("sigma", "n", "seed", "alpha") if k in other
    }
    source: dict[str, object] = {k: other.pop(k) for k in ("classifier",) if k in other}
    fields: dict[str, object] = {
        "seconds": 0.25,
        "selected": max(predicted, 0),
        "selection_counts": (0, 9, 1),
        "votes": 90,
        "other_votes": 10,
        "asked": 110,
        "lost": 0,
        "p_lower": 0.8,
        "stop": "complete",
        "image": "aa",
        "settings": replace(SETTINGS, **ours),  # type: ignore[arg-type]
        "source": replace(SOURCE, **source),  # type: ignore[arg-type]
    }
    return Certificate(
        index=index,
        label=label,
        predicted=predicted,
        radius=radius,
        correct=predicted == label,
        **{**fields, **other},  # type: ignore[arg-type]
    )
