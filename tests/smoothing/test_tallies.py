"""Noisy copies of a call, wherever their streams were left: against one copy at a time."""

import numpy as np
import pytest
import torch

from deepzero_apps.smoothing import tallies
from deepzero_apps.smoothing.blackbox import CallableClassifier
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.noise import BLOCK, NoisyCopies
from deepzero_apps.smoothing.tallies import Here, Stretch, Teller
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

IMAGES = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
SETTINGS = Settings(sigma=0.5, seed=4)
CALLS = [
    [Stretch(0, 0, 0, 5), Stretch(1, 0, 0, 40)],
    [Stretch(0, 0, 5, BLOCK), Stretch(2, 1, 7, 3)],
    [Stretch(0, 0, 500, 10), Stretch(1, 0, 40, 1)],  # some were drawn elsewhere
    [Stretch(0, 0, 100, 10), Stretch(1, 1, 0, 33)],  # and one is done again
    [Stretch(0, 0, 110, 1), Stretch(1, 1, 33, 64), Stretch(2, 1, 10, 2)],
]


def brightness(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1).sum(1) > 2).astype(np.int64)


def teller() -> Teller:
    classifier = CallableClassifier(brightness, classes=2, name="brightness")
    return Teller(classifier, IMAGES, SETTINGS, device=torch.device("cpu"))


def copies(stretch: Stretch) -> torch.Tensor:
    rows = torch.empty(stretch.start + stretch.rows, 1, 2, 2, dtype=torch.float32)
    NoisyCopies(
        IMAGES[stretch.index], sigma=0.5, seed=4, index=stretch.index, phase=stretch.phase
    ).write(rows)
    return rows[stretch.start :]


@pytest.mark.parametrize(("held", "streams"), [(2**28, 2**14), (0, 2**14), (2**28, 2)])
def test_copies_are_those_of_the_stream_however_it_was_read(
    monkeypatch: pytest.MonkeyPatch, held: int, streams: int
) -> None:
    monkeypatch.setattr(tallies, "_HELD", held)
    monkeypatch.setattr(tallies, "_STREAMS", streams)
    here = teller()
    for call in CALLS:
        assert torch.equal(here.form(call), torch.cat([copies(part) for part in call]))


def test_streams_that_hold_too_much_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "_HELD", BLOCK * 16)  # one block of 2 x 2 float32 pixels
    here = teller()
    for call in CALLS:
        here.form(call)
        kept = [stream for _, stream in here._streams.values()]
        assert here._held == sum(stream.nbytes for stream in kept) <= BLOCK * 16


def test_an_image_that_is_over_holds_nothing() -> None:
    here = teller()
    here.form(CALLS[0])
    for index in (0, 1, 2):
        here.forget(index)

    assert here._held == 0
    assert torch.equal(here.form(CALLS[1]), torch.cat([copies(part) for part in CALLS[1]]))


def test_a_call_is_charged_before_it_is_asked() -> None:
    meter = Meter(45)
    here = Here(teller(), meter)
    here.put(CALLS[0])
    assert here.take().spent == meter.spent == 45

    here.put([Stretch(2, 0, 0, 1)])
    assert here.affordable() == 0
    with pytest.raises(BudgetExhausted, match="45 are spent"):
        here.take()


def test_counts_have_those_without_an_answer_first() -> None:
    call = CALLS[0]
    counts = teller().count(teller().form(call), call)

    expected = [int((copies(part).flatten(1).sum(1) > 2).sum()) for part in call]
    assert counts.tolist() == [
        [0, part.rows - ones, ones] for part, ones in zip(call, expected, strict=True)
    ]
