"""Frozen statistics and their multipliers against autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.frozen import Frozen, uses_batch_statistics
from deepzero_apps.zeroth_order.graph import trace
from deepzero_apps.zeroth_order.propagation import Propagation

TARGETS = torch.arange(6) % 3


def network() -> nn.Sequential:
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 3),
    )
    for p in net.parameters():
        nn.init.normal_(p)
    return net


def inputs() -> Tensor:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))


def frozen_network(net: nn.Module, x: Tensor) -> Frozen:
    return Frozen(net, trace(net), x)


def slopes(net: nn.Module, x: Tensor) -> dict[nn.Parameter, Tensor]:
    own = list(net.parameters())
    loss = functional.cross_entropy(net(x), TARGETS)
    return dict(zip(own, torch.autograd.grad(loss, own), strict=True))


def test_each_sample_answers_for_itself_and_for_what_it_does_to_the_statistics() -> None:
    # Eq. (1) against autograd with live statistics, for each output of the first layer and each
    # sample: the answer of sample j is b times the slope of the mean loss by its own output.
    net, x = network(), inputs()
    frozen = frozen_network(net, x)
    frozen.hold({p: g.flatten() for p, g in slopes(net, x).items()})
    output = net[0](x).detach().requires_grad_()
    (exact,) = torch.autograd.grad(functional.cross_entropy(net[1:](output), TARGETS), output)

    mu = 1e-6
    moved, added = frozen.shifted(net[0], torch.arange(27), mu=mu)
    moved = frozen.output + moved
    base = functional.cross_entropy(frozen.output, TARGETS, reduction="none")
    losses = torch.stack([functional.cross_entropy(o, TARGETS, reduction="none") for o in moved])
    answers = ((losses - base + added) / mu).T.view_as(exact) / len(x)

    # forward bias mu l'' / 2 with l'' of order 100; without multipliers the error is of order .1
    torch.testing.assert_close(answers, exact, rtol=0, atol=1e-4)
    assert added.abs().max() / mu > 0.1


def test_moves_equal_whole_passes_and_know_their_size() -> None:
    net, x = network(), inputs()
    frozen = frozen_network(net, x)

    assert frozen.bytes_a_unit(net[0]) >= 6 * 9 * 8
    torch.testing.assert_close(frozen.output, net(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen.given(net[3]), net[:4](x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen.taken(net[3]), net[:3](x), rtol=1e-12, atol=1e-12)


def test_a_unit_that_is_not_there_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"units must lie in \[0, 27\), got \[27\]"):
        frozen_network(net, inputs()).shifted(net[0], torch.tensor([27]), mu=0.1)


def test_samples_alone_are_as_in_the_batch() -> None:
    net, x = network(), inputs()
    frozen = frozen_network(net, x)

    alone = frozen.alone(2)

    torch.testing.assert_close(alone.output, frozen.output[:2])
    torch.testing.assert_close(alone.values[frozen.node(net[0])], frozen.given(net[0])[:2])


def test_the_network_is_given_back_as_it_was_even_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("broken")

    net, x = network(), inputs()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    frozen = frozen_network(net, x)
    monkeypatch.setattr(Propagation, "carry", broken)
    with pytest.raises(KeyError, match="broken"):
        frozen.shifted(net[0], torch.arange(2), mu=0.1)

    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net[4].running_mean is None
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_random_numbers_are_noticed_and_the_same_in_each_pass() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5)), inputs()
    frozen = frozen_network(net, x)
    moved, _ = frozen.shifted(net[1], torch.arange(8), mu=0.1)

    assert frozen.random
    assert not frozen_network(net.eval(), x).random
    # dropout by one half doubles what it keeps; unit i moves output i alone
    kept = (frozen.output != 0).double() * 0.2
    torch.testing.assert_close(moved, torch.diag_embed(kept).transpose(0, 1))


def test_batch_statistics_are_used_in_train_mode_or_where_none_are_kept() -> None:
    assert uses_batch_statistics(nn.BatchNorm2d(3))
    assert not uses_batch_statistics(nn.BatchNorm2d(3).eval())
    assert uses_batch_statistics(nn.BatchNorm1d(3, track_running_stats=False).eval())
    assert not uses_batch_statistics(nn.GroupNorm(1, 3))
