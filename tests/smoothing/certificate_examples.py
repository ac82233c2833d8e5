"""Certificates made by hand, for the tests of what is done with them."""

from deepzero_apps.smoothing.certificates import Certificate


def certificate(
    index: int, *, label: int = 1, predicted: int = 1, radius: float = 0.1, **other: object
) -> Certificate:
    """A certificate at sigma .5 by 10 + 100 votes over three classes."""
    fields: dict[str, object] = {
        "seconds": 0.25,
        "selected": max(predicted, 0),
        "selection_counts": (0, 9, 1),
        "votes": 90,
        "other_votes": 10,
        "p_lower": 0.8,
        "sigma": 0.5,
        "n0": 10,
        "n": 100,
        "alpha": 0.001,
        "seed": 0,
        "image": "aa",
        "classifier": "bb",
        "dtype": "float32",
        "device": "cpu",
        "package_version": "0.1.0",
        "torch_version": "2.13.0",
    }
    return Certificate(
        index=index,
        label=label,
        predicted=predicted,
        radius=radius,
        correct=predicted == label,
        **{**fields, **other},  # type: ignore[arg-type]
    )
