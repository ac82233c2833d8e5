"""Problems by name: what is built, what of the user's own is taken, what is refused."""

from collections.abc import Callable

import numpy as np
import pytest

from deepzero_apps.cli.problems import BUILT_IN, Grid, problem_for
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.correction.simulator import Metered, SimulatorFailure
from tests.cli.conftest import DECAY


@pytest.mark.parametrize(
    ("name", "coarse", "fine"),
    [
        ("wake", (2, 20, 40), (2, 80, 160)),
        ("burgers", (2, 32, 32), (2, 128, 128)),
        ("burgers-1d", (1, 64), (1, 256)),
    ],
)
def test_built_in_problems_fit_together(
    name: str, coarse: tuple[int, ...], fine: tuple[int, ...]
) -> None:
    problem = problem_for(name, grid=None, reference=None)
    assert problem.reference is not None
    assert problem.start is not None
    assert problem.restrict is not None
    assert (problem.coarse.shape, problem.reference.shape) == (coarse, fine)
    parameters = np.array(problem.train[:1])

    fields, native = problem.start(parameters, 3)
    after, _ = problem.reference.step(fields, parameters, native)
    restricted = problem.restrict(after)

    assert restricted.shape == (1, *coarse)
    # Restriction averages faces or cells: what crosses the grid as a whole is kept, and nothing
    # grows by it.
    assert np.abs(restricted).max() <= np.abs(after).max() + 1e-12
    assert not {*problem.train} & {*problem.validation, *problem.test}
    assert not {*problem.validation} & {*problem.test}


@pytest.mark.parametrize("name", ["burgers", "burgers-1d"])
def test_a_start_does_not_depend_on_the_group_it_is_drawn_in(name: str) -> None:
    grids = {"burgers": ((8, 8), (16, 16)), "burgers-1d": ((1, 8), (1, 16))}[name]
    problem = problem_for(name, grid=grids[0], reference=grids[1])
    assert problem.start is not None
    parameters = np.array(problem.train[:3])

    together, native = problem.start(parameters, 5)
    alone, own = problem.start(parameters[1:2], 5)

    assert native is not None
    assert own is not None
    assert np.array_equal(together[1:2], alone)
    assert np.array_equal(native[1:2], own)
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize(
    ("name", "grid", "reference", "words"),
    [
        ("wakes", None, None, "--problem must be one of wake, burgers, .* got wakes"),
        ("wake", (20, 40), (50, 100), "--reference must be --grid times .* got 50x100 for 20x40"),
        ("wake", (20, 40), (40, 120), "the same whole number"),
        ("wake", (20, 40), (20, 40), "at least 2"),
        ("wake", (20, 40), (10, 20), "at least 2"),
        ("wake", (2, 4), None, "--grid 2x4, --reference 8x16: rows must be"),
        ("burgers", (16, 32), None, "--grid must be square for this problem, got 16x32"),
        ("burgers-1d", (2, 32), None, "--grid must be 1xCOLUMNS for this problem, got 2x32"),
        ("burgers-1d", (1, 32), (2, 64), None),
        ("burgers-1d", (1, 32), (1, 65), "--reference must be --grid times"),
        ("burgers", (2, 2), None, "cells must be at least 3"),
    ],
)
def test_names_and_grids_that_do_not_fit_are_refused(
    name: str, grid: Grid | None, reference: Grid | None, words: str | None
) -> None:
    if words is None:
        assert problem_for(name, grid=grid, reference=reference).coarse.shape == (1, 32)
        return
    with pytest.raises(Misuse, match=words):
        problem_for(name, grid=grid, reference=reference)


def test_every_built_in_name_has_grids_that_divide() -> None:
    for _, coarse, fine in BUILT_IN.values():
        assert fine[1] % coarse[1] == 0


def test_one_of_your_own_may_be_a_function_or_a_problem(own_module: Callable[[str], str]) -> None:
    module = own_module(DECAY + "\nready = problem()\n")
    for name in (f"{module}:problem", f"{module}:ready"):
        problem = problem_for(name, grid=None, reference=None)
        assert problem.name == name
        fields = np.ones((2, 1, 6, 8))
        after, native = problem.coarse.step(fields, np.array([1.0, 2.0]))
        # Of equal cells: fields + rate * parameter * mean / 10, by the module's definition.
        np.testing.assert_allclose(after[:, 0, 0, 0], [1 + 0.05 * 0.1, 1 + 0.05 * 0.2])
        assert native is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "module:function, got .*:problem: AttributeError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def problem(): return {}['a']", "KeyError: 'a'"),
        ("def problem(): return 3", "must give a deepzero_apps.correction.Problem, got int"),
        (DECAY.replace("reach = math.inf", ""), "simulator must have reach, got Decay"),
        (DECAY + "from dataclasses import replace\nold = problem\n"
         "def problem(): return replace(old(), outputs={})", "must have an output, got none"),
        (DECAY.replace("validation=(1.5,)", "validation=(-1.5,)"), "validation must be positive"),
        (DECAY.replace("test=(1.25, 2.5)", "test=(0.0, 2.5)"), "test must be positive .* got .0"),
        (DECAY.replace("train=(1.0, 2.0, 3.0)", "train=('a',)"), "train must be positive"),
        (DECAY.replace("validation=(1.5,)", "validation=()"), "validation must be .* at least one"),
        (DECAY.replace("test=(1.25, 2.5)", "test=(1.25, 2.0)"), "test must not share .* got 2.0"),
        (DECAY.replace("ones(1, 6, 8)", "ones(1, 6, 7)"), "output free failed: RuntimeError"),
        (DECAY.replace("ones(1, 6, 8)", "ones(2, 6, 8)"), r"output free must .* got \(2, 6, 8\)"),
        (DECAY.replace("reach = math.inf", "reach = 1.5"), "reach must be a whole number"),
        (DECAY.replace('{"rate": 0.1}', '{"rate": np.ones(2)}'), "not JSON serializable"),
        (DECAY.replace("(1, 6, 8)", "(1, 6, 1)"), "at least 2 columns where periodic, got 1"),
    ],
)  # fmt: skip
def test_a_module_that_is_no_problem_is_refused(
    own_module: Callable[[str], str], text: str, words: str
) -> None:
    with pytest.raises(Misuse, match=words):
        problem_for(f"{own_module(text)}:problem", grid=None, reference=None)


