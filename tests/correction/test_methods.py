"""Each method's ``.grad`` against autograd: through a twin, or through a loop written out."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from deepzero_apps.correction.burgers_twin import BurgersTwin
from deepzero_apps.correction.coloured import Coloring
from deepzero_apps.correction.correctors import Corrector, NetworkName, build
from deepzero_apps.correction.credit import Credit
from deepzero_apps.correction.methods import (
    Colored,
    Method,
    ThroughTwin,
    WithoutSolver,
    direct,
)
from deepzero_apps.correction.simulator import Metered
from deepzero_apps.correction.unrolled import Loop, Objective, Windows, loss_weights
from deepzero_apps.correction.weight_methods import Coordinates, Randomized, weight_losses
from deepzero_apps.correction.windowed import Windowed
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.stacked import Copies
from deepzero_apps.zeroth_order.state import Weights
from solvers.burgers import Burgers
from tests.simulators import DT, Stencil, corrector_for, gradient_of, windows_for

LossName = Literal["every", "every-k", "terminal"]


def flow(dimensions: int, steps: int) -> tuple[Burgers, BurgersTwin, Windows]:
    settings = {"dimensions": dimensions, "length": 7.0, "dt": 0.1}
    solver, twin = Burgers(9, **settings), BurgersTwin(9, **settings)
    fields, native = solver.initial(np.array([0.1, 0.2]), seed=1)
    parameters = np.array([0.1, 0.2])
    return (
        solver,
        twin,
        windows_for(solver, steps, parameters=parameters, native=native, fields=fields),
    )


def drift(steps: int, *, shape: tuple[int, ...] = (2, 6, 7)) -> tuple[Stencil, Windows]:
    offsets = {(0, 0): 0.4, (1, -1): 0.5} if len(shape) == 3 else {(0,): 0.4, (1,): 0.5}
    stencil = Stencil(shape, offsets)
    return stencil, windows_for(stencil, steps, native=np.array([[0.1], [0.2], [0.4]]))


def objective(steps: int, loss: LossName = "every") -> Objective:
    return Objective(loss_weights(loss, steps), unit=0.8)


def written(
    method: Method, loop: Loop, windows: Windows, *, loss: LossName, step: int = 0
) -> Tensor:
    method(loop, objective(windows.steps, loss), windows, step=step)
    return gradient_of(loop.corrector)


@pytest.mark.parametrize("loss", ["every", "every-k", "terminal"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_colors_give_the_gradient_of_the_twin(
    dimensions: int, inside: bool, loss: LossName
) -> None:
    solver, twin, windows = flow(dimensions, 3)
    corrector = corrector_for(solver.shape, scale=0.1)
    loop = Loop(solver, corrector, inside=inside, dt=solver.dt)

    found = written(Colored(Coloring(solver.shape, 1), 1e-6), loop, windows, loss=loss)
    exact = written(ThroughTwin(twin), loop, windows, loss=loss)

    # Differences of a quadratic scheme are exact but for rounding, 1e-16 / 1e-6 an entry.
    assert (found - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("loss", ["every", "terminal"])
def test_the_twin_s_gradient_is_autograd_through_a_loop(inside: bool, loss: LossName) -> None:
    stencil, windows = drift(3)
    corrector = corrector_for(stencil.shape)

    loop = Loop(stencil, corrector, inside=inside, dt=DT)
    found = written(ThroughTwin(stencil.twin), loop, windows, loss=loss)

    exact = _slow_gradient(stencil, corrector, windows, inside=inside, loss=loss, cut=False)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)


def _slow_gradient(
    stencil: Stencil,
    corrector: Corrector,
    windows: Windows,
    *,
    inside: bool,
    loss: LossName,
    cut: bool,
) -> Tensor:
    """Autograd through a loop; ``cut`` ends the graph at what the simulator answers."""
    s, native = windows.fields, torch.from_numpy(windows.native)
    total = torch.zeros(())
    for t in range(windows.steps):
        push = corrector(s, windows.parameters) / DT if inside else None
        s, native = stencil.twin(s, windows.parameters, native, forcing=push)
        s = s.detach() if cut else s
        if not inside:
            s = s + corrector(s, windows.parameters)
        error = (s - windows.references[:, t]) / 0.8
        total = total + objective(windows.steps, loss).weights[t] * error.square().mean()
    parts = torch.autograd.grad(total, list(corrector.network.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("loss", ["every", "every-k", "terminal"])
def test_without_the_solver_the_graph_ends_where_it_answers(loss: LossName) -> None:
    stencil, windows = drift(4)
    corrector = corrector_for(stencil.shape, movable=(torch.rand(2, 6, 7) < 0.8).double())

    found = written(WithoutSolver(), Loop(stencil, corrector), windows, loss=loss)

    exact = _slow_gradient(stencil, corrector, windows, inside=False, loss=loss, cut=True)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)


def test_without_the_solver_a_terminal_loss_teaches_the_last_control_alone() -> None:
    stencil, windows = drift(4)
    loop = Loop(stencil, corrector_for(stencil.shape, scale=0.7))
    cotangents = objective(4, "terminal").cotangents(loop.run(windows).states, windows)

    found = direct(loop, cotangents)

    assert not found[:-1].any()
    torch.testing.assert_close(found[-1], 0.7 * cotangents[-1], rtol=1e-14, atol=0)


def test_without_the_solver_nothing_is_learned_inside_of_it() -> None:
    stencil, windows = drift(2)
    loop = Loop(stencil, corrector_for(stencil.shape), inside=True, dt=DT)
    assert not written(WithoutSolver(), loop, windows, loss="every").any()


@pytest.mark.parametrize("shape", [(2, 6, 7), (1, 9)])
@pytest.mark.parametrize("inside", [False, True])
def test_windows_converge_to_the_exact_gradient_size_and_all(
    inside: bool, shape: tuple[int, ...]
) -> None:
    stencil, windows = drift(3, shape=shape)
    loop = Loop(stencil, corrector_for(shape, spread=0.02), inside=inside, dt=DT)
    exact = written(ThroughTwin(stencil.twin), loop, windows, loss="every")
    # The loop is not linear, as the network feels its own pushes: mu is small. Offsets of three
    # cover what three steps of the simulator carry; the network carries little, by its spread.
    method = Windowed(1e-4, 256, Credit(3, periodic=True), seed=5)

    draws = torch.stack(
        [written(method, loop, windows, loss="every", step=step) for step in range(6)]
    )

    mean = draws.mean(0)
    sizes = draws @ exact / (exact @ exact)
    # Effects shrink by 1 / (1 + noise / signal / q). A sign acts on 2 to 4 cells in each of 3 steps,
    # the least of them with a tenth of the power of all: noise / signal is at most about ten.
    assert 1 - 10 / 256 - 5 * sizes.std() / math.sqrt(6) < sizes.mean()
    assert sizes.mean() < 1 + 5 * sizes.std() / math.sqrt(6)
    assert sizes.std() < 0.05
    assert cosine_similarity(mean, exact, dim=0) > 0.999


@pytest.mark.parametrize(("steps", "kept"), [(1, 0.5), (3, 0.0)])
def test_what_signs_do_to_their_own_steps_leaves_no_noise(steps: int, kept: float) -> None:
    # In one step nothing passes the simulator, nor in three if it forgets what it is given.
    stencil = Stencil((2, 6, 7), {(0, 0): kept})
    windows = windows_for(stencil, steps, native=np.array([[0.1], [0.2], [0.4]]))
    loop = Loop(stencil, corrector_for(stencil.shape))
    credit = Credit(1, periodic=True)
    found = written(Windowed(mu=1e-3, q=2, credit=credit), loop, windows, loss="every")
    exact = written(ThroughTwin(stencil.twin), loop, windows, loss="every")
    # rounding of the states, 1e-16 / mu = 1e-13, times cotangents and as many cells
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)


def test_signs_are_a_function_of_seed_and_step() -> None:
    stencil, windows = drift(2)
    loop = Loop(stencil, corrector_for(stencil.shape))

    def draw(seed: int, step: int) -> Tensor:
        method = Windowed(mu=1e-3, q=2, credit=Credit(1, periodic=True), seed=seed)
        return written(method, loop, windows, loss="terminal", step=step)

    assert torch.equal(draw(1, 4), draw(1, 4))
    assert not torch.equal(draw(1, 4), draw(1, 5))
    assert not torch.equal(draw(1, 4), draw(2, 4))


def all_weights(corrector: Corrector) -> SupportSchedule:
    sizes = Weights(corrector.network).sizes
    return SupportSchedule(tuple(map(float, sizes)), sizes)


@pytest.mark.parametrize("inside", [False, True])
def test_all_weights_moved_one_at_a_time_give_the_gradient_of_the_twin(inside: bool) -> None:
    solver, twin, windows = flow(1, 2)
    corrector = corrector_for(solver.shape, width=1, scale=0.1)
    loop = Loop(solver, corrector, inside=inside, dt=solver.dt)

    found = written(Coordinates(1e-6, all_weights(corrector)), loop, windows, loss="every")

    exact = written(ThroughTwin(twin), loop, windows, loss="every")
    # a bias of mu / 2 times curvatures of the order of the loss, 2; rounding 4e-16 / mu
    torch.testing.assert_close(found, exact, rtol=0, atol=5e-6)
    assert exact.abs().max() > 1e-2


def test_coordinates_outside_of_the_support_are_zero() -> None:
    stencil, windows = drift(2, shape=(1, 9))
    corrector = corrector_for(stencil.shape, width=1)
    sizes = Weights(corrector.network).sizes
    schedule = SupportSchedule((2.0, *(0.0,) * (len(sizes) - 1)), sizes, seed=3)

    found = written(
        Coordinates(1e-6, schedule), Loop(stencil, corrector), windows, loss="every", step=8
    )

    assert found.nonzero().flatten().tolist() == schedule.at(8).tolist()


def test_random_directions_are_right_on_average() -> None:
    stencil, windows = drift(2, shape=(1, 9))
    corrector = corrector_for(stencil.shape, width=1)
    loop, q = Loop(stencil, corrector), 4000

    found = written(Randomized(1e-5, q), loop, windows, loss="every")

    g = written(ThroughTwin(stencil.twin), loop, windows, loss="every")
    # one pair gives (g.u) u, of mean g and variance |g|^2 + g_i^2; curvature cancels in a pair
    assert ((found - g).abs() < 5 * ((g @ g + g**2) / q).sqrt()).all()
    assert (g @ found) / (g @ g) == pytest.approx(1.0, abs=5 * math.sqrt(2 / q))


@pytest.mark.parametrize("name", ["cnn", "um-small", "um-resnet"])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("periodic", [True, False])
def test_copies_with_inputs_of_their_own_are_networks_apart(
    name: NetworkName, rows: int, periodic: bool
) -> None:
    network = build(name, 3, 2, rows=rows, periodic=periodic)
    copies = Copies(network)
    points = copies.theta() + 0.1 * torch.randn(3, len(copies.theta()))
    x = torch.randn(3, 2, 3, rows, 7)

    with torch.no_grad():
        together = copies(x.transpose(0, 1).flatten(1, 2), points)

    sizes = dict(network.named_parameters())
    for copy, own, output in zip(points, x, together, strict=True):
        parts = copy.split([p.numel() for p in sizes.values()])
        given = {k: v.view(p.shape) for (k, p), v in zip(sizes.items(), parts, strict=True)}
        alone = torch.func.functional_call(network, given, (own,))
        # up to 11 layers, sums of 800 products of size .1 to 10
        torch.testing.assert_close(
            output, alone, rtol=1e-10, atol=1e-10 * float(alone.abs().max())
        )


def test_losses_of_many_weights_are_those_of_each() -> None:
    stencil, windows = drift(2)
    corrector = corrector_for(stencil.shape)
    loop = Loop(stencil, corrector)
    losses = weight_losses(loop, objective(2), windows)
    theta = torch.nn.utils.parameters_to_vector(corrector.network.parameters()).detach()
    points = theta + 0.1 * torch.randn(3, len(theta))

    found = losses(points)

    for point, loss in zip(points, found, strict=True):
        torch.nn.utils.vector_to_parameters(point, corrector.network.parameters())
        alone = objective(2).losses(loop.run(windows).states, windows).mean()
        assert float(loss) == pytest.approx(float(alone), rel=1e-12)


def every_method(corrector: Corrector, twin: Stencil) -> dict[str, Method]:
    return {
        "nog": WithoutSolver(),
        "windowed": Windowed(1e-3, 4, Credit(1)),
        "colored": Colored(Coloring(twin.shape, 1), 1e-3),
        "coordinates": Coordinates(1e-3, all_weights(corrector)),
        "randomized": Randomized(1e-3, 3),
    }


@pytest.mark.parametrize("name", ["nog", "windowed", "colored", "coordinates", "randomized"])
def test_queries_are_counted_as_announced_and_the_loss_is_that_before_the_step(name: str) -> None:
    stencil, windows = drift(3, shape=(1, 9))
    corrector = corrector_for(stencil.shape, width=1)
    simulator = Metered(stencil)
    method = every_method(corrector, stencil)[name]
    weights = [p.detach().clone() for p in corrector.network.parameters()]

    seen = method(Loop(simulator, corrector), objective(3), windows, step=0)

    assert simulator.meter.spent == 3 * method.queries(3)
    trace = Loop(stencil, corrector).run(windows)
    expected = float(objective(3).losses(trace.states, windows).mean())
    assert seen.loss == pytest.approx(expected, rel=1e-12)
    assert all(map(torch.equal, weights, corrector.network.parameters()))


def test_the_twin_s_steps_are_charged_too() -> None:
    stencil, windows = drift(3)
    charged: list[int] = []
    method = ThroughTwin(stencil.twin, charged.append)
    method(Loop(stencil, corrector_for(stencil.shape)), objective(3), windows, step=0)
    assert sum(charged) == 3 * method.queries(3) == 9


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Windowed(0.0, 2, Credit()), r"mu must be positive, got 0\.0"),
        (
            lambda: Windowed(1e-3, 1, Credit()),
            "q must be at least 2, to tell signal from noise, got 1",
        ),
        (lambda: Colored(Coloring((1, 9), 1), -1.0), r"mu must be positive, got -1\.0"),
        (
            lambda: Coordinates(math.nan, SupportSchedule((1.0,), (2,))),
            "mu must be positive, got nan",
        ),
        (lambda: Randomized(1e-3, 0), "q must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: type[Method], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
