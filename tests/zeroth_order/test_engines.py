"""What the engines do with networks that they cannot run the fast way."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision.classifiers import resnet
from deepzero_apps.zeroth_order.differences import Engine, Sequential
from deepzero_apps.zeroth_order.engines import (
    DifferencePropagation,
    Fastest,
    PrefixReuse,
    SlowEngineWarning,
)
from deepzero_apps.zeroth_order.graph import Untraceable
from tests.networks import BATCH, UNTRACEABLE, Mixing, images, make


def head(outputs: Tensor) -> Tensor:
    return outputs.flatten(2).tanh().sum(2)


def test_fastest_falls_back_and_says_so_once() -> None:
    network, x, engine = UNTRACEABLE(), images(), Fastest()

    with pytest.warns(SlowEngineWarning, match="Untraceable runs whole .* TraceError: symbolic"):
        evaluation = engine.prepare(network, x, head)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.prepare(network, x, head)

    expected = Sequential().prepare(network, x, head).differences(torch.arange(9), mu=0.1)
    assert torch.equal(evaluation.differences(torch.arange(9), mu=0.1), expected)


@pytest.mark.parametrize(
    "engine", [PrefixReuse(), DifferencePropagation()], ids=["prefix", "batched"]
)
def test_other_engines_refuse_what_has_no_graph(engine: Engine) -> None:
    with pytest.raises(Untraceable, match="symbolically traced variables"):
        engine.prepare(UNTRACEABLE(), images(), head)


def test_hooks_are_not_lost() -> None:
    network = make("plain", training=False)
    network[0].register_forward_hook(lambda _m, _i, out: 2 * out)  # type: ignore[index]
    with pytest.warns(SlowEngineWarning, match="module '0' has forward hooks"):
        Fastest().prepare(network, images(), head)


def test_mixed_samples_are_no_obstacle() -> None:
    network, x = Mixing(), images()
    expected = Sequential().prepare(network, x, head).differences(torch.arange(20), mu=0.1)

    got = DifferencePropagation().prepare(network, x, head).differences(torch.arange(20), mu=0.1)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_stale_graph_is_traced_anew() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)
            self.temperature = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x[:, 0, 0]) / self.temperature

    network, x, engine = Tempered(), images(), DifferencePropagation()
    engine.prepare(network, x, head)
    network.temperature = 3.0

    got = engine.prepare(network, x, head).differences(torch.arange(9), mu=0.1)

    expected = Sequential().prepare(network, x, head).differences(torch.arange(9), mu=0.1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_batches_hold_as_many_networks_as_the_budget_allows() -> None:
    network, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.Tanh(), nn.Linear(4, 2)),
        images(),
    )
    sizes: list[int] = []

    def counting(outputs: Tensor) -> Tensor:
        sizes.append(len(outputs))
        return head(outputs)

    # The first layer differs in one number a sample, the last in two.
    evaluation = DifferencePropagation(budget=3 * BATCH * 2 * 8).prepare(network, x, counting)
    evaluation.differences(torch.arange(8), mu=0.1)

    assert sizes == [1, 3, 3, 2]


def test_budget_is_named() -> None:
    with pytest.raises(ValueError, match="budget must be a positive number of bytes, got 0"):
        DifferencePropagation(budget=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "one_by_one"),
    [
        ("plain", 0),
        ("residual", 0),
        ("dncnn", 0),
        ("unet", 0),
        ("transformer", 0),
        ("dropout", 0),
        ("in place", 0),
        ("by name", 0),
        ("channels last", 0),
        ("tied", 3),
        ("odd", 2),
    ],
)
def test_all_moves_of_a_parameter_make_one_batch(
    name: str, one_by_one: int, training: bool
) -> None:
    network = make(name, training=training)
    sizes: list[int] = []

    def counting(outputs: Tensor) -> Tensor:
        sizes.append(len(outputs))
        return head(outputs)

    # The first and the last entry of each parameter; a parameter used twice or never has a
    # batch for each.
    ends = torch.tensor([p.numel() for p in network.parameters()]).cumsum(0)
    coordinates = torch.cat([ends - 1, ends[:-1], torch.zeros(1, dtype=torch.int64)])
    evaluation = DifferencePropagation(budget=2**30).prepare(network, images(), counting)
    evaluation.differences(coordinates, mu=0.1)

    parameters = len(ends)
    assert sorted(sizes) == [1] * (1 + 2 * one_by_one) + [2] * (parameters - one_by_one)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_resnet20_is_batched_and_equals_sequential(training: bool) -> None:
    network = resnet(depth=20).double().train(training)
    x = torch.randn(3, 3, 8, 8)
    coordinates = torch.randperm(sum(p.numel() for p in network.parameters()))[:12]

    got = DifferencePropagation().prepare(network, x, head).differences(coordinates, mu=0.1)

    expected = Sequential().prepare(network, x, head).differences(coordinates, mu=0.1)
    # Batch norm over few values multiplies rounding, of 1e-16 a sum, some hundredfold.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    assert expected.abs().max() > 1e-3


def test_a_network_for_one_size_of_batch_is_checked_on_that() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.fc(x.reshape(20, 128)))

    network, x = Fixed(), torch.randn(20, 2, 8, 8)
    expected = Sequential().prepare(network, x, head).differences(torch.arange(9), mu=0.1)

    got = DifferencePropagation().prepare(network, x, head).differences(torch.arange(9), mu=0.1)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_places_that_change_have_no_difference() -> None:
    class Ranked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x[:, 0, 0])
            return y.gather(1, y.argsort(1)) * torch.arange(6.0)

    network, x = Ranked(), images()
    expected = Sequential().prepare(network, x, head).differences(torch.arange(9), mu=1.0)
    evaluation = DifferencePropagation().prepare(network, x, head)

    with pytest.warns(SlowEngineWarning, match="an input of gather changes and is no number"):
        got = evaluation.differences(torch.arange(9), mu=1.0)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


class Hidden(nn.Module):
    """A weight that torch.fx reads as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 128))
        self.v = nn.Parameter(torch.randn(128))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1) * self.v, self._parameters["w"] * 2)


