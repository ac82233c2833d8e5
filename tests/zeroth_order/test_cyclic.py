"""The cycle: every coordinate in its turn, as many as the shares say."""

import pytest
import torch

from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.sparsity import SupportSchedule

PLAIN = SupportSchedule((3.3, 0.2, 6.5), (10, 4, 20), interval=2, seed=1)
STARTS = (0, 10, 14)


def test_every_draw_has_the_stated_size_and_no_repeats() -> None:
    schedule = CyclicSchedule(PLAIN)
    for draw in range(100):
        support = schedule.at(2 * draw)
        assert len(support) == len(support.unique()) == schedule.total == 10
        assert torch.equal(support, support.sort().values)
        assert torch.equal(support, schedule.at(2 * draw + 1))


def test_every_coordinate_is_met_at_the_rate_of_its_layer_to_within_one() -> None:
    schedule, met = CyclicSchedule(PLAIN), torch.zeros(34)
    for draw in range(200):
        met[schedule.at(2 * draw)] += 1

    for share, size, start in zip(PLAIN.shares, PLAIN.sizes, STARTS, strict=True):
        # whole passes through the layer, give or take the one under way and one more coordinate
        expected = 200 * share / size
        assert ((met[start : start + size] - expected).abs() <= 1 + 1 / size).all()


def test_no_coordinate_waits_longer_than_its_cycle() -> None:
    schedule, last = CyclicSchedule(PLAIN), torch.zeros(34)
    waits = torch.zeros(34)
    for draw in range(200):
        support = schedule.at(2 * draw)
        waits[support] = torch.maximum(waits[support], draw - last[support])
        last[support] = draw

    assert waits[:10].max() <= 10 / 3.3 + 1
    assert waits[14:].max() <= 20 / 6.5 + 1


def test_a_dense_layer_is_met_in_every_draw() -> None:
    schedule = CyclicSchedule(SupportSchedule((5.0, 0.5, 1.5), (5, 3, 4)))
    assert all(set(range(5)) <= set(schedule.at(step).tolist()) for step in range(20))


def test_late_steps_need_no_memory_of_early_ones() -> None:
    # 4096 draws are one period of starts, in which the first layer takes 3.3 x 4096 to within one
    schedule = CyclicSchedule(PLAIN)
    late = schedule.at(2 * (4096 * 250 + 5))
    assert len(late) == len(late.unique()) == 10
    assert not torch.equal(late, CyclicSchedule(SupportSchedule(PLAIN.shares, PLAIN.sizes)).at(5))


def test_seeds_differ_and_a_draw_starts_with_the_interval() -> None:
    other = CyclicSchedule(SupportSchedule(PLAIN.shares, PLAIN.sizes, 2, seed=2))
    assert not torch.equal(CyclicSchedule(PLAIN).at(0), other.at(0))
    for schedule in (PLAIN, other):
        assert [schedule.redrawn(step) for step in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("shares", [(0.0, 3.0), (3.0, 0.0)])
def test_a_layer_without_a_share_is_never_met(shares: tuple[float, ...]) -> None:
    schedule = CyclicSchedule(SupportSchedule(shares, (5, 5)))
    met = torch.cat([schedule.at(step) for step in range(10)]).unique()
    assert met.tolist() == list(range(5, 10) if shares[0] == 0 else range(5))
