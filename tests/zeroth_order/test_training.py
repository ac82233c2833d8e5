"""The loop: exact resume, held weights, clipping, budgets, refusals."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.gradients import Coordinates, FirstOrder
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
from deepzero_apps.zeroth_order.sparsity import SupportSchedule
from deepzero_apps.zeroth_order.training import Observation, Training, minibatch

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)
SIZES = (12, 4, 4, 1)


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))


def head(outputs: Tensor) -> Tensor:
    return (outputs - 1).square().mean(-1)


def training(
    optimizer: str = "sgd", *, hold: bool = False, clip: float | None = None, seed: int = 0
) -> Training:
    net = network()
    schedule = SupportSchedule((3, 1, 1, 0), SIZES, interval=2)
    estimate = Coordinates(mu=1e-4, schedule=schedule)
    meter = Meter()

    def gradient(step: int) -> Observation:
        rows = minibatch(step, samples=8, size=4, seed=seed)
        seen = estimate(net, X[rows], head, step=step)
        meter.charge(6)
        return seen

    chosen: torch.optim.Optimizer
    if optimizer == "sgd":
        chosen = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    else:
        chosen = torch.optim.AdamW(net.parameters(), lr=0.01, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, 12)
    return Training(
        net,
        chosen,
        gradient,
        scheduler=scheduler,
        meter=meter,
        hold_unselected=hold,
        clip_norm=clip,
        seed=seed,
    )


def weights(run: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def exhaust(steps: Iterator[object]) -> int:
    return sum(1 for _ in steps)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_restored_run_ends_with_the_same_bits(optimizer: str, stop: int) -> None:
    whole = training(optimizer)
    exhaust(whole.run(10))

    first = training(optimizer)
    exhaust(first.run(stop))
    torch.rand(100)  # whatever else happens to the global generator
    second = training(optimizer)
    second.load_state_dict(first.state_dict())
    metrics = list(second.run(10))

    assert torch.equal(weights(second), weights(whole))
    assert [m["step"] for m in metrics] == list(range(stop + 1, 11))
    assert second.meter.spent == whole.meter.spent == 60


def test_another_seed_ends_elsewhere() -> None:
    runs = [training(seed=seed) for seed in (0, 1)]
    for run in runs:
        exhaust(run.run(4))

    assert not torch.equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_unselected_weights_are_held_or_drift_by_choice(optimizer: str) -> None:
    for hold in (True, False):
        run = training(optimizer, hold=hold)
        exhaust(run.run(4))  # momentum has built up; steps 4 and 5 share a support
        before = weights(run)
        exhaust(run.run(5))
        moved = (weights(run) != before).nonzero().flatten()
        selected = SupportSchedule((3, 1, 1, 0), SIZES, interval=2).at(4)

        inside = torch.isin(moved, selected).all()
        assert bool(inside) is hold
        assert torch.isin(selected, moved).all()


def test_clipping_bounds_the_gradient_and_keeps_its_direction() -> None:
    free, clipped = training(), training(clip=1e-3)
    free_norm = next(free.run(1))["gradient_norm"]
    next(clipped.run(1))

    g, h = (
        torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None])
        for run in (free, clipped)
    )
    # torch divides by norm + 1e-6
    torch.testing.assert_close(h, g * 1e-3 / (free_norm + 1e-6), rtol=1e-6, atol=0)


def test_an_exhausted_budget_stops_cleanly_or_raises_as_asked() -> None:
    run = training()
    run.meter.budget = 20
    assert exhaust(run.run(10)) == 3
    after = weights(run)

    with pytest.raises(BudgetExhausted, match="20 queries does not cover 6 more: 18 are spent"):
        exhaust(run.run(10, stop_at_budget=False))
    assert torch.equal(weights(run), after)
    assert run.meter.spent == 18


def test_a_non_finite_loss_leaves_the_weights_alone() -> None:
    net = network()

    def gradient(step: int) -> Observation:
        FirstOrder()(net, X, head, step=step)
        return Observation(float("nan"))

    run = Training(net, torch.optim.SGD(net.parameters(), lr=0.1), gradient)
    before = weights(run)

    with pytest.raises(FloatingPointError, match=r"must be finite, got loss nan .* at step 0"):
        next(run.run(1))
    assert torch.equal(weights(run), before)


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    exhaust(training_without_reseeding().run(3))

    assert torch.equal(torch.rand(3), expected)


def training_without_reseeding() -> Training:
    state = torch.get_rng_state()
    run = training()
    torch.set_rng_state(state)
    return run


def test_an_epoch_deals_every_sample_once() -> None:
    epoch = torch.cat([minibatch(step, samples=10, size=3, seed=1) for step in (3, 4, 5)])
    other = torch.cat([minibatch(step, samples=10, size=3, seed=1) for step in (0, 1, 2)])

    assert epoch.unique().numel() == 9
    assert not torch.equal(epoch, other)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="clip_norm must be positive, got 0"):
        training(clip=0)
    with pytest.raises(ValueError, match=r"size must lie in \[1, 3\], got 4"):
        minibatch(0, samples=3, size=4, seed=0)