class SharedStorage(nn.Module):
    """Two parameters in one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x[:, 0, 0])))


@pytest.mark.parametrize("kind", [Hidden, SharedStorage])
def test_what_the_graph_does_not_show_is_found_and_run_whole(kind: type[nn.Module]) -> None:
    network, x = kind(), images()
    coordinates = torch.arange(0, sum(p.numel() for p in network.parameters()), 7)
    expected = Sequential().prepare(network, x, head).differences(coordinates, mu=0.1)
    evaluation = DifferencePropagation().prepare(network, x, head)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = evaluation.differences(coordinates, mu=0.1)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert any("the graph does not show all" in str(warning.message) for warning in said)


def test_a_module_with_a_forward_of_its_own_is_not_mistaken_for_its_type() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    network[1].forward = torch.tanh  # type: ignore[method-assign]
    with pytest.warns(SlowEngineWarning, match="module '1' has a forward of its own"):
        Fastest().prepare(network, images(), head)


def test_pooling_that_leaves_a_margin_is_no_average_of_all() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(4, 9))
    with torch.no_grad():
        network[0].bias[[0, -1]] = -100.0  # the first and the last channel are dead
    coordinates = torch.arange(sum(p.numel() for p in network.parameters()))
    x = images()
    expected = Sequential().prepare(network, x, head).differences(coordinates, mu=0.1)

    got = DifferencePropagation().prepare(network, x, head).differences(coordinates, mu=0.1)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_moves_of_a_parameter_share_passes() -> None:
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), images().flatten(1)[:, :128]
    coordinates = torch.arange(0, 387, 2)

    together = DifferencePropagation().prepare(network, x, head).passes(coordinates)
    alone = Sequential().prepare(network, x, head).passes(coordinates)

    assert [(index, len(places)) for index, places in together] == [(0, 192), (1, 2)]
    assert [(index, places.tolist()) for index, places in alone] == [
        (0 if place < 192 else 1, [place]) for place in range(194)
    ]


@pytest.mark.parametrize("budget", [None, 1])  # one pass, or one for each move
def test_a_move_that_changes_a_place_runs_whole_even_after_the_check(budget: int | None) -> None:
    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x[:, 0, 0])
            return y * (y > -20.0)

    network, x = Above(), images()
    expected = Sequential().prepare(network, x, head).differences(torch.arange(48), mu=60.0)
    evaluation = DifferencePropagation(budget).prepare(network, x, head)

    with pytest.warns(SlowEngineWarning, match="changes and is no number"):
        got = evaluation.differences(torch.arange(48), mu=60.0)

    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_torch_has_its_threads_back_while_a_head_s_error_is_looked_at() -> None:
    def fails(outputs: Tensor) -> Tensor:
        if len(outputs) > 1:
            raise ArithmeticError("no answer")
        return head(outputs)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluation = DifferencePropagation().prepare(make("plain", training=True), images(), fails)
        with pytest.raises(ArithmeticError) as caught:
            evaluation.differences(torch.arange(40), mu=0.1)
        assert torch.get_num_threads() == 2
        assert caught.value.args == ("no answer",)
    finally:
        torch.set_num_threads(before)


def test_a_budget_that_is_no_whole_number_is_named() -> None:
    with pytest.raises(TypeError, match=r"budget must be a whole number of bytes, got 1500000\.0"):
        DifferencePropagation(budget=1.5e6)  # type: ignore[arg-type]