def test_grids_are_the_module_s_own(own_module: Callable[[str], str]) -> None:
    with pytest.raises(Misuse, match="--grid and --reference must be left out"):
        problem_for(f"{own_module(DECAY)}:problem", grid=(4, 4), reference=None)
    with pytest.raises(Misuse, match="No module named 'absent'"):
        problem_for("absent:problem", grid=None, reference=None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise KeyError('pressure')", "failed at step 1: KeyError: 'pressure'"),
        ("return 'air', None", "must answer float64 fields of shape"),
        ("return fields", "failed at step 1: ValueError: not enough values"),
        ("return fields[:, :, :2], None", r"must answer .*fields of shape \(1, 1, 6, 8\)"),
        ("return fields / 0 * fields.sum() * 0, None", "must answer finite fields"),
        ("return fields.astype('f4'), None", "must answer float64 fields .* got float32"),
        ("return fields, np.ones((2, 5))", r"must answer 1 native parts, got .*\(2, 5\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_what_a_simulator_does_wrong_is_told_with_its_step(
    own_module: Callable[[str], str], line: str, words: str
) -> None:
    module = own_module(DECAY.replace("        mean =", f"        {line}\n        mean ="))
    problem = problem_for(f"{module}:problem", grid=None, reference=None)
    simulator = Metered(problem.coarse, name="it")
    fields = np.ones((1, 1, 6, 8))
    with pytest.raises(SimulatorFailure, match=words) as caught:
        simulator.step(fields, np.ones(1))
    assert np.array_equal(caught.value.fields, fields)


def test_a_simulator_that_works_in_place_changes_neither_its_input_nor_its_earlier_answers(
    own_module: Callable[[str], str],
) -> None:
    lines = (
        "        self.kept = getattr(self, 'kept', fields)\n"
        "        self.kept[:] = fields + 1\n"
        "        parameters *= 2\n"
        "        return self.kept, self.kept[:, 0, 0]\n"
    )
    module = own_module(DECAY.replace("        mean =", f"{lines}        mean ="))
    simulator = problem_for(f"{module}:problem", grid=None, reference=None).coarse
    fields, parameters = np.ones((2, 1, 6, 8)), np.ones(2)

    once, native = simulator.step(fields, parameters)
    twice, _ = simulator.step(once, parameters, native)

    assert (fields.max(), parameters.max()) == (1, 1)
    assert native is not None
    assert (once.max(), twice.min(), native.max()) == (2, 3, 2)


def test_what_a_function_does_wrong_is_told_with_its_name(
    own_module: Callable[[str], str],
) -> None:
    module = own_module(DECAY.replace("restrict=lambda fields: fields", "restrict=len().ok"))
    with pytest.raises(Misuse, match="TypeError: len"):
        problem_for(f"{module}:problem", grid=None, reference=None)
    module = own_module(DECAY.replace("restrict=lambda fields: fields", "restrict=lambda f: f[9]"))
    problem = problem_for(f"{module}:problem", grid=None, reference=None)
    assert problem.restrict is not None
    with pytest.raises(ValueError, match=r"restrict of .*:problem failed: IndexError"):
        problem.restrict(np.ones((1, 1, 6, 8)))


def test_smoke_is_restricted_with_its_density(recwarn: pytest.WarningsRecorder) -> None:
    problem = problem_for("phiflow-smoke", grid=(8, 8), reference=(16, 16))
    assert problem.start is not None
    assert problem.restrict is not None
    assert problem.restrict_native is not None
    assert problem.divergence is not None
    fields, native = problem.start(np.array([0.1]), 0)
    assert native is not None
    rng = np.random.default_rng(0)
    psi = np.zeros((1, 16, 16))
    psi[:, :-1, :-1] = rng.normal(size=(1, 15, 15))  # zero on all four walls of the box
    fields = np.stack((np.diff(psi, axis=1, prepend=0), -np.diff(psi, axis=2, prepend=0)), 1)

    velocity, density = problem.restrict(fields), problem.restrict_native(native)

    assert velocity.shape == (1, *problem.coarse.shape)
    # Fluxes through coarse faces are sums of fine ones, so no coarse cell gains or loses anything.
    np.testing.assert_allclose(problem.divergence(velocity), 0, atol=1e-14)
    assert density.shape == (1, 8, 8)
    np.testing.assert_allclose(density.mean(), native.mean(), rtol=1e-14)
    after, smoke = problem.coarse.step(velocity, np.array([0.1]), density)
    assert np.isfinite(after).all()
    assert smoke is not None
    assert len(recwarn) == 0
