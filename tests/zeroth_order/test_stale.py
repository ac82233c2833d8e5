"""Remembered slopes: decay by hand, holding, exact resumption."""

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.gradients import Coordinates, FirstOrder
from deepzero_apps.zeroth_order.sparsity import Schedule, SupportSchedule
from deepzero_apps.zeroth_order.stale import Remembered
from deepzero_apps.zeroth_order.training import Observation, Training

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)
SHARES, SIZES = (3.0, 1.0, 1.0, 0.0), (12, 4, 4, 1)


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def head(outputs: Tensor) -> Tensor:
    return (outputs - 1).square().mean(-1)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def schedules() -> list[Schedule]:
    plain = SupportSchedule(SHARES, SIZES, interval=2)
    return [plain, CyclicSchedule(plain)]


@pytest.mark.parametrize("schedule", schedules(), ids=["random", "cyclic"])
def test_a_slope_is_kept_with_decay_until_it_is_measured_again(schedule: Schedule) -> None:
    net, gradient = network(), Remembered(FirstOrder(schedule), 0.8)
    memory = torch.zeros(21)
    met = torch.zeros(21, dtype=torch.bool)

    for step in range(9):
        net.zero_grad()
        FirstOrder()(net, X, head, step=step)
        exact, support = flat(net), schedule.at(step)
        memory *= 0.8
        memory[support] = exact[support]
        met[support] = True

        net.zero_grad()
        seen = gradient(net, X, head, step=step)

        torch.testing.assert_close(flat(net), memory, rtol=1e-12, atol=0)
        assert seen.support is not None
        assert torch.equal(seen.support, met.nonzero().flatten())
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1)


def test_no_decay_at_all_keeps_and_full_decay_forgets() -> None:
    schedule = SupportSchedule(SHARES, SIZES)
    kept, plain, forgotten = network(), network(), network()
    keep, forget = Remembered(FirstOrder(schedule), 1.0), Remembered(FirstOrder(schedule), 0.0)
    for step in range(200):  # a coordinate of share 1/4 is unmet with probability .75^200 ~ 1e-25
        for net, gradient in ((kept, keep), (plain, FirstOrder(schedule)), (forgotten, forget)):
            net.zero_grad()
            gradient(net, X, head, step=step)

    assert torch.equal(flat(forgotten), flat(plain))
    kept_now = flat(kept)
    kept.zero_grad()
    FirstOrder()(kept, X, head, step=0)
    torch.testing.assert_close(kept_now[:20], flat(kept)[:20])  # the weights did not move


def test_clipping_does_not_reach_the_memory() -> None:
    net, gradient = network(), Remembered(Coordinates(1e-4, SupportSchedule(SHARES, SIZES)), 1.0)
    gradient(net, X, head, step=0)
    before = gradient.state_dict()["slopes"].clone()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-6)

    assert torch.equal(gradient.state_dict()["slopes"], before)


def test_what_was_stored_does_not_change_when_the_run_goes_on() -> None:
    net, gradient = network(), Remembered(FirstOrder(SupportSchedule(SHARES, SIZES)), 0.5)
    gradient(net, X, head, step=0)
    state = gradient.state_dict()
    stored = state["slopes"].clone()
    gradient(net, X, head, step=1)

    assert torch.equal(state["slopes"], stored)


def training(*, hold: bool = False, schedule: int = 0) -> Training:
    net = network()
    gradient = Remembered(Coordinates(1e-4, schedules()[schedule]), 0.7)

    def estimate(step: int) -> Observation:
        return gradient(net, X, head, step=step)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return Training(net, optimizer, estimate, companion=gradient, hold_unselected=hold)


def weights(run: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


@pytest.mark.parametrize("schedule", [0, 1], ids=["random", "cyclic"])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_restored_run_ends_with_the_same_bits(stop: int, schedule: int) -> None:
    whole, first, second = (training(schedule=schedule) for _ in range(3))
    for run, steps in ((whole, 10), (first, stop)):
        for _ in run.run(steps):
            pass
    second.load_state_dict(first.state_dict())
    for _ in second.run(10):
        pass

    assert torch.equal(weights(second), weights(whole))


def test_held_weights_move_once_they_are_remembered() -> None:
    run = training(hold=True)
    before = weights(run)
    for _ in run.run(2):  # both steps share a support
        pass

    moved = (weights(run) != before).nonzero().flatten()
    assert torch.equal(moved, schedules()[0].at(0))
    for _ in run.run(4):
        pass
    moved = (weights(run) != before).nonzero().flatten()
    assert torch.equal(moved, torch.cat([schedules()[0].at(s) for s in (0, 2)]).unique())


def test_a_dense_gradient_passes_unchanged() -> None:
    nets = network(), network()
    Remembered(FirstOrder(), 0.9)(nets[0], X, head, step=0)
    FirstOrder()(nets[1], X, head, step=0)

    assert torch.equal(flat(nets[0]), flat(nets[1]))


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got"):
        Remembered(FirstOrder(), decay)


def test_another_network_is_refused() -> None:
    gradient = Remembered(FirstOrder(SupportSchedule(SHARES, SIZES)), 0.9)
    gradient(network(), X, head, step=0)
    other = nn.Linear(3, 1)
    gradient.plain = FirstOrder(SupportSchedule((1.0, 0.0), (3, 1)))
    with pytest.raises(ValueError, match=r"must have the 21 trainable weights .* got 4"):
        gradient(other, X, head, step=0)
