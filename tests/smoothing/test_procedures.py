"""Bounds by procedure, against root finders and quadrature, and published radii."""

import pytest

from deepzero_apps.smoothing.procedures import largest_radius, probability_bound
from tests.smoothing.sound_certificates import (
    DECIDE,
    SETTINGS,
    anytime,
    clopper_pearson,
    radius_of,
)


def test_bound_and_reach_are_those_of_the_procedure() -> None:
    # rel 1e-9: of two root finders and a quadrature, each of relative error below 1e-10
    assert probability_bound(90, 100, SETTINGS) == pytest.approx(
        clopper_pearson(90, 100, 0.001), rel=1e-9
    )
    assert probability_bound(90, 100, DECIDE) == pytest.approx(anytime(90, 100, 0.001), rel=1e-9)
    assert probability_bound(0, 0, DECIDE) == 0
    for settings, p in ((SETTINGS, 0.001 ** (1 / 100)), (DECIDE, anytime(100, 100, 0.001))):
        assert 0 <= radius_of(p, 0.5) - largest_radius(settings) < 1e-4
