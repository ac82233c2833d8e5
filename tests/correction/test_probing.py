"""What probing finds, on simulators whose noise and reach are known."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepzero_apps.correction.probing import probe
from deepzero_apps.correction.simulator import Array, Metered, Simulator
from solvers.burgers import Burgers
from tests.simulators import Stencil

ONE = np.ones(1)


class Untold(Stencil):
    """A stencil that does not say how far it acts, with noise, or with a mean over the grid."""

    def __init__(
        self,
        shape: tuple[int, ...],
        weights: dict[tuple[int, ...], float],
        *,
        noise: float = 0.0,
        mean: float = 0.0,
    ) -> None:
        super().__init__(shape, weights)
        self.reach = None
        self._noise, self._mean = noise, mean
        self._generator = np.random.default_rng(0)

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        after, native = super().step(fields, parameters, native, forcing=forcing)
        everywhere = self._mean * fields.mean(tuple(range(1, fields.ndim)), keepdims=True)
        noise = self._noise * self._generator.normal(size=fields.shape)
        return after + everywhere + noise, native


def field(simulator: Simulator, b: int = 1) -> Array:
    return np.random.default_rng(1).normal(size=(b, *simulator.shape))


def test_a_deterministic_simulator_has_no_noise_and_the_usual_step() -> None:
    simulator = Metered(Stencil((2, 16, 16), {(0, 0): 0.5, (1, 0): 0.25}))
    found = probe(simulator, field(simulator), ONE, unit=3.0)
    assert (found.noise, found.deterministic, found.reach) == (0.0, True, 1)
    assert found.mu == pytest.approx(0.03, rel=1e-15)  # one percent of the unit
    assert found.queries == simulator.meter.spent == 5


@pytest.mark.parametrize("scale", [1e-5, 1e-2])
def test_the_noise_is_the_rms_difference_of_two_steps(scale: float) -> None:
    simulator = Untold((2, 16, 16), {(0, 0): 1.0}, noise=scale)
    found = probe(simulator, field(simulator), ONE, unit=2.0)

    # Two answers differ by sqrt(2) standard deviations. Four answers less the same fifth: a cell's
    # mean square has a variance of 56 / 16 = 3.5 fourth powers around 2; half of that in the root.
    error = 5 * math.sqrt(3.5) / 4 / math.sqrt(512)
    assert found.noise == pytest.approx(math.sqrt(2) * scale, rel=error)
    assert not found.deterministic
    assert found.mu == pytest.approx(max(0.02, math.sqrt(2 * found.noise * 2.0)), rel=1e-12)


@pytest.mark.parametrize("offset", [(0, 1), (-2, 0), (1, -3)])
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_the_reach_is_the_largest_offset_whatever_the_noise(
    offset: tuple[int, int], noise: float
) -> None:
    simulator = Untold((2, 16, 20), {(0, 0): 0.5, offset: 0.25}, noise=noise)
    metered = Metered(simulator)
    found = probe(metered, field(simulator), ONE, unit=1.0, places=3)
    assert found.reach == max(map(abs, offset))
    assert found.queries == metered.meter.spent == 5 + 3


@pytest.mark.parametrize("places", [1, 4])
def test_a_simulator_that_acts_everywhere_has_an_infinite_reach(places: int) -> None:
    simulator = Untold((1, 12, 12), {(0, 0): 1.0}, mean=0.3)
    found = probe(simulator, field(simulator), ONE, unit=1.0, places=places)
    assert found.reach == math.inf


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("substeps", [1, 2])
def test_the_reach_of_burgers_flow_is_its_number_of_stages(dimensions: int, substeps: int) -> None:
    flow = Burgers(16, dimensions=dimensions, substeps=substeps)
    told = flow.reach
    flow.reach = None
    nu = np.array([0.1, 0.2])
    fields, native = flow.initial(nu, seed=0)
    found = probe(flow, fields, nu, native, unit=0.9)
    assert found.reach == told == substeps
    assert found.deterministic


def test_a_told_reach_is_taken_at_its_word() -> None:
    simulator = Untold((1, 12, 12), {(0, 0): 1.0}, mean=0.3)
    simulator.reach = 2
    assert probe(simulator, field(simulator), ONE, unit=1.0).reach == 2


def test_probing_leaves_the_state_as_it_was_and_repeats_itself() -> None:
    simulator = Untold((1, 12), {(2,): 1.0})
    fields, native = field(simulator), np.ones((1, 1))
    before = fields.copy()
    first = probe(simulator, fields, ONE, native, unit=1.0, seed=3)
    assert first == probe(simulator, fields, ONE, native, unit=1.0, seed=3)
    assert np.array_equal(fields, before)


@pytest.mark.parametrize("change", [{"unit": 0.0}, {"unit": math.nan}, {"places": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    simulator = Stencil((1, 8), {(0,): 1.0})
    with pytest.raises(ValueError, match="unit and places must be positive, got"):
        probe(simulator, field(simulator), ONE, **{"unit": 1.0, **change})
