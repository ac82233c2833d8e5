"""The rate of false certificates: 200,000 runs of every procedure, against alpha and exact values.

The class has exactly, or just below, the probability that a radius needs. A run is false if its
bound exceeds that probability. `refuse_wrong_rate` compares the rate with alpha and with a value
computed another way; bugs are planted to see that it notices.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betainc, betaln, xlog1py, xlogy
from scipy.stats import binom, norm

from deepzero_apps.smoothing import sequences, simulation
from deepzero_apps.smoothing.bounds import Procedure, Settings, lower_bound
from deepzero_apps.smoothing.rules import Adaptive, Anytime, Decide, Fixed, rule_of
from deepzero_apps.smoothing.simulation import simulate

SIGMA = 0.5
RADII = (0.25, 0.5, 0.75)
RUNS = 200_000
N0 = 40

AnyRule = Fixed | Adaptive | Decide | Anytime


def rule_with(
    procedure: Procedure, alpha: float, *, n: int = 320, radii: tuple[float, ...] = RADII
) -> AnyRule:
    wanted = radii if procedure in ("decide", "adaptive") else ()
    settings = Settings(sigma=SIGMA, n0=N0, n=n, alpha=alpha, procedure=procedure, radii=wanted)
    return rule_of.__wrapped__(settings)  # made anew, for the tests that change the arithmetic


def false_rate(rule: AnyRule, p: float, *, runs: int = RUNS) -> float:
    """How often the bound exceeds p; the other votes are lost, so that the class is the one."""
    outcomes = simulate(rule, np.full((runs, 1), p), generator=np.random.default_rng(1))
    return float((outcomes.p_lower > p).mean())


def exact_rate(rule: AnyRule, p: float) -> float:
    """The same from binomial sums, with an evidence integrated numerically."""
    selected = binom.pmf(np.arange(N0 + 1), N0, p)
    if isinstance(rule, Fixed | Adaptive):
        sizes = [rule.size(k) for k in range(N0 + 1)]
        rates = {n: tail_of_clopper_pearson(n, p, rule.settings.alpha) for n in set(sizes)}
        return float(selected @ [rates[n] for n in sizes])
    begun = selected[rule.table.least_selection :].sum()
    return float(begun * rate_of_sequence(rule, p))


def tail_of_clopper_pearson(n: int, p: float, alpha: float) -> float:
    """P(K >= c) with the least c of a tail of at most alpha: those K whose bound exceeds p."""
    tails = binom.sf(np.arange(n + 1) - 1, n, p)
    small = tails[tails <= alpha]
    return float(small.max()) if n and small.size else 0.0


def rate_of_sequence(rule: Decide | Anytime, p: float) -> float:
    """Carries the distribution of (votes, targets refuted) from look to look."""
    table, alpha = rule.table, rule.settings.alpha
    targets = table.certify.shape[1]
    mass = np.zeros((targets + 1, 1))
    mass[0, 0] = 1.0
    false = 0.0
    for look, more in enumerate(np.diff(table.looks, prepend=0)):
        step = binom.pmf(np.arange(more + 1), more, p)
        mass = np.stack([np.convolve(row, step) for row in mass])
        k = np.arange(mass.shape[1])
        wrong = np.array([evidence(int(votes), int(k[-1]), p) > 1 / alpha for votes in k])
        false += mass[:, wrong].sum()
        mass[:, wrong] = 0.0
        moved = np.zeros_like(mass)
        for votes in k:
            refuted = int((votes >= table.certify[look]).sum())
            for before in range(targets + 1):
                now = max(before, refuted)
                if votes > table.over[look, now]:
                    moved[now, votes] += mass[before, votes]
        mass = moved
    return false


def evidence(votes: int, n: int, p0: float) -> float:
    """The mean likelihood ratio over (p0, 1), in u = (1 - q) / (1 - p0)."""
    if votes < p0 * n:
        return 0.0  # at most 1

    def ratio(u: float) -> float:
        return float(np.exp(xlogy(votes, (1 - u) / p0 + u) + xlogy(n - votes, u)))

    peak = (1 - votes / n) / (1 - p0)
    return float(quad(ratio, 0, 1, points=[peak], limit=200)[0])


def refuse_wrong_rate(rate: float, exact: float | None, alpha: float) -> None:
    """Fails if a rate of RUNS runs is above alpha or off its exact value, by 5 standard errors."""
    assert rate <= alpha + 5 * math.sqrt(alpha * (1 - alpha) / RUNS)
    if exact is not None:
        assert abs(rate - exact) <= 5 * math.sqrt(exact * (1 - exact) / RUNS)


thresholds = pytest.mark.parametrize("p", [float(norm.cdf(r / SIGMA)) for r in RADII])
alphas = pytest.mark.parametrize("alpha", [0.001, 0.05])


@alphas
@thresholds
@pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide", "anytime"])
def test_false_certificates_are_as_rare_as_stated_and_as_computed(
    procedure: Procedure, p: float, alpha: float
) -> None:
    rule = rule_with(procedure, alpha)
    for probability in (p, p - 1e-3):
        refuse_wrong_rate(false_rate(rule, probability), exact_rate(rule, probability), alpha)


@alphas
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("procedure", ["decide", "adaptive"])
def test_one_radius_at_its_threshold_is_as_safe(
    procedure: Procedure, radius: float, alpha: float
) -> None:
    rule = rule_with(procedure, alpha, n=1_000, radii=(radius,))
    p = float(norm.cdf(radius / SIGMA))

    outcomes = simulate(rule, np.full((RUNS, 1), p), generator=np.random.default_rng(2))

    refuse_wrong_rate(float((outcomes.p_lower > p).mean()), None, alpha)


@alphas
def test_a_majority_that_is_none_is_not_certified(alpha: float) -> None:
    # Both classes at one half: whichever was selected, a bound above one half is false.
    rule = rule_with("anytime", alpha, n=1_000)
    half = np.full((RUNS, 2), 0.5)

    outcomes = simulate(rule, half, generator=np.random.default_rng(3))

    refuse_wrong_rate(float((outcomes.p_lower > 0.5).mean()), None, alpha)


@pytest.mark.parametrize("share", [2.0, 0.5], ids=["two-sided", "halved"])
@pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide"])
def test_another_alpha_is_noticed(procedure: Procedure, share: float) -> None:
    p = float(norm.cdf(1.0))
    right, wrong = rule_with(procedure, 0.05), rule_with(procedure, share * 0.05)

    with pytest.raises(AssertionError):
        refuse_wrong_rate(false_rate(wrong, p), exact_rate(right, p), 0.05)


@pytest.mark.parametrize("procedure", ["fixed", "adaptive"])
def test_twice_alpha_is_above_alpha(procedure: Procedure) -> None:
    rule = rule_with(procedure, 0.002, n=2_000)

    with pytest.raises(AssertionError):
        refuse_wrong_rate(false_rate(rule, float(norm.cdf(1.0))), None, 0.001)


@alphas
def test_selection_votes_used_again_are_noticed(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reusing(
        rule: Adaptive, most: np.ndarray, p: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.array([rule.size(k) for k in range(N0 + 1)])[most]
        votes, n = most + generator.binomial(drawn, p), N0 + drawn
        pairs, where = np.unique(np.stack((votes, n)), axis=1, return_inverse=True)
        return drawn, np.array([lower_bound(int(k), int(m), alpha) for k, m in pairs.T])[where]

    # Two classes at one half: the one selected has had luck, twice the chance of either one.
    rule = rule_with("fixed", alpha, n=60)
    monkeypatch.setattr(simulation, "_whole", reusing)
    half = np.full((RUNS, 2), 0.5)

    outcomes = simulate(rule, half, generator=np.random.default_rng(4))

    with pytest.raises(AssertionError):
        refuse_wrong_rate(float((outcomes.p_lower > 0.5).mean()), None, alpha)


@alphas
def test_repeated_looks_with_clopper_and_pearson_are_noticed(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def p_value(votes: np.ndarray, n: np.ndarray, p0: np.ndarray) -> np.ndarray:
        return np.asarray(-binom.logsf(np.asarray(votes) - 1, n, p0))

    monkeypatch.setattr(sequences, "log_evidence", p_value)
    rule = rule_with("anytime", alpha)

    with pytest.raises(AssertionError):
        refuse_wrong_rate(false_rate(rule, float(norm.cdf(1.0))), None, alpha)


def not_normalized(votes: np.ndarray, n: np.ndarray, p0: np.ndarray) -> np.ndarray:
    k, n, p = np.asarray(votes), np.asarray(n), np.asarray(p0)
    return RIGHT(k, n, p) + np.log1p(-p)


def normalized_twice(votes: np.ndarray, n: np.ndarray, p0: np.ndarray) -> np.ndarray:
    k, n, p = np.asarray(votes), np.asarray(n), np.asarray(p0)
    return RIGHT(k, n, p) - np.log1p(-p)


def mass_below(votes: np.ndarray, n: np.ndarray, p0: np.ndarray) -> np.ndarray:
    """The mixture over (0, p0), of weight 1."""
    k, n, p = np.asarray(votes), np.asarray(n), np.asarray(p0)
    with np.errstate(divide="ignore"):
        tail = np.log(betainc(k + 1, n - k + 1, p))
    return np.asarray(tail + betaln(k + 1, n - k + 1) - xlogy(k + 1, p) - xlog1py(n - k, -p))


def losing_votes(votes: np.ndarray, n: np.ndarray, p0: np.ndarray) -> np.ndarray:
    return RIGHT(np.asarray(n) - np.asarray(votes), n, 1 - np.asarray(p0))


RIGHT: Callable[..., np.ndarray] = sequences.log_evidence


@pytest.fixture
def right_rate() -> Iterator[float]:
    return exact_rate(rule_with("decide", 0.05), float(norm.cdf(1.0)))


@pytest.mark.parametrize(
    "wrong", [not_normalized, normalized_twice, mass_below, losing_votes], ids=lambda f: f.__name__
)
def test_a_wrong_evidence_is_noticed(
    wrong: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch, right_rate: float
) -> None:
    monkeypatch.setattr(sequences, "log_evidence", wrong)

    # An evidence that never refutes is refused before: no radius is within its reach.
    with pytest.raises((AssertionError, ValueError)):
        refuse_wrong_rate(
            false_rate(rule_with("decide", 0.05), float(norm.cdf(1.0))), right_rate, 0.05
        )


class Streams:
    """Votes fixed in advance, each image known by its probability; stands in for a generator."""

    def __init__(self, streams: np.ndarray, p: np.ndarray) -> None:
        self.streams, self.p = streams, p
        self.read = np.full(len(p), N0)

    def multinomial(self, n: int, _: np.ndarray) -> np.ndarray:
        won = self.streams[:, :n].sum(1)
        return np.stack((won, n - won, np.zeros_like(won)), axis=1)

    def binomial(self, more: np.ndarray, p: np.ndarray) -> np.ndarray:
        images = np.searchsorted(self.p, p)
        ends = self.read[images] + more
        pairs = zip(images, self.read[images], ends, strict=True)
        votes = np.array([self.streams[i, a:b].sum() for i, a, b in pairs])
        self.read[images] = ends
        return votes


@pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide", "anytime"])
def test_images_one_by_one_and_all_at_once_get_the_same(procedure: Procedure) -> None:
    rule = rule_with(procedure, 0.01, n=1_000)
    p = np.linspace(0.4, 0.999, 1_000)
    streams = np.random.default_rng(5).random((1_000, N0 + 1_000)) < p[:, None]

    outcomes = simulate(rule, np.stack((p, 1 - p), axis=1), generator=Streams(streams, p))  # type: ignore[arg-type]

    kept = np.flatnonzero(outcomes.selected == 0)
    assert len(kept) > 800
    for image in kept:
        won = int(streams[image, :N0].sum())
        estimation, n = rule.start(np.array([won, N0 - won])), 0
        while more := estimation.more():
            n += more
            estimation.look(int(streams[image, N0 : N0 + n].sum()), n)
        assert n == outcomes.drawn[image]
        assert estimation.result().p_lower == outcomes.p_lower[image]
