"""What wrappers hand on: whether images may be lost, and the meter."""

import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.adapters import Adapter, ask, charge_retries
from deepzero_apps.smoothing.blackbox import Defended, TorchClassifier
from deepzero_apps.smoothing.quantized import Quantized
from deepzero_apps.zeroth_order.oracle import Meter


class Remote(Adapter):
    """Loses every second image; asks twice and charges the second time."""

    classes = 3
    name = "remote"
    may_lose = True
    fingerprint = "f"

    def _answer(self, images: Tensor) -> Tensor:
        if self.meter is not None:
            self.meter.charge(len(images))
        return torch.arange(len(images)) % 2 - 1


class OfTheUser:
    """No adapter, and no attribute beyond the protocol's."""

    classes = 3
    fingerprint = "u"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), dtype=torch.int64)


def test_lost_images_pass_through_every_wrapper() -> None:
    wrapped = Defended(nn.Identity(), Quantized(Remote(), bits=8))

    assert wrapped.may_lose
    assert ask(wrapped, torch.rand(4, 1, 2, 2)).tolist() == [-1, 0, -1, 0]
    assert not Defended(nn.Identity(), OfTheUser()).may_lose


def test_a_meter_set_outside_is_charged_inside() -> None:
    remote = Remote()
    wrapped, meter = Defended(nn.Identity(), Quantized(remote, bits=8)), Meter(10)

    charge_retries(wrapped, meter)
    ask(wrapped, torch.rand(4, 1, 2, 2))

    assert wrapped.meter is meter
    assert remote.meter is meter
    assert meter.spent == 4


def test_a_meter_of_what_repeats_nothing_is_not_charged() -> None:
    meter = Meter(0)
    for classifier in (OfTheUser(), Defended(nn.Identity(), OfTheUser())):
        charge_retries(classifier, meter)
        ask(classifier, torch.rand(4, 1, 2, 2))
    charge_retries(TorchClassifier(nn.Flatten(), classes=4), None)

    assert meter.spent == 0
    assert Defended(nn.Identity(), OfTheUser()).meter is None
