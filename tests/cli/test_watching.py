"""Canaries of a run: what they cost is written down, whatever becomes of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepzero_apps.cli.watching import Watch
from deepzero_apps.smoothing.adapters import Adapter, charge_retries
from deepzero_apps.smoothing.answers import ClassifierError
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certify import source_of
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, read_votes

IMAGES = torch.full((2, 1, 4, 4), 0.5)
SETTINGS = Settings(sigma=0.25, n=100)


class Repeating(Adapter):
    """A service that repeats each call once, and may then give up."""

    classes, name, fingerprint = 3, "repeating", "f00"

    def __init__(self, *, gives_up: bool) -> None:
        self.gives_up = gives_up

    def _answer(self, images: Tensor) -> Tensor:
        assert self.meter is not None
        self.meter.charge(len(images))
        if self.gives_up:
            raise ClassifierError("no answer")
        return torch.zeros(len(images), 3)


def watched(folder: Path, classifier: Adapter, budget: int) -> int:
    with VoteLog(folder, SETTINGS, source_of(classifier)) as log:
        meter = Ledger(log, budget)
        charge_retries(classifier, meter)
        watch = Watch(folder, classifier, IMAGES, SETTINGS)
        watch.begin(meter, log)
        watch.end(meter, log)
    return meter.spent


def test_canaries_and_their_retries_are_written_down(tmp_path: Path) -> None:
    spent = watched(tmp_path, Repeating(gives_up=False), 100)

    # 2 canaries, 3 times at the start and once at the end, each repeated
    assert read_votes(tmp_path).spent == spent == 2 * (3 + 1) * 2
    assert read_votes(tmp_path).unanswered == 0


def test_canaries_that_a_service_never_answers_are_paid_for(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="no answer"):
        watched(tmp_path, Repeating(gives_up=True), 100)

    # 3 queries a canary were charged, and the first call was repeated before it failed
    assert read_votes(tmp_path).spent == 2 * 3 + 2


def test_canaries_whose_retries_the_budget_does_not_cover_are_no_look(tmp_path: Path) -> None:
    spent = watched(tmp_path, Repeating(gives_up=False), 2 * 3 + 2)  # one repetition of three

    assert read_votes(tmp_path).spent == spent == 8
    assert not (tmp_path / "canaries.json").exists()


def test_a_killed_look_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VoteLog, "append", lambda *_, **__: None)  # killed before the answers

    watched(tmp_path, Repeating(gives_up=False), 100)

    assert read_votes(tmp_path).spent == 2 * (3 + 1) * 2
