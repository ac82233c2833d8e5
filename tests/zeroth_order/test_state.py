"""Addresses of weights, and surroundings put back."""

import torch
from torch import nn

from deepzero_apps.zeroth_order.state import Surroundings, Weights, slots


def test_addresses_count_in_row_major_order_whatever_the_layout() -> None:
    network = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = Weights(network)
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])

    assert weights.names == ("weight", "bias")
    assert weights.sizes == (48, 4)
    for index, (positions, offsets) in weights.locate(torch.arange(52)).items():
        for position, offset in zip(positions, offsets, strict=True):
            assert weights.entry(index, offset) == flat[position]
            with weights.moved(index, offset, 2.0):
                now = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
                assert (now - flat).nonzero().tolist() == [[position]]
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in network.parameters()]), flat)


def test_a_weight_returns_bit_for_bit_where_subtracting_the_step_would_not() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1e-17)
    with Weights(network).moved(0, 0, 1.0):
        assert network.weight.item() == 1.0
    assert network.weight.item() == 1e-17


def test_a_displacement_adds_to_each_weight_and_is_undone() -> None:
    network = nn.Linear(2, 1).to(torch.float64)
    before = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    with Weights(network).displaced(torch.tensor([1.0, 2.0, 3.0])):
        inside = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    torch.testing.assert_close(inside - before, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in network.parameters()]), before)


def test_surroundings_return_even_if_a_buffer_was_rebound() -> None:
    network = nn.BatchNorm1d(2)
    surroundings = Surroundings(slots(network), torch.device("cpu"))
    assert not surroundings.moved()

    network.running_mean = torch.full((2,), 7.0)
    assert surroundings.moved()
    surroundings.restore()
    assert network.running_mean.tolist() == [0.0, 0.0]

    drawn = torch.rand(3)
    assert surroundings.moved()
    surroundings.restore()
    assert torch.equal(torch.rand(3), drawn)
