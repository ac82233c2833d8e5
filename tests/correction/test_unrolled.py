"""Unrolled pieces against a loop written out, losses in closed form, cotangents by autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deepzero_apps.correction.rollout import Corrected
from deepzero_apps.correction.unrolled import Loop, Objective, Windows, loss_weights
from tests.simulators import DT, Doubling, Stencil, corrector_for, windows_for

# The same operations in the same order, but for the rounding of a convolution's kernel.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def piece(steps: int = 3) -> tuple[Stencil, Windows]:
    stencil = Stencil((2, 5, 6), {(0, 0): 0.5, (1, -1): 0.3})
    native = np.array([[0.1], [0.2], [0.4]])
    return stencil, windows_for(stencil, steps, native=native)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pushed", [False, True])
def test_a_piece_is_a_loop_of_simulator_and_corrector(inside: bool, pushed: bool) -> None:
    stencil, windows = piece()
    corrector = corrector_for(stencil.shape)
    pushes = torch.randn(3, 3, 2, 5, 6) if pushed else torch.zeros(3, 3, 2, 5, 6)

    loop = Loop(stencil, corrector, inside=inside, dt=DT)
    trace = loop.run(windows, push=(lambda t: pushes[t]) if pushed else None)

    s, native = windows.fields, torch.from_numpy(windows.native)
    for t in range(3):
        if not inside:
            s, native = stencil.twin(s, windows.parameters, native)
        seen = corrector.features(s, windows.parameters)
        added = corrector.correction(corrector.network(seen) + pushes[t], (5, 6)).detach()
        if inside:
            s, native = stencil.twin(s, windows.parameters, native, forcing=added / DT)
        else:
            s = s + added
        torch.testing.assert_close(trace.features[t], seen, **CLOSE)
        torch.testing.assert_close(trace.states[t], s, **CLOSE)
    assert not trace.states.requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_a_corrected_simulator_makes_the_steps_of_the_loop(inside: bool) -> None:
    stencil, windows = piece(4)
    corrector = corrector_for(stencil.shape)
    states = Loop(stencil, corrector, inside=inside, dt=DT).run(windows).states
    corrected = Corrected(stencil, corrector, inside=inside, dt=DT)

    fields, native = windows.fields.numpy(), windows.native
    for state in states:
        fields, native = corrected.step(fields, windows.parameters.numpy(), native)
        torch.testing.assert_close(torch.from_numpy(fields), state, **CLOSE)


def test_a_forcing_is_added_to_the_correction_inside_and_passed_on_after() -> None:
    stencil, windows = piece(1)
    corrector = corrector_for(stencil.shape)
    u, p = windows.fields.numpy(), windows.parameters.numpy()
    forcing = np.random.default_rng(0).normal(size=u.shape)
    own = corrector(windows.fields, windows.parameters).detach().numpy()

    inside, _ = Corrected(stencil, corrector, inside=True, dt=DT).step(u, p, forcing=forcing)
    after, _ = Corrected(stencil, corrector).step(u, p, forcing=forcing)

    pushed, _ = stencil.step(u, p, forcing=forcing)
    np.testing.assert_allclose(inside, pushed + own, **CLOSE)
    later = corrector(torch.from_numpy(pushed), windows.parameters).detach().numpy()
    np.testing.assert_allclose(after, pushed + later, **CLOSE)


def test_networks_stand_in_for_the_corrector_s_own() -> None:
    stencil, windows = piece(1)
    corrector = corrector_for(stencil.shape)

    def ones(features: Tensor) -> Tensor:
        return torch.ones_like(features[:, :2])

    states = Loop(stencil, corrector).run(windows, networks=ones).states

    plain, _ = stencil.twin(windows.fields, windows.parameters, torch.from_numpy(windows.native))
    torch.testing.assert_close(states[0], plain + corrector.scale, **CLOSE)


def test_copies_of_windows_lie_one_after_the_other() -> None:
    _, windows = piece()
    many = windows.repeated(2)
    for whole, part in (
        (many.fields, windows.fields),
        (many.parameters, windows.parameters),
        (many.references, windows.references),
        (torch.from_numpy(many.native), torch.from_numpy(windows.native)),
    ):
        assert torch.equal(whole, torch.cat((part, part)))


def test_a_run_leaves_windows_as_they_were() -> None:
    stencil, windows = piece()
    before = (windows.fields.clone(), windows.native.copy())
    Loop(stencil, corrector_for(stencil.shape)).run(windows)
    assert torch.equal(windows.fields, before[0])
    assert np.array_equal(windows.native, before[1])


def test_a_loss_is_the_weighted_mean_square_in_units_of_the_field() -> None:
    wanted = torch.zeros(1, 2, 1, 2, 2)
    windows = Windows(torch.zeros(1, 1, 2, 2), torch.ones(1), wanted)
    states = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 4]]).view(2, 1, 1, 2, 2)

    losses = Objective(torch.tensor([0.25, 0.75]), unit=0.5).losses(states, windows)

    # step 1: mean 1 / .25 = 4; step 2: mean (4 + 4 + 4 + 16) / 4 / .25 = 28
    assert losses.tolist() == [0.25 * 4 + 0.75 * 28]


def test_cotangents_are_the_gradient_of_the_mean_loss() -> None:
    stencil, windows = piece()
    objective = Objective(torch.tensor([0.2, 0.3, 0.5]), unit=0.7)
    states = torch.randn(3, 3, *stencil.shape, requires_grad=True)
    (exact,) = torch.autograd.grad(objective.losses(states, windows).mean(), states)

    torch.testing.assert_close(objective.cotangents(states.detach(), windows), exact, **CLOSE)


@pytest.mark.parametrize(
    ("loss", "steps", "every", "weights"),
    [
        ("every", 4, 2, [1 / 4] * 4),
        ("every-k", 5, 2, [1 / 3, 0, 1 / 3, 0, 1 / 3]),
        ("every-k", 6, 4, [0, 1 / 2, 0, 0, 0, 1 / 2]),
        ("every-k", 2, 9, [0, 1]),
        ("terminal", 3, 1, [0, 0, 1]),
        ("terminal", 1, 1, [1]),
    ],
)
def test_weights_of_the_steps(loss: str, steps: int, every: int, weights: list[float]) -> None:
    assert loss_weights(loss, steps, every=every).tolist() == weights


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("every", 0), "steps and every must be at least 1, got 0 and 2"),
        (("last", 3), "loss must be every, every-k or terminal, got 'last'"),
    ],
)
def test_losses_that_make_no_sense_are_refused(arguments: tuple[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        loss_weights(*arguments)


@pytest.mark.parametrize("kind", [Loop, Corrected])
def test_corrections_inside_need_a_simulator_that_takes_them(kind: type) -> None:
    with pytest.raises(ValueError, match="inside must be False for a simulator that takes no"):
        kind(Doubling(), corrector_for(Doubling.shape), inside=True)
