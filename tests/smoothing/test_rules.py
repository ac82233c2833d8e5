"""The procedures: how many votes they ask for, what they say, and when they give up."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import betabinom, binom

from deepzero_apps.smoothing.bounds import Procedure, Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.rules import Anytime, Bound, Decide, Estimation, rule_of
from deepzero_apps.smoothing.sequences import lower_bound_anytime, lower_bounds_anytime
from deepzero_apps.smoothing.simulation import simulate
from deepzero_apps.smoothing.stopping import WORTH, schedule, sizes, table_of

SURE = np.array([2, 98, 0])
RADII = (0.25, 0.5, 0.75)


def settings_of(procedure: Procedure, **changes: object) -> Settings:
    wanted = RADII if procedure in ("decide", "adaptive") else ()
    fields = {"sigma": 0.5, "n": 10_000, "radii": wanted, **changes}
    return Settings(procedure=procedure, **fields)  # type: ignore[arg-type]


def begun(procedure: Procedure, selection: np.ndarray = SURE, **changes: object) -> Estimation:
    return rule_of(settings_of(procedure, **changes)).start(selection)


def finished(estimation: Estimation, share: float) -> Bound:
    """Gives that share of all votes to the class, rounded to whole votes."""
    n = 0
    while more := estimation.more():
        n += more
        estimation.look(round(share * n), n)
    return estimation.result()


procedures = pytest.mark.parametrize("procedure", ["fixed", "adaptive", "decide", "anytime"])


def test_fixed_asks_for_all_votes_at_once_and_says_what_clopper_and_pearson_say() -> None:
    estimation = begun("fixed", n=1_000)
    assert estimation.more() == 1_000

    estimation.look(950, 1_000)

    assert estimation.result() == Bound(lower_bound(950, 1_000, 0.001), 950, 1_000, "complete")
    assert estimation.more() == 0


@pytest.mark.parametrize("procedure", ["fixed", "adaptive"])
def test_a_part_of_the_votes_proves_nothing_where_the_bound_is_of_all(
    procedure: Procedure,
) -> None:
    estimation = begun(procedure)
    whole = estimation.more()
    assert estimation.result() == Bound(0.0, 0, 0, "budget")

    estimation.look(whole - 1, whole - 1)

    assert estimation.result() == Bound(0.0, whole - 1, whole - 1, "budget")
    assert estimation.more() == 1


@pytest.mark.parametrize("procedure", ["decide", "anytime"])
def test_a_sequence_says_something_at_every_moment(procedure: Procedure) -> None:
    estimation = begun(procedure)
    assert estimation.result() == Bound(0.0, 0, 0, "budget")

    estimation.look(17, 17)  # before the first look: the budget ends

    assert estimation.result() == Bound(lower_bound_anytime(17, 17, 0.001), 17, 17, "budget")
    assert estimation.more() == schedule(10_000)[0] - 17


def test_the_best_look_is_reported_and_not_the_last() -> None:
    estimation = begun("anytime")
    first, second = schedule(10_000)[:2].tolist()

    estimation.look(first, first)
    estimation.look(first, second)

    best = lower_bound_anytime(first, first, 0.001)
    assert best > lower_bound_anytime(first, second, 0.001)
    assert estimation.result() == Bound(best, first, first, "budget")


@pytest.mark.parametrize(
    ("share", "certified"), [(0.99, 3), (0.9, 2), (0.77, 1)], ids=["all", "two", "one"]
)
def test_decide_ends_when_every_radius_is_certified_or_given_up(
    share: float, certified: int
) -> None:
    result = finished(begun("decide"), share)

    reached = round_down(radius(result.p_lower, 0.5))
    assert result.stop == "decided"
    assert [reached >= r for r in RADII] == [True] * certified + [False] * (3 - certified)
    assert result.p_lower == lower_bound_anytime(result.votes, result.n, 0.001)
    assert result.n < 2_000


def test_decide_gives_up_where_no_radius_is_within_reach() -> None:
    result = finished(begun("decide"), 0.55)

    assert result.stop == "futile"
    assert result.n < 500
    assert radius(result.p_lower, 0.5) < 0.25


def test_decide_goes_on_to_the_limit_where_it_is_close() -> None:
    rule = Decide(settings_of("decide", radii=(0.25,), n=3_000))
    estimation = rule.start(SURE)

    for n, least in zip(rule.table.looks.tolist(), rule.table.certify[:, 0], strict=True):
        assert estimation.result().stop == "budget"
        estimation.look(int(least) - 1, n)

    result = estimation.result()
    assert result.stop == "limit"
    assert estimation.more() == 0
    assert round_down(radius(result.p_lower, 0.5)) < 0.25


def test_anytime_goes_on_to_the_limit() -> None:
    result = finished(begun("anytime"), 0.97)

    assert (result.stop, result.n) == ("limit", 10_000)


def test_anytime_gives_up_where_there_is_no_majority() -> None:
    result = finished(begun("anytime"), 0.4)

    assert result.stop == "futile"
    assert result.n < 500


@pytest.mark.parametrize("procedure", ["adaptive", "decide", "anytime"])
@pytest.mark.parametrize("selection", [[0, 0, 0], [9, 10, 9]], ids=["all lost", "scattered"])
def test_a_selection_without_hope_ends_before_the_first_vote(
    procedure: Procedure, selection: list[int]
) -> None:
    estimation = begun(procedure, np.array(selection))

    assert estimation.more() == 0
    assert estimation.result() == Bound(0.0, 0, 0, "futile")


def test_a_radius_is_certified_by_the_least_votes_that_print_it() -> None:
    # .3141592 is printed as reached only by .3142.
    table = Decide(settings_of("decide", radii=(0.25, 0.3141592), n=2_000)).table

    for n, least in zip(table.looks.tolist(), table.certify.tolist(), strict=True):
        for wanted, enough in zip((0.25, 0.3142), least, strict=True):
            if enough <= n:
                bounds = lower_bounds_anytime([enough, enough - 1], n, 0.001)
                printed = [round_down(radius(bound, 0.5)) for bound in bounds.tolist()]
                assert printed[0] >= wanted > printed[1]


def test_a_radius_stays_certified_when_votes_fall_behind() -> None:
    table = Decide(settings_of("decide", radii=(0.25,))).table
    enough = table.certify[5, 0]

    refuted, over = table.step(5, np.array([enough, enough - 1]), np.array([0, 0]))
    later, still = table.step(6, np.array([enough, enough]), refuted)

    assert table.certify[6, 0] > enough
    assert (refuted.tolist(), over.tolist()) == ([1, 0], [True, False])
    assert (later.tolist(), still.tolist()) == ([1, 0], [True, False])


@pytest.mark.parametrize("targets", [(0.6915, 0.8413), (0.95, 0.985), (0.99,)])
def test_giving_up_is_the_optimal_stopping_of_beta_binomial_votes(
    targets: tuple[float, ...],
) -> None:
    # Backwards over all numbers of votes, with exact probabilities.
    n = 320
    table = table_of(targets, n0=100, n=n, alpha=0.05, stop_when_decided=True)

    worth = np.zeros((len(targets) + 1, n + 1))
    for look in range(len(table.looks) - 1, -1, -1):
        here = int(table.looks[look])
        k = np.arange(here + 1)
        wait = np.zeros((len(targets), here + 1))
        if here < n:
            more = int(table.looks[look + 1]) - here
            further = np.arange(more + 1)
            chance = betabinom.pmf(further, more, k[:, None] + 1, here - k[:, None] + 1)
            ahead = worth[:-1, k[:, None] + further]
            wait = (chance * ahead).sum(-1) - more / WORTH
            for j in range(len(targets)):
                open_ = k < table.certify[look, j]
                exact = k[open_ & (wait[j] <= 0)].max(initial=-1)
                # The table has the normal distribution of the same moments, and 1,025 points: it
                # goes on for up to 2 votes longer. Without the posterior's share of the variance
                # it would give up up to 2 votes too early.
                assert -2 <= table.over[look, j] - exact <= 0
        worth = np.zeros((len(targets) + 1, n + 1))
        for j in reversed(range(len(targets))):
            reached = k >= table.certify[look, j]
            worth[j, : here + 1] = np.where(reached, 1 + worth[j + 1, k], np.maximum(wait[j], 0))


def test_radii_that_need_nearly_all_votes_are_waited_for() -> None:
    # Of 100 votes none was lost: P(p >= .99865 | votes) = 1 - .99865^101 = .13, worth 25,000 votes,
    # and whoever has a smaller p mostly loses a vote within some hundred.
    table = Decide(Settings(sigma=0.25, n=200_000, procedure="decide", radii=(0.75,))).table

    assert table.least_selection <= 100
    early = table.looks < 2_000
    assert (table.over[early, 0] < table.looks[early]).all()


def test_adaptive_sizes_gain_most_of_all_sizes() -> None:
    targets = [float(ndtr(r / 0.5)) for r in RADII]
    found = sizes(targets, n0=100, n=10_000, alpha=0.001)

    choices = np.append(schedule(10_000), 0)
    for selected in (0, 60, 75, 90, 100):
        gains = []
        for size in choices.tolist():
            tails = [binom.sf(np.arange(size + 1) - 1, size, p0) for p0 in targets]
            least = [int((tail > 0.001).sum()) for tail in tails]
            power = betabinom.sf(np.array(least) - 1, size, selected + 1, 101 - selected)
            gains.append(power.sum() - size / WORTH if size else 0.0)
        best = choices.tolist().index(int(found[selected]))
        # a sum of 1,025 points for the integral over p, with three steps in it
        assert gains[best] >= max(gains) - 3 / 1_025


def test_images_do_not_enter_one_another() -> None:
    rule = rule_of(settings_of("decide"))
    alone = finished(rule.start(SURE), 0.9)

    first, second = rule.start(SURE), rule.start(np.array([50, 40, 10]))
    n = 0
    while more := first.more():
        n += more
        first.look(round(0.9 * n), n)
        if drawn := second.more():
            second.look(0, drawn)

    assert first.result() == alone


def test_the_selection_is_not_changed_and_not_kept() -> None:
    selection = SURE.copy()
    estimation = begun("decide", selection)
    before = estimation.more()

    selection[:] = 0

    assert estimation.more() == before


@procedures
@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (np.array([90, 20]), r"counts of at most 100 votes, got \[90, 20\]"),
        (np.array([-1, 20]), r"got \[-1, 20\]"),
        (np.array([0.5, 0.5]), "integer votes of shape .classes,., got float64"),
        (np.array([[1, 2]]), r"of shape \(1, 2\)"),
        (np.array([], dtype=np.int64), r"of shape \(0,\)"),
    ],
)
def test_what_are_no_selection_votes_is_refused(
    procedure: Procedure, selection: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        begun(procedure, selection)


@procedures
@pytest.mark.parametrize(
    ("votes", "n"), [(5, 4), (-1, 4), (0, 0), (0, 100_000), (9, 12), (21, 20)]
)
def test_counts_that_do_not_continue_are_refused(procedure: Procedure, votes: int, n: int) -> None:
    estimation = begun(procedure)
    estimation.look(10, 10)

    with pytest.raises(ValueError, match=rf"continue 10 of 10 by .* got {votes} of {n}"):
        estimation.look(votes, n)
    assert estimation.result().n == 10


def test_nothing_follows_the_end() -> None:
    estimation = begun("decide")
    end = finished(estimation, 0.99)

    with pytest.raises(ValueError, match="by at most 0, got"):
        estimation.look(end.votes + 1, end.n + 1)


@pytest.mark.parametrize("procedure", ["decide", "adaptive"])
def test_radii_out_of_reach_are_refused_with_what_is_in_reach(procedure: Procedure) -> None:
    bound = lower_bound_anytime if procedure == "decide" else lower_bound
    reach = round_down(radius(bound(200, 200, 0.001), 0.5))

    rule = rule_of(settings_of(procedure, n=200, radii=(0.1, reach)))
    assert rule_of(settings_of(procedure, n=200, radii=(0.1, reach))) is rule  # made once
    with pytest.raises(ValueError, match=rf"at most {reach}, what n = 200 .* {procedure}, got"):
        rule_of(settings_of(procedure, n=200, radii=(0.1, reach + 0.0001)))


def test_anytime_needs_votes_enough_for_some_radius() -> None:
    with pytest.raises(ValueError, match=r"radii must be at most 0.0, .* got 0.0001"):
        rule_of(settings_of("anytime", n=12))


def test_the_last_look_is_the_limit_and_steps_grow_to_a_sixteenth() -> None:
    looks = schedule(100_000)

    assert looks[-1] == 100_000
    assert (np.diff(looks) >= 1).all()
    assert np.diff(looks)[:10].tolist() == [32] * 10
    # 1/16, to whole multiples of 32
    assert np.diff(looks)[60:-1] / looks[60:-2] == pytest.approx(1 / 16, rel=0.1)
    assert schedule(5).tolist() == [5]


def test_lost_queries_are_votes_against_the_class() -> None:
    shares = np.full((2_000, 1), 0.6)
    rule = rule_of(settings_of("anytime", n=1_000))
    assert isinstance(rule, Anytime)

    outcomes = simulate(rule, shares, generator=np.random.default_rng(0))

    # 600 votes of 1,000; five deviations of 15 votes
    low, high = (lower_bound_anytime(k, 1_000, 0.001) for k in (525, 675))
    whole = outcomes.p_lower[outcomes.drawn == 1_000]
    assert len(whole) > 1_000
    assert whole.min() > low
    assert np.median(whole) < high


@pytest.mark.parametrize(
    "probabilities",
    [
        np.array([0.5, 0.5]),
        np.array([[0.9, 0.2]]),
        np.array([[-0.1, 0.2]]),
        np.array([[np.nan, 0.2]]),
        np.empty((0, 2)),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"probabilities must be of shape \(m, classes\)"):
        simulate(rule_of(settings_of("fixed")), probabilities, generator=np.random.default_rng(0))
