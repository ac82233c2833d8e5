"""What is found out about a network stays with its run: resumed, a gradient has the same bits."""

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.runs.trees import flatten, unflatten
from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.checks import Checks, case_of
from deepzero_apps.zeroth_order.engines import SlowEngineWarning
from deepzero_apps.zeroth_order.gradients import Coordinates, read_gradient
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.state import Weights
from tests.networks import BATCH, Bent, images, make


def step(gradient: Coordinates, network: Bent, number: int) -> Tensor:
    """A gradient; after it the bend comes within reach."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.rand(16, 64, generator=generator, dtype=torch.float32)
    gradient(network, inputs, CrossEntropy(torch.arange(16) % 4), step=number)
    with torch.no_grad():
        network.fc.bias -= 3.9
    return read_gradient(Weights(network))


def resumed(*, told: bool) -> tuple[Tensor, Tensor]:
    """The second gradient of a run that goes on, and that of one stopped in between."""
    network, gradient = Bent().float().train(), Coordinates(mu=1e-3)
    step(gradient, network, 0)
    state = unflatten(*flatten(Checks(gradient, network).state_dict()))

    other, fresh = Bent().float().train(), Coordinates(mu=1e-3)
    other.load_state_dict(network.state_dict())
    if told:
        Checks(fresh, other).load_state_dict(state)
    return step(gradient, network, 1), step(fresh, other, 1)


def test_run_that_resumes_takes_the_paths_of_one_that_was_not_stopped() -> None:
    went_on, again = resumed(told=True)

    assert torch.equal(went_on, again)


def test_without_what_was_found_it_would_not() -> None:
    with pytest.warns(SlowEngineWarning, match="changes and is no number"):
        went_on, again = resumed(told=False)

    assert not torch.equal(went_on, again)


@pytest.mark.parametrize(
    "gradient", [Coordinates(mu=1e-3), Activations(mu=1e-3)], ids=["weights", "outputs"]
)
def test_what_was_told_is_told_on(gradient: Coordinates | Activations) -> None:
    head = CrossEntropy(torch.arange(BATCH) % 3)
    inputs, network, other = images(), *(make("plain", training=False) for _ in range(2))
    gradient(network, inputs, head, step=0)
    found = gradient.checked(network)

    gradient.believe(other, found)

    assert found
    assert gradient.checked(other) == found
    gradient(other, inputs, head, step=0)
    assert gradient.checked(other) == found
    gradient.believe(network, {})  # in place of what is known here
    assert gradient.checked(network) == {}


class Scaled(nn.Module):
    """Its graph holds as long as its factor does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), 1.0

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.linear(x) * self.factor
        return scaled


def test_what_was_told_of_a_graph_ends_with_it() -> None:
    network, gradient = Scaled(), Coordinates(mu=1e-3)
    gradient.believe(network, {"another case": 1})
    for factor in (1.0, 1.0, 2.0):
        network.factor = factor
        gradient(network, torch.ones(3, 4), CrossEntropy(torch.arange(3)), step=0)
        assert ("another case" in gradient.checked(network)) == (factor == 1.0)


def test_cases_tell_modes_shapes_and_types_apart() -> None:
    network, inputs = Bent().train(), torch.zeros(2, 64)
    cases = {case_of(network, inputs), case_of(network, inputs[:1])}
    cases |= {case_of(network, inputs.half()), case_of(network.eval(), inputs)}

    assert len(cases) == 4
    assert case_of(Bent().eval(), torch.ones(2, 64)) in cases
