"""Loss differences of every engine against copies of the network with one weight changed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.zeroth_order.differences import Engine, Evaluation, Sequential
from deepzero_apps.zeroth_order.engines import DifferencePropagation, Fastest, PrefixReuse
from tests.networks import NETWORKS, images, make

ENGINES: dict[str, Callable[[], Engine]] = {
    "sequential": Sequential,
    "prefix": PrefixReuse,
    "propagation": DifferencePropagation,
    "propagation in threes": lambda: DifferencePropagation(budget=3 * 5 * 4 * 64 * 8),
}

every_engine = pytest.mark.parametrize("engine", ENGINES)

# The losses are of order one and the passes a dozen operations of a few hundred terms each, in
# float64 (unit 1.1e-16): sums in another order differ by about 1e-14.
ROUNDING = 1e-12


def head(outputs: Tensor) -> Tensor:
    """A smooth loss for outputs of any shape; refuses to be differentiated."""
    assert not torch.is_grad_enabled()
    assert not outputs.requires_grad
    flat = outputs.flatten(2)
    return (flat.tanh() * torch.linspace(-1.0, 1.0, flat.shape[2]).cos()).mean(2) + flat[..., 0]


def loss_of_copy(network: nn.Module, x: Tensor, move: Callable[[nn.Module], None]) -> Tensor:
    """The obvious reference: per-sample losses of a moved copy, from the same seed."""
    moved = copy.deepcopy(network)
    with torch.no_grad():
        move(moved)
        torch.manual_seed(7)
        return head(moved(x)[None])[0]


def add(coordinate: int, mu: float) -> Callable[[nn.Module], None]:
    def move(network: nn.Module) -> None:
        before = 0
        for p in network.parameters():
            if before <= coordinate < before + p.numel():
                flat = p.detach().reshape(-1).clone()
                flat[coordinate - before] += mu
                p.copy_(flat.reshape(p.shape))
            before += p.numel()

    return move


def some_coordinates(network: nn.Module) -> Tensor:
    """Up to five entries of every parameter, shuffled, one of them twice."""
    chosen, before = [], 0
    for p in network.parameters():
        chosen += (before + torch.randperm(p.numel())[:5]).tolist()
        before += p.numel()
    chosen.append(chosen[0])
    return torch.tensor(chosen)[torch.randperm(len(chosen))]


def prepare(engine: str, network: nn.Module, x: Tensor) -> Evaluation:
    torch.manual_seed(7)
    return ENGINES[engine]().prepare(network, x, head)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_equals_moved_copies(name: str, training: bool) -> None:
    network, x = make(name, training=training), images()
    coordinates = some_coordinates(network)
    base = loss_of_copy(network, x, lambda _: None)
    expected = torch.stack(
        [(loss_of_copy(network, x, add(i, 0.1)) - base).mean() for i in coordinates.tolist()]
    )
    assert expected.abs().max() > 1e-3

    for engine in ENGINES:
        evaluation = prepare(engine, copy.deepcopy(network), x)
        got = evaluation.differences(coordinates, mu=0.1)

        torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING, msg=engine)
        torch.testing.assert_close(evaluation.base, base.mean(), rtol=0, atol=ROUNDING)
        assert evaluation.queries == len(coordinates) + 1


@every_engine
@pytest.mark.parametrize("name", ["plain", "dropout", "by name", "tied"])
def test_a_pass_leaves_everything_as_one_base_pass_does(engine: str, name: str) -> None:
    network, x = make(name, training=True), images()
    other = copy.deepcopy(network)
    weights = [p.detach().clone() for p in network.parameters()]
    torch.manual_seed(7)
    with torch.no_grad():
        other(x)
    after = torch.get_rng_state()

    evaluation = prepare(engine, network, x)
    evaluation.differences(some_coordinates_of(network, seed=1), mu=0.1)
    evaluation.displaced(torch.ones(sum(p.numel() for p in network.parameters())))

    assert torch.equal(torch.get_rng_state(), after)
    for got, buffer in zip(network.buffers(), other.buffers(), strict=True):
        assert torch.equal(got, buffer)
    for p, stored in zip(network.parameters(), weights, strict=True):
        assert torch.equal(p, stored)
        assert p.requires_grad
        assert p.grad is None
    assert network.training


def some_coordinates_of(network: nn.Module, *, seed: int) -> Tensor:
    total = sum(p.numel() for p in network.parameters())
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:30]


@every_engine
def test_the_difference_divided_by_mu_approaches_the_derivative(engine: str) -> None:
    network, x = make("transformer", training=False), images()
    coordinates = some_coordinates_of(network, seed=2)
    outputs = network(x)[None]
    loss = (outputs.tanh() * torch.linspace(-1.0, 1.0, 3).cos()).mean(2) + outputs[..., 0]
    gradients = torch.autograd.grad(loss.mean(), list(network.parameters()))
    exact = torch.cat([g.reshape(-1) for g in gradients])[coordinates]
    evaluation = prepare(engine, network, x)

    def error(mu: float, *, central: bool) -> Tensor:
        values = evaluation.differences(coordinates, mu=mu, central=central)
        return (values / (2 * mu if central else mu) - exact).norm()

    # Forward errors are mu * curvature / 2, central ones of order mu^2.
    assert 9 < error(1e-3, central=False) / error(1e-4, central=False) < 11
    assert 90 < error(1e-2, central=True) / error(1e-3, central=True) < 110
    assert error(1e-4, central=True) < 1e-6 * exact.norm()


@every_engine
def test_central_differences_are_two_forward_ones_and_cost_no_base(engine: str) -> None:
    network, x = make("residual", training=True), images()
    coordinates = some_coordinates_of(network, seed=3)
    central = prepare(engine, network, x)
    forward = prepare(engine, network, x)

    got = central.differences(coordinates, mu=0.1, central=True)
    up = forward.differences(coordinates, mu=0.1)
    down = forward.differences(coordinates, mu=-0.1)

    torch.testing.assert_close(got, up - down, rtol=0, atol=ROUNDING)
    assert central.queries == 60
    assert forward.queries == 61


@every_engine
def test_a_displacement_equals_a_displaced_copy(engine: str) -> None:
    network, x = make("dropout", training=True), images()
    step = 0.1 * torch.randn(sum(p.numel() for p in network.parameters()))

    def move(copied: nn.Module) -> None:
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(copied.parameters()) + step, copied.parameters()
        )

    evaluation = prepare(engine, network, x)
    base = loss_of_copy(network, x, lambda _: None).mean()
    expected = loss_of_copy(network, x, move).mean() - base
    opposite = evaluation.displaced(step, central=True)

    torch.testing.assert_close(evaluation.displaced(step), expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(
        opposite, expected - evaluation.displaced(-step), rtol=0, atol=ROUNDING
    )
    assert evaluation.queries == 5


@every_engine
def test_weights_return_when_the_head_or_the_network_raises(engine: str) -> None:
    network, x = make("plain", training=True), images()
    weights = [p.detach().clone() for p in network.parameters()]

    def fails(outputs: Tensor) -> Tensor:
        raise RuntimeError(f"no answer for {len(outputs)}")

    evaluation = ENGINES[engine]().prepare(network, x, fails)
    buffers = [b.clone() for b in network.buffers()]

    with pytest.raises(RuntimeError, match="no answer"):
        evaluation.differences(torch.arange(9), mu=0.1, central=True)
    with pytest.raises(RuntimeError, match="no answer"):
        evaluation.displaced(torch.ones(sum(map(torch.numel, weights))), central=True)
    assert evaluation.queries == 0
    for p, stored in zip(network.parameters(), weights, strict=True):
        assert torch.equal(p, stored)
    for b, stored in zip(network.buffers(), buffers, strict=True):
        assert torch.equal(b, stored)


def test_weights_return_when_a_moved_network_raises() -> None:
    class Fragile(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight[0, 0] > 5:
                raise ArithmeticError("too large")
            return super().forward(x)

    network = Fragile(2, 2)
    stored = network.weight.detach().clone()
    evaluation = Sequential().prepare(network, torch.randn(3, 2), head)

    with pytest.raises(ArithmeticError, match="too large"):
        evaluation.differences(torch.tensor([0]), mu=10.0)
    assert torch.equal(network.weight, stored)


@every_engine
def test_float32_networks_agree_with_sequential(engine: str) -> None:
    # In float32 images are batched channels last, by other code than in float64. Steps of .1 move
    # the loss by .01 and more; its rounding, of some units 1.2e-7 a layer, stays below 2e-5.
    for name, training in (("plain", True), ("residual", True), ("unet", False)):
        network, x = make(name, training=training).float(), images().float()
        coordinates = some_coordinates_of(network, seed=4)

        expected = prepare("sequential", network, x).differences(coordinates, mu=0.1)
        got = prepare(engine, network, x).differences(coordinates, mu=0.1)

        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
        assert got.dtype == torch.float64


@every_engine
def test_repeated_preparation_follows_weights_and_modes(engine: str) -> None:
    network, x = make("residual", training=True), images()
    coordinates = some_coordinates_of(network, seed=5)
    again = ENGINES[engine]()

    for training in (True, False, True):
        network.train(training)
        with torch.no_grad():
            next(network.parameters()).mul_(1.5)
        got = again.prepare(network, x, head).differences(coordinates, mu=0.1)
        expected = Sequential().prepare(network, x, head).differences(coordinates, mu=0.1)
        torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


def test_only_trainable_weights_have_addresses() -> None:
    network, x = make("plain", training=False), images()
    next(network.parameters()).requires_grad_(False)
    frozen = next(network.parameters()).numel()

    got = Fastest().prepare(network, x, head).differences(torch.arange(9), mu=0.1)

    base = loss_of_copy(network, x, lambda _: None)
    for i in range(9):
        expected = (loss_of_copy(network, x, add(frozen + i, 0.1)) - base).mean()
        torch.testing.assert_close(got[i], expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("coordinates", "error", "message"),
    [
        (torch.tensor([0.0]), TypeError, "coordinates must be an int64 tensor, got torch.float32"),
        ([0], TypeError, "coordinates must be an int64 tensor, got list"),
        (torch.tensor(0), ValueError, r"coordinates must be a vector of shape \(n,\), got"),
        (torch.tensor([-1]), ValueError, r"coordinates must be in \[0, 333\), got -1"),
        (torch.tensor([0, 333]), ValueError, r"coordinates must be in \[0, 333\), got 333"),
    ],
)
def test_bad_coordinates_are_named(
    coordinates: Tensor, error: type[Exception], message: str
) -> None:
    evaluation = prepare("sequential", make("plain", training=False), images())
    with pytest.raises(error, match=message):
        evaluation.differences(coordinates, mu=0.1)


@pytest.mark.parametrize("mu", [0.0, float("nan"), float("inf")])
def test_bad_steps_are_named(mu: float) -> None:
    evaluation = prepare("sequential", make("plain", training=False), images())
    with pytest.raises(ValueError, match="mu must be finite and not zero, got"):
        evaluation.differences(torch.tensor([0]), mu=mu)


def test_bad_arguments_are_named() -> None:
    network, x = make("plain", training=False), images()
    evaluation = prepare("sequential", network, x)

    with pytest.raises(TypeError, match="mu must be a number, got str"):
        evaluation.differences(torch.tensor([0]), mu="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"step must be of shape \(333,\), got \(3,\)"):
        evaluation.displaced(torch.ones(3))
    with pytest.raises(TypeError, match="step must be a tensor of floating point"):
        evaluation.displaced(torch.ones(333, dtype=torch.int64))
    with pytest.raises(TypeError, match="network must be a torch module, got int"):
        Sequential().prepare(3, x, head)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be a tensor, got list"):
        Sequential().prepare(network, [1], head)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"inputs must hold samples, got shape \(0, 2, 8, 8\)"):
        Sequential().prepare(network, x[:0], head)
    with pytest.raises(ValueError, match="network must have trainable parameters, got none"):
        Sequential().prepare(nn.ReLU(), x, head)
    with pytest.raises(TypeError, match="network must return one tensor, got tuple"):
        Sequential().prepare(nn.LSTM(8, 2), x[0], head)
    with pytest.raises(ValueError, match="network must return one row a sample, 5 rows, got"):
        Sequential().prepare(nn.Sequential(nn.Linear(8, 2), nn.Flatten(0)), x, head)


def test_bad_heads_are_named() -> None:
    network, x = make("plain", training=False), images()
    with pytest.raises(TypeError, match="head must return a tensor, got float"):
        _ = Sequential().prepare(network, x, lambda _: 1.0).base  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"shape \(1, 5\), got \(\); do not average"):
        _ = Sequential().prepare(network, x, lambda o: o.mean()).base


def test_no_coordinates_cost_no_query() -> None:
    evaluation = prepare("propagation", make("plain", training=False), images())
    assert evaluation.differences(torch.zeros(0, dtype=torch.int64), mu=0.1).shape == (0,)
    assert evaluation.queries == 0


def test_the_same_when_inference_mode_surrounds_it() -> None:
    network, x = make("plain", training=True), images()
    expected = prepare("propagation", network, x).differences(torch.arange(9), mu=0.1)
    with torch.inference_mode():
        got = prepare("propagation", network, x).differences(torch.arange(9), mu=0.1)
    assert torch.equal(got, expected)


def test_a_recorded_graph_survives_a_query() -> None:
    network, x = make("plain", training=False), images()
    loss = network(x).square().sum()
    prepare("propagation", network, x).differences(torch.arange(40), mu=0.1)
    loss.backward()
    first = next(network.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0
