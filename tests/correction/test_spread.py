"""Pieces answered apart against the minibatch as a whole: gradients, moments, bits, refusals.

The workers here are objects of this process; ``tests/cli/test_bench.py`` has real ones.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepzero_apps.correction import piecework
from deepzero_apps.correction.coloured import Coloring
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import Colored, Method, ThroughTwin, WithoutSolver
from deepzero_apps.correction.piecework import Piecework
from deepzero_apps.correction.simulator import Array, Metered, Simulator, SimulatorFailure
from deepzero_apps.correction.spread import Spread, state_of
from deepzero_apps.correction.training import Recipe, correction_training, pieces
from deepzero_apps.correction.trajectories import Trajectories
from deepzero_apps.correction.unrolled import Loop, Objective, loss_weights
from deepzero_apps.correction.weight_methods import Coordinates, Randomized
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.state import Weights
from tests.simulators import DT, Stencil, corrector_for, gradient_of

SHAPE = (2, 6, 7)
N, B = 3, 5


class Held:
    """A shared or kept value that never left the process."""

    made = 0

    def __init__(self, value: object) -> None:
        Held.made += 1
        self.number, self._value = Held.made, value

    def value(self) -> object:
        return self._value


class Lost(Held):
    def value(self) -> None:
        return None


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecework, "Kept", Held)


class Crew:
    """Workers that take turns; the last call is answered first."""

    def __init__(self, *workers: Piecework) -> None:
        self.workers, self.count = workers, len(workers)
        self.asked: list[str] = []

    def share(self, value: object) -> Held:
        return Held(value)

    def ask(self, method: str, calls: Iterable[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        for place, arguments in reversed(list(enumerate(calls))):
            self.asked.append(method)
            yield place, getattr(self.workers[place % self.count], method)(*arguments)


def stencil() -> Stencil:
    return Stencil(SHAPE, {(0, 0): 0.4, (1, -1): 0.5})


def simulations() -> Trajectories:
    rng = np.random.default_rng(5)
    parameters = np.array([0.6, 0.8, 1.1])
    native = rng.normal(size=(3, 6, 1))
    return Trajectories(rng.normal(size=(3, 6, *SHAPE)), parameters, native)


RECIPE = Recipe(unrolled=N, batch=B, updates=9, lr=1e-2, seed=3)
OBJECTIVE = Objective(loss_weights("every", N), unit=0.8)

Make = Callable[[Loop], Method]


def windowed(_: Loop | None = None) -> Windowed:
    return Windowed(0.05, 4, Credit(2, periodic=True), seed=7)


def coordinates(loop: Loop) -> Method:
    sizes = Weights(loop.corrector.network).sizes
    return Coordinates(1e-2, SupportSchedule(tuple(min(2, s) for s in sizes), sizes, seed=1))


METHODS: dict[str, Make] = {
    "nog": lambda _: WithoutSolver(),
    "zo-field": windowed,
    "colors": lambda _: Colored(Coloring(SHAPE, 1), 1e-3),
    "fo": lambda loop: ThroughTwin(loop.simulator.twin),  # type: ignore[attr-defined]
    "zo-weights": coordinates,
    "zo-weights-rge": lambda _: Randomized(1e-2, 3, seed=2),
}


def loop_for(*, inside: bool = False, simulator: Simulator | None = None) -> Loop:
    torch.manual_seed(1)
    coarse = stencil() if simulator is None else simulator
    return Loop(coarse, corrector_for(SHAPE), inside=inside, dt=DT)


def crew(
    make: Make, count: int, *, inside: bool = False, simulator: Simulator | None = None
) -> Crew:
    def worker() -> Piecework:
        loop = loop_for(inside=inside, simulator=simulator)
        with torch.no_grad():
            for p in loop.corrector.parameters():
                p.fill_(math.pi)  # the weights that count come with the calls
        return Piecework(loop, make(loop), OBJECTIVE, trajectories=simulations(), recipe=RECIPE)

    return Crew(*(worker() for _ in range(count)))


def gradients(method: Method, loop: Loop, updates: int = 2) -> list[Tensor]:
    found = []
    for step in range(updates):
        seen = method(loop, OBJECTIVE, pieces(simulations(), RECIPE, step), step=step)
        found.append(torch.cat((gradient_of(loop.corrector), torch.tensor([seen.loss]))))
    return found


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_that_of_the_minibatch(name: str, inside: bool) -> None:
    loop = loop_for(inside=inside)
    plain = METHODS[name](loop)
    spread = Spread(
        METHODS[name](loop), crew(METHODS[name], 2, inside=inside), queries_each=plain.queries(N)
    )

    found, exact = gradients(spread, loop), gradients(plain, loop)

    # Windows work in single precision; all else differs by rounding in double.
    tolerance = 1e-5 if name == "zo-field" else 1e-10
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
    assert exact[0].norm() > 0 or (name, inside) == ("nog", True)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_bits_do_not_depend_on_the_number_of_workers(name: str, inside: bool) -> None:
    found = []
    for count in (1, 2, 4):
        loop = loop_for(inside=inside)
        workers = crew(METHODS[name], count, inside=inside)
        found.append(gradients(Spread(METHODS[name](loop), workers, queries_each=1), loop))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("inside", [False, True])
def test_what_was_kept_and_is_lost_is_made_again(
    inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_for(inside=inside)
    whole = gradients(Spread(windowed(), crew(windowed, 2, inside=inside), queries_each=1), loop)
    monkeypatch.setattr(piecework, "Kept", Lost)

    again = gradients(Spread(windowed(), crew(windowed, 2, inside=inside), queries_each=1), loop)

    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_the_windows_learn_what_they_learn_from_the_whole_minibatch() -> None:
    loop, plain, asking = loop_for(), windowed(), windowed()
    gradients(plain, loop, 5)
    gradients(Spread(asking, crew(windowed, 3), queries_each=1), loop, 5)

    for lag in (1, 2):
        found, exact = asking.credit.window(lag), plain.credit.window(lag)
        # ratios of means of about a hundred single-precision products
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    found, exact = asking.credit.state_dict(), plain.credit.state_dict()
    assert found["updates"] == exact["updates"] == 5
    for lag in ("1", "2"):  # the moments themselves, which a run without workers may continue
        torch.testing.assert_close(
            found["moments"][lag], exact["moments"][lag], rtol=1e-4, atol=1e-6
        )


def test_the_fit_is_that_of_the_whole_minibatch() -> None:
    loop, plain, asking = loop_for(inside=True), windowed(), windowed()
    gradients(plain, loop, 2)
    gradients(Spread(asking, crew(windowed, 3, inside=True), queries_each=1), loop, 2)

    # sums, which a run without workers may continue
    assert asking.credit.state_dict()["fit"] == pytest.approx(plain.credit.state_dict()["fit"])


def test_a_training_spends_what_it_would_alone_and_ends_where_it_would() -> None:
    ends, spent = [], []
    for count in (0, 2):
        meter = Meter(10_000)
        loop = loop_for(simulator=Metered(stencil(), meter=meter if not count else None))
        method: Method = windowed()
        if count:
            each, workers = method.queries(N), crew(windowed, count)
            method = Spread(method, workers, queries_each=each, charge=meter.charge)
        training = correction_training(
            loop, method, OBJECTIVE, simulations(), recipe=RECIPE, meter=meter
        )
        rows = list(training.run(4))
        spent.append([row["queries"] for row in rows])
        ends.append(torch.cat([p.detach().flatten() for p in loop.corrector.parameters()]))
    assert spent[0] == spent[1] == [B * N * 5 * k for k in (1, 2, 3, 4)]
    # four steps of Adam are at most 4 lr in all; signs of gradients near zero may differ
    assert (ends[0] - ends[1]).abs().max() < 1e-3 * 4 * RECIPE.lr


def test_nothing_is_sent_beyond_the_budget() -> None:
    loop, workers = loop_for(), crew(windowed, 2)
    spread = Spread(windowed(), workers, queries_each=15, charge=Meter(5 * 15 - 1).charge)

    with pytest.raises(BudgetExhausted, match="budget of 74 queries"):
        gradients(spread, loop, 1)

    assert workers.asked == []


@pytest.mark.parametrize(
    ("inside", "rounds"), [(False, ["look", "write"]), (True, ["look", "measure", "write"])]
)
def test_an_update_takes_a_call_a_worker_and_round(inside: bool, rounds: list[str]) -> None:
    workers = crew(windowed, 2, inside=inside)
    gradients(Spread(windowed(), workers, queries_each=1), loop_for(inside=inside), 1)
    assert workers.asked == [name for name in rounds for _ in range(2)]


class Failing(Stencil):
    """Answers infinity once a state's parameter is the one that fails."""

    def step(
        self,
        fields: Array,
        parameters: Array,
        native: NDArray[Any] | None = None,
        *,
        forcing: Array | None = None,
    ) -> tuple[Array, NDArray[Any] | None]:
        after, kept = super().step(fields, parameters, native, forcing=forcing)
        after[parameters == 1.1] = np.inf
        return after, kept


@pytest.mark.parametrize("make", [windowed, METHODS["nog"]])
def test_a_failure_says_where_it_was(make: Make) -> None:
    failing = Metered(Failing(SHAPE, {(0, 0): 0.4}), name="the stencil")
    first = pieces(simulations(), RECIPE, 0).parameters.tolist().index(1.1)
    loop, workers = loop_for(), crew(make, 1, simulator=failing)

    with pytest.raises(
        SimulatorFailure,
        match=rf"update 1, piece {first + 1}: the stencil must answer finite fields",
    ) as caught:
        gradients(Spread(make(loop), workers, queries_each=1), loop, 1)

    assert caught.value.fields.shape[1:] == SHAPE
    assert caught.value.native is not None


def test_rounds_are_for_windows_alone() -> None:
    (worker,) = crew(METHODS["nog"], 1).workers
    with pytest.raises(TypeError, match="method must be Windowed to be asked in rounds, got With"):
        worker.look(Held(state_of(loop_for().corrector)), 0, [0])
