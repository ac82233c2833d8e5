"""Methods of the correction table by name: what is chosen where."""

import math

import pytest

from deepzero_apps.cli.corrected import Units
from deepzero_apps.cli.correction_plan import CorrectSettings, plan
from deepzero_apps.cli.corrections import TUNED
from deepzero_apps.cli.problems import problem_for
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.methods import Colored
from deepzero_apps.correction.probing import Probed
from deepzero_apps.correction.windowed import Windowed


@pytest.mark.parametrize(
    ("reach", "kind", "queries"),
    [
        # Side 32 has 4 colors an axis at reach 1: 2 components, both sides, at 3 of 4 steps.
        (1, Colored, 4 + 2 * 2 * 4**2 * 3),
        (2, Windowed, 3 * 4),  # 6 colors an axis: 144 queries a state-step are too many
        (math.inf, Windowed, 3 * 4),
    ],
)
def test_zo_field_takes_colors_where_they_are_few(reach: float, kind: type, queries: int) -> None:
    problem = problem_for("burgers", grid=None, reference=None)
    units = Units(1.0, 0.1, (0.05, 0.2), Probed(0.0, reach, 1e-2, 0))

    correction = plan(CorrectSettings(problem="burgers"), problem, units).correction

    assert isinstance(correction.method, kind)
    assert correction.queries == queries
    assert (correction.credit is None) == (kind is Colored)


def test_directions_are_refused_where_colors_need_none() -> None:
    problem = problem_for("burgers", grid=None, reference=None)
    units = Units(1.0, 0.1, (0.05, 0.2), Probed(0.0, 1, 1e-2, 0))
    usual = TUNED["zo-field"].q  # as it stands in the settings that a run has stored

    assert (
        plan(CorrectSettings(problem="burgers", q=usual), problem, units).correction.credit is None
    )
    with pytest.raises(Misuse, match=r"--q must be left out .* reach 1, .* by 32 colors .* got 8"):
        plan(CorrectSettings(problem="burgers", q=8), problem, units)
