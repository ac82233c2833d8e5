"""Windows of credit against loops written out, and against responses whose causes are known."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from deepzero_apps.correction.credit import Credit

COTANGENT = torch.tensor([1.0, -2.0, 3.0])


def slow_means(
    signs: Tensor, responses: Tensor, lag: int, *, radius: int, periodic: bool
) -> dict[tuple[int, ...], Tensor]:
    """Eq. (1): offsets (of rows, of columns) to g, ``(n - lag, q, b, channels, c, rows, columns)``."""
    n, rows, columns = len(signs), *signs.shape[-2:]
    found = {}
    for dy, dx in product(range(-radius, radius + 1), repeat=2):
        causes = signs[: n - lag].unsqueeze(4)
        g = torch.zeros_like(causes * responses[lag:].unsqueeze(3))
        for y, x in product(range(rows), range(columns)):
            at = (y + dy, x + dx)
            if periodic:
                at = (at[0] % rows, at[1] % columns)
            if 0 <= at[0] < rows and 0 <= at[1] < columns:
                effect = responses[lag:, :, :, None, :, at[0], at[1]]
                g[..., y, x] = causes[..., y, x] * effect
        found[dy, dx] = g
    return found


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("first_lag", [0, 1])
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_factors_and_estimate_are_those_of_a_slow_loop(
    periodic: bool, first_lag: int, least: float
) -> None:
    signs = torch.randint(2, (3, 4, 2, 2, 3, 4)) * 2.0 - 1
    responses = torch.randn(3, 4, 2, 3, 3, 4) + signs.repeat(1, 1, 1, 2, 1, 1)[:, :, :, :3]
    credit = Credit(1, periodic=periodic, least=least)

    estimate = credit.assign(signs, responses, first_lag=first_lag)

    expected = torch.zeros(3, 2, 2, 3, 4)
    for lag in range(first_lag, 3):
        window = credit.window(lag)
        for (dy, dx), g in slow_means(signs, responses, lag, radius=1, periodic=periodic).items():
            bar, cells = g.mean(1), (0, 1, 2, 5, 6)
            signal = sum((g[:, [i]] * g[:, [i - 1]]).mean(cells) for i in range(4)) / 4
            w = (signal / (signal + (g.square().mean(cells) - signal) / 4)).clamp(0, 1)
            w[w < least] = 0
            torch.testing.assert_close(window[:, :, dy + 1, dx + 1], w, rtol=1e-10, atol=1e-12)
            expected[: 3 - lag] += (w[:, :, None, None] * bar).sum(3)
    torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=1e-12)
    assert 0 < credit.window(first_lag).mean() < 1  # the clamps alone would prove little


def known(generator: torch.Generator, q: int) -> tuple[Tensor, Tensor]:
    """Three steps on 8 x 8 cells: a sign acts .8 one column right and -.6 two rows down, later."""
    signs = torch.randint(2, (3, q, 2, 1, 8, 8), generator=generator) * 2.0 - 1
    effects = torch.zeros_like(signs)
    effects[1:] += 0.8 * signs[:-1].roll(1, -1)
    effects[2:] += -0.6 * signs[:-2].roll(2, -2)
    return signs, effects * COTANGENT.view(3, 1, 1, 1, 1, 1)


def test_factors_find_where_effects_appear_and_nothing_elsewhere() -> None:
    credit, generator = Credit(3, periodic=True, memory=0.9), torch.Generator()
    q = 256
    for _ in range(10):
        credit.assign(*known(generator.manual_seed(7 + credit._updates), q), first_lag=1)

    for lag, place in ((1, (3, 4)), (2, (5, 3))):
        window = credit.window(lag)[0, 0]
        assert ((window >= 0) & (window <= 1)).all()
        # Lag 1: signals -2 * .8 and 3 * .8, mean square 4.16; noise in step 2 alone, 3 * -.6, mean
        # square 1.62; eq. (2) is 1 / (1 + 1.62 / 4.16 / q). Lag 2: signal 1.8, noise 2.4, and
        # 1 / (1 + 1.78 / q). Numerator and denominator fluctuate together; twice the distance.
        assert window[place] > 1 - 4 / q
        # Elsewhere the mean product of two halves is zero, with a standard deviation of 2 / sqrt(N)
        # of the denominator (each half has twice its variance); N = 64 cells * 2 pieces and
        # no less than one update of ten. Five of them.
        window[place] = 0
        assert window.max() < 10 / math.sqrt(64 * 2)


def test_the_estimate_has_the_size_of_the_gradient() -> None:
    q = 256
    signs, responses = known(torch.Generator().manual_seed(1), q)
    estimate = Credit(2, periodic=True).assign(signs, responses, first_lag=1)
    exact = torch.zeros_like(estimate)
    exact[0] = 0.8 * -2.0 - 0.6 * 3.0
    exact[1] = 0.8 * 3.0

    # Offsets whose factor is not quite zero add noise: at most 25 offsets and 2 lags with a variance
    # of 2.4^2 / q each, even were all of them believed; the mean over 128 cells has 1 / 11 of it.
    error = 5 * math.sqrt(50 * 2.4**2 / q / 128)
    means = estimate.mean((1, 2, 3, 4)) - exact.mean((1, 2, 3, 4))
    assert means.abs().max() < error < 0.5
    assert torch.equal(estimate[2], torch.zeros_like(estimate[2]))  # nothing comes after it


def test_a_shrunk_estimate_is_never_larger_than_the_plain_one() -> None:
    signs = torch.randint(2, (2, 2, 1, 1, 6, 6)) * 2.0 - 1
    responses = torch.randn(2, 2, 1, 1, 6, 6)
    one = Credit(0).assign(signs, responses, first_lag=1)
    plain = (signs[:1] * responses[1:]).mean(1)
    assert (one[0].abs() <= plain[0].abs()).all()


@pytest.mark.parametrize(
    ("sides", "offset", "periodic"),
    [
        ((1, 9), (0, 4), True),  # +4 and -5 are the same cell, and all rows are one
        ((3, 4), (1, 1), True),
        ((2, 2), (0, 0), True),
        ((1, 9), (0, 0), False),
        ((3, 4), (0, 0), False),
    ],
)
def test_a_cell_is_credited_once_where_the_window_is_wider_than_the_grid(
    sides: tuple[int, int], offset: tuple[int, int], periodic: bool
) -> None:
    # Every sign acts on one cell alone: the estimate is one but for noise.
    signs = torch.randint(2, (2, 512, 4, 1, *sides)) * 2.0 - 1
    effects = torch.zeros_like(signs)
    effects[1] = signs[0].roll(offset, (-2, -1))

    estimate = Credit(5, periodic=periodic).assign(signs, effects, first_lag=1)

    # at most 9 x 11 offsets with a variance of 1 / 512 each; the mean over at least 16 cells. A cell
    # that is counted twice would give two.
    assert estimate[0].mean() == pytest.approx(1.0, abs=5 * math.sqrt(99 / 512 / 16))


def test_the_first_measurements_count_alike_and_then_the_early_ones_fade() -> None:
    batches = [known(torch.Generator().manual_seed(s), 4) for s in range(3)]
    all_of_them = Credit(1, periodic=True, memory=0.6)
    for batch in batches:
        all_of_them.assign(*batch, first_lag=1)
    alone = []
    for batch in batches:
        credit = Credit(1, periodic=True)
        credit.assign(*batch, first_lag=1)
        alone.append(credit._moments[1])
    first, second, third = alone
    expected = 0.6 * (first + second) / 2 + 0.4 * third  # a plain mean would have 2/3 and 1/3
    torch.testing.assert_close(all_of_them._moments[1], expected, rtol=1e-12, atol=1e-14)


def test_a_share_is_the_slope_through_the_origin_over_fading_updates() -> None:
    credit = Credit(1, memory=0.75)
    predicted = torch.randn(3, 4)
    other = torch.randn(3, 4)

    assert credit.share(0.4 * predicted, predicted) == pytest.approx(0.4, rel=1e-12)
    came = 0.75 * 0.4 * float(predicted.square().sum()) + 0.25 * float((other * predicted).sum())
    slope = came / float(predicted.square().sum())
    assert credit.share(other, predicted) == pytest.approx(slope, rel=1e-12)
    assert Credit(1).share(other, torch.zeros(3, 4)) == 0.0  # nothing is predicted of nothing


def test_a_restored_credit_goes_on_with_the_same_bits() -> None:
    batches = [known(torch.Generator().manual_seed(s), 4) for s in range(6)]
    credit, restored = Credit(2), Credit(2)
    for batch in batches[:3]:
        credit.assign(*batch, first_lag=1)
    state = credit.state_dict()
    restored.load_state_dict(state)
    for batch in batches[3:]:
        one, other = (c.assign(*batch, first_lag=1) for c in (credit, restored))
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"radius": -1}, "radius must be at least 0 cells, got -1"),
        ({"memory": 1.0}, r"memory must lie in \[0, 1\), got 1\.0"),
        ({"memory": float("nan")}, r"memory must lie in \[0, 1\), got nan"),
        ({"least": 1.0}, r"least must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Credit(**arguments)


def test_a_single_direction_is_refused() -> None:
    signs = torch.ones(1, 1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match="q must be at least 2, to tell signal from noise, got 1"):
        Credit().assign(signs, signs, first_lag=0)


def test_a_piece_of_one_step_has_nothing_to_assign_after_it() -> None:
    credit, signs = Credit(), torch.ones(1, 2, 3, 1, 6, 7)
    assert credit.assign(signs, signs, first_lag=1).abs().max() == 0
    assert credit.state_dict()["moments"] == {}


def test_powers_of_equal_pieces_have_the_mean_of_all() -> None:
    credit = Credit(2, periodic=True)
    signs = torch.randn(3, 4, 6, 1, 6, 7).sign()
    responses = torch.randn(3, 4, 6, 2, 6, 7)
    whole = credit.powers(signs, responses, first_lag=1)
    halves = [
        credit.powers(signs[:, :, own], responses[:, :, own], first_lag=1)
        for own in (slice(3), slice(3, 6))
    ]
    for lag in (1, 2):
        mean = (halves[0][lag] + halves[1][lag]) / 2
        torch.testing.assert_close(mean, whole[lag], rtol=0, atol=1e-14)
