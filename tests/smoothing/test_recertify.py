"""Certificates made again from votes: those of a new run where sound, refused where not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deepzero_apps.smoothing.blackbox import TorchClassifier
from deepzero_apps.smoothing.bounds import Settings, lower_bound, radius, round_down
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.certify import certify, source_of
from deepzero_apps.smoothing.recertify import merge, recertify
from deepzero_apps.smoothing.sequences import lower_bound_anytime
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, VoteLogError, Votes, read_votes

IMAGES, LABELS = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
FIXED = Settings(sigma=0.25, n0=20, n=300)
DECIDE = Settings(sigma=0.25, n0=20, n=2_000, procedure="decide", radii=(0.05, 0.2))
ANYTIME = replace(FIXED, procedure="anytime")
ADAPTIVE = replace(DECIDE, procedure="adaptive")


def network() -> TorchClassifier:
    torch.manual_seed(1)
    return TorchClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), classes=3)


def run(
    folder: Path, settings: Settings, places: list[int] | None = None, budget: int | None = None
) -> list[Certificate]:
    with VoteLog(folder, settings, source_of(network())) as log:
        found = certify(
            network(),
            IMAGES,
            LABELS,
            settings,
            indices=places,
            rows=100,
            meter=Ledger(log, budget),
            log=log,
        )
        return sorted((replace(c, seconds=0.0) for c in found), key=lambda c: c.index)


def again(folder: Path, settings: Settings) -> list[Certificate]:
    return [replace(c, seconds=0.0) for c in recertify(read_votes(folder), settings)]


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("settings", [FIXED, ADAPTIVE])
def test_another_alpha_is_the_arithmetic_of_the_same_votes(
    tmp_path: Path, settings: Settings, alpha: float
) -> None:
    made = run(tmp_path, settings)

    for c, old in zip(again(tmp_path, replace(settings, alpha=alpha)), made, strict=True):
        n = old.votes + old.other_votes
        p_lower = lower_bound(old.votes, n, alpha) if n else 0.0
        assert (c.votes, c.other_votes, c.asked) == (old.votes, old.other_votes, old.asked)
        assert c.p_lower == p_lower
        assert c.radius == round_down(radius(p_lower, 0.25))
        assert c.predicted == (c.selected if p_lower > 0.5 else ABSTAIN)


@pytest.mark.parametrize("settings", [FIXED, ADAPTIVE])
def test_the_same_settings_give_the_same_certificates(tmp_path: Path, settings: Settings) -> None:
    made = run(tmp_path, settings)

    assert again(tmp_path, settings) == made


@pytest.mark.parametrize("settings", [FIXED, DECIDE, ANYTIME])
def test_the_anytime_bound_serves_any_votes(tmp_path: Path, settings: Settings) -> None:
    made = run(tmp_path, settings)
    wanted = replace(settings, procedure="anytime", radii=(), alpha=0.01)

    for c, old in zip(again(tmp_path, wanted), made, strict=True):
        assert c.p_lower == (
            lower_bound_anytime(c.votes, c.votes + c.other_votes, 0.01) if c.p_lower else 0.0
        )
        if old.p_lower and settings.procedure != "fixed":
            assert c.p_lower > old.p_lower  # a larger alpha


def test_other_radii_are_free(tmp_path: Path) -> None:
    run(tmp_path, DECIDE)

    other = again(tmp_path, replace(DECIDE, radii=(0.1, 0.3)))
    anytime = again(tmp_path, replace(DECIDE, radii=(), procedure="anytime"))

    assert [c.p_lower for c in other] == [c.p_lower for c in anytime]
    assert {c.settings.radii for c in other} == {(0.1, 0.3)}


@pytest.mark.parametrize(
    ("drawn", "wanted", "message"),
    [
        (DECIDE, replace(DECIDE, procedure="fixed", radii=()), "does not allow looks"),
        (DECIDE, ADAPTIVE, "does not allow looks"),
        (ANYTIME, FIXED, "procedure must be anytime for votes drawn by anytime.*allow looks"),
        (ANYTIME, replace(DECIDE, n=300), "must be anytime for votes .*, got decide$"),
        (DECIDE, ADAPTIVE, "must be decide or anytime for votes drawn by decide, got adaptive"),
        (FIXED, replace(FIXED, procedure="adaptive", radii=(0.1,)), "must be fixed or anytime"),
        (FIXED, replace(FIXED, n=200), "n must be that of the votes, 300, got 200"),
        (FIXED, replace(FIXED, seed=1), "seed must be that of the votes, 0, got 1"),
        (FIXED, replace(FIXED, sigma=0.5), "sigma must be that of the votes, 0.25, got 0.5"),
        (FIXED, replace(FIXED, n0=10), "n0 must be that of the votes"),
        (FIXED, replace(FIXED, noise="grid"), "noise must be that of the votes"),
    ],
)
def test_what_the_votes_cannot_tell_is_refused(
    tmp_path: Path, drawn: Settings, wanted: Settings, message: str
) -> None:
    run(tmp_path, drawn, [0])

    with pytest.raises(ValueError, match=message):
        recertify(read_votes(tmp_path), wanted)


def test_images_whose_votes_do_not_suffice_are_left_out(tmp_path: Path) -> None:
    run(tmp_path, FIXED, budget=2 * 320 + 100)

    assert [c.index for c in again(tmp_path, FIXED)] == [0, 1]
    # five images had their selection votes in the first call; the bound of no votes is 0
    assert [c.index for c in again(tmp_path, ANYTIME)] == [0, 1, 2, 3, 4]
    assert [c.radius > 0 for c in again(tmp_path, ANYTIME)][3:] == [False, False]


def test_votes_of_an_image_that_the_log_does_not_know_are_refused(tmp_path: Path) -> None:
    run(tmp_path, FIXED, [0])
    path = tmp_path / "votes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if '"image"' not in x))

    with pytest.raises(ValueError, match="must be of images in the log, got some of image 0"):
        recertify(read_votes(tmp_path), FIXED)


def test_logs_of_two_workers_merge_into_that_of_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", FIXED)
    run(tmp_path / "odd", FIXED, [1, 3, 5])
    run(tmp_path / "even", FIXED, [4, 0, 2])

    merged = merge([read_votes(tmp_path / p) for p in ("odd", "even")], tmp_path / "both")

    assert again(tmp_path / "both", FIXED) == whole
    assert merged.spent == read_votes(tmp_path / "whole").spent
    assert len(merged.images) == 6
    assert run(tmp_path / "both", FIXED) == whole  # and nothing is asked
    assert read_votes(tmp_path / "both").spent == merged.spent


def part(folder: Path, settings: Settings = FIXED) -> Votes:
    run(folder, settings, [0])
    return read_votes(folder)


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    one, other = part(tmp_path / "a"), part(tmp_path / "b", replace(FIXED, alpha=0.01))

    with pytest.raises(VoteLogError, match="image 0 has votes in two logs"):
        merge([one, one], tmp_path / "c")
    with pytest.raises(VoteLogError, match=r"one alpha, got 0.001 in the first and 0.01"):
        merge([one, other], tmp_path / "c")
    with pytest.raises(VoteLogError, match="holds votes already"):
        merge([one], tmp_path / "a")
    with pytest.raises(VoteLogError, match="at least one log"):
        merge([], tmp_path / "c")
    assert not (tmp_path / "c").exists()
