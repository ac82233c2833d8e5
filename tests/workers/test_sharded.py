"""Gradients measured by real workers, against the same gradients measured here."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision.classifiers import adjustable_cnn
from deepzero_apps.workers import Pool, Sharded, Shared, Where
from deepzero_apps.workers.sharded import Measurer, restore, snapshot
from deepzero_apps.zeroth_order.activations import Activations
from deepzero_apps.zeroth_order.cyclic import CyclicSchedule
from deepzero_apps.zeroth_order.engines import PrefixReuse
from deepzero_apps.zeroth_order.gradients import Coordinates, Randomized, read_gradient
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.pieces import Divisible
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.sparsity import SupportSchedule, shares_by_size
from deepzero_apps.zeroth_order.stacked import StackedRandomized
from deepzero_apps.zeroth_order.state import Weights
from tests.networks import Bent

pytest.importorskip("ray")

STEPS = 3


def plain_network() -> nn.Module:
    generator = generator_for(0, "weights")
    return adjustable_cnn(2, width=6, classes=4, channels=1, generator=generator).float().train()


def dropping_network() -> nn.Module:
    """Draws from torch's global generator, and moves buffers."""
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(108, 4),
    )
    network = nn.Sequential(*layers).float().train()
    generator = generator_for(0, "weights")
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.empty_like(p).uniform_(-0.3, 0.3, generator=generator))
    return network


def batch(step: int) -> tuple[Tensor, CrossEntropy]:
    generator = generator_for(0, "batch", step)
    inputs = torch.rand(16, 1, 8, 8, generator=generator, dtype=torch.float32)
    return inputs, CrossEntropy(torch.randint(4, (16,), generator=generator))


def sparse() -> Coordinates:
    sizes = Weights(plain_network()).sizes
    shares = tuple(shares_by_size(sizes, 120))
    return Coordinates(mu=1e-3, schedule=CyclicSchedule(SupportSchedule(shares, sizes)))


CASES: dict[str, tuple[Callable[[], Divisible], Callable[[], nn.Module]]] = {
    "dense": (lambda: Coordinates(mu=1e-3), plain_network),
    "sparse": (sparse, plain_network),
    "central": (lambda: Coordinates(mu=1e-3, central=True), plain_network),
    "one by one": (lambda: Coordinates(mu=1e-3, engine=PrefixReuse()), plain_network),
    "dropout": (lambda: Coordinates(mu=1e-3), dropping_network),
    "directions": (lambda: Randomized(mu=1e-3, q=13), plain_network),
    "directions, dropout": (lambda: Randomized(mu=1e-3, q=5, central=True), dropping_network),
    "stacked": (lambda: StackedRandomized(Randomized(mu=1e-3, q=21), copies=4), plain_network),
}


def trained(gradient: object, network: nn.Module) -> tuple[list[Tensor], Tensor]:
    """A few steps of plain descent: each step's gradient, and the last weights and buffers."""
    weights, gradients = Weights(network), []
    for step in range(STEPS):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            gradient(network, *batch(step), step=step)  # type: ignore[operator]
        gradients.append(read_gradient(weights))
        with torch.no_grad():
            for p in weights.parameters:
                p -= 0.1 * p.grad  # type: ignore[operator]
    return gradients, torch.cat([v.double().flatten() for v in network.state_dict().values()])


class Several:
    """All cases in one worker, since a worker takes seconds to start."""

    def __init__(self) -> None:
        self._measurers = {
            case: Measurer(network(), gradient(), batch)
            for case, (gradient, network) in CASES.items()
        }

    def begin(self, case: str, step: int, state: Shared) -> None:
        self._measurers[case].begin(step, state)

    def measure(
        self, case: str, step: int, state: Shared, pieces: Sequence[int]
    ) -> tuple[Tensor, dict[int, float]]:
        return self._measurers[case].measure(step, state, pieces)


class Chosen:
    """A pool, asked of one case."""

    def __init__(self, pool: Pool, case: str) -> None:
        self.count, self.share, self.abandon = pool.count, pool.share, pool.abandon
        self._pool, self._case = pool, case

    def put(self, method: str, *arguments: object) -> int:
        return self._pool.put(method, self._case, *arguments)

    def ask(self, method: str, calls: Sequence[Sequence[object]]) -> Iterator[tuple[int, Any]]:
        return self._pool.ask(method, [(self._case, *arguments) for arguments in calls])


@pytest.fixture(scope="module", params=[1, 2, 4])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with Pool(Several, Where(request.param)) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_workers_have_the_bits_of_none(pool: Pool, case: str) -> None:
    gradient, network = CASES[case]
    here, ended = trained(gradient(), network())

    there, arrived = trained(Sharded(gradient(), Chosen(pool, case)), network())  # type: ignore[arg-type]

    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert torch.equal(ended, arrived)
    assert any(g.any() for g in here)


class Newcomers:
    """Workers in this process, a new one for every call."""

    count = 2

    def __init__(self, network: type[nn.Module]) -> None:
        self._network, self._shared = network, 0

    def share(self, value: object) -> Shared:
        self._shared += 1
        shared = Shared(self._shared, ())
        object.__setattr__(shared, "value", lambda: value)
        return shared

    def put(self, method: str, *arguments: object) -> int:  # noqa: ARG002 - nobody begins ahead
        return 0

    def abandon(self, numbers: Sequence[int]) -> None:
        pass

    def ask(self, method: str, calls: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        for place, arguments in enumerate(calls):
            network = self._network().float().train()
            worker = Measurer(network, Coordinates(mu=1e-3), batch)
            with torch.random.fork_rng():
                yield place, getattr(worker, method)(*arguments)


def test_worker_that_comes_later_sees_the_network_as_the_one_who_asks() -> None:
    here, there = Bent().float(), Bent().float()
    plain, sharded = Coordinates(mu=1e-3), Sharded(Coordinates(mu=1e-3), Newcomers(Bent))  # type: ignore[arg-type]
    for step in range(2):
        plain(here, *batch(step), step=step)
        sharded(there, *batch(step), step=step)

        assert torch.equal(read_gradient(Weights(there)), read_gradient(Weights(here)))
        with torch.no_grad():
            here.fc.bias -= 3.9
            there.fc.bias -= 3.9


def test_snapshot_restores_weights_buffers_modes_and_generators() -> None:
    network, other = dropping_network(), dropping_network()
    inputs, _ = batch(0)
    network(inputs)
    torch.manual_seed(3)
    network[4].eval()
    taken = snapshot(network, inputs.device)
    wanted = torch.rand(3), network(inputs)

    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    restore(other, taken, inputs.device)

    assert torch.equal(wanted[0], torch.rand(3))
    assert torch.equal(wanted[1], other(inputs))


def test_groups_hold_every_piece_once_and_weigh_the_same() -> None:
    class Two:
        count = 2

    sharded = Sharded(Coordinates(mu=1e-3), Two(), calls=2)  # type: ignore[arg-type]
    sharded._learn({0: 9.0, 1: 1.0})

    groups = sharded._groups([0, 0, 0, 0, *[1] * 36])

    assert sorted(piece for group in groups for piece in group) == list(range(40))
    weights = [sum(9 if piece < 4 else 1 for piece in group) for group in groups]
    assert weights == [18, 18, 18, 18]  # 4 * 9 + 36 * 1 = 72 in four calls


def test_estimate_without_pieces_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be an estimate that comes in pieces.*Activations"):
        Sharded(Activations(mu=1e-3), None)  # type: ignore[arg-type]
