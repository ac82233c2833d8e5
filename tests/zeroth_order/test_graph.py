"""The graph of a network: what depends on what, and nothing in place."""

import operator

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.graph import Traced, Untraceable, trace
from tests.networks import NETWORKS, InPlace, Tied, UNet, images, make


def names(nodes: tuple[object, ...]) -> list[str]:
    return [str(node) for node in nodes]


def test_a_suffix_is_all_that_depends_on_the_parameter() -> None:
    traced = trace(UNet())

    suffix = traced.suffix("middle.weight")

    assert names(suffix.sites) == ["middle"]
    assert names(suffix.nodes) == ["middle", "relu_1", "up", "cat", "out"]
    assert names(traced.suffix("out.bias").nodes) == ["out"]


def test_values_expire_after_their_last_use() -> None:
    suffix = trace(UNet()).suffix("down.weight")

    expired = {str(node): names(gone) for node, gone in suffix.expired.items()}

    # The skip (relu) is needed until the concatenation; the result never expires.
    assert expired["cat"] == ["relu", "up"]
    all_expired = [name for gone in expired.values() for name in gone]
    assert sorted(all_expired) == sorted(names(suffix.nodes)[:-1])


def test_a_parameter_used_twice_has_two_sites() -> None:
    traced = trace(Tied())
    assert len(traced.suffix("twice.weight").sites) == 2
    assert len(traced.suffix("first.weight").sites) == 2


def test_a_parameter_that_is_not_used_has_no_suffix() -> None:
    suffix = trace(NETWORKS["odd"]()).suffix("unused.weight")
    assert suffix.sites == ()
    assert suffix.nodes == ()


def test_nothing_in_place_remains() -> None:
    for node in trace(InPlace()).nodes:
        assert not str(node.target).endswith("_")
        assert not node.kwargs.get("inplace")
        assert node.target is not operator.iadd


def test_later_uses_see_the_overwritten_value() -> None:
    class Overwrites(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y.mul_(2)
            return y

    traced = trace(Overwrites())
    assert traced.result.target == "mul"


def test_tracing_leaves_the_network_as_it_was() -> None:
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(8)

    network = Makes()
    before = set(vars(network))

    traced: Traced = trace(network)

    assert set(vars(network)) == before
    assert [torch.equal(t, torch.ones(8)) for t in traced.fixed.values()] == [True]


def test_default_arguments_keep_their_values() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, power: float = 2.0) -> Tensor:
            x = x**power
            return x if mask is None else x * mask

    traced = trace(Optional())
    assert sorted(map(str, traced.fixed.values())) == ["2.0", "None"]


class Normal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).normal_()


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, x, out=x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Normal(), "method 'normal_' works in place and has no other form"),
        (Two(), "the output is a tuple, not one tensor"),
        (Writes(), "writes to out="),
    ],
)
def test_networks_without_a_faithful_graph_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(Untraceable, match=message):
        trace(network)


def test_modes_of_a_network_are_traced_as_they_are() -> None:
    for training in (True, False):
        network = make("dropout", training=training)
        (dropout,) = [node for node in trace(network).nodes if "dropout" in str(node.target)]
        assert dropout.kwargs["training"] is training
    assert images().shape[1:] == (2, 8, 8)
