"""A training run on a real cluster of two nodes, whose workers and nodes are killed at random."""

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.vision.classifiers import adjustable_cnn
from deepzero_apps.workers import Pool, Sharded, Where
from deepzero_apps.workers.sharded import Measurer
from deepzero_apps.zeroth_order.gradients import Coordinates, WeightGradient
from deepzero_apps.zeroth_order.heads import CrossEntropy
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Training

pytest.importorskip("ray")

FAULTS = 20
NODE_FAULTS = 4


def network() -> nn.Module:
    made = adjustable_cnn(2, width=6, classes=4, channels=1, generator=generator_for(0, "w"))
    return made.float().train()


def batch(step: int) -> tuple[Tensor, CrossEntropy]:
    generator = generator_for(0, "batch", step)
    inputs = torch.rand(16, 1, 8, 8, generator=generator, dtype=torch.float32)
    return inputs, CrossEntropy(torch.randint(4, (16,), generator=generator))


def training(gradient: WeightGradient, made: nn.Module) -> Training:
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
    return Training(made, optimizer, lambda step: gradient(made, *batch(step), step=step))


class Faults:
    """Kills workers, and now and then a node, at random moments, until enough were missed."""

    def __init__(self, cluster: Any, pool: Pool) -> None:  # noqa: ANN401 - Ray tells no types
        self._cluster, self._pool = cluster, pool
        self._chance = random.Random(0)
        self.workers = self.nodes = 0
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def done(self) -> bool:
        return self._pool.lost >= FAULTS and self.nodes >= NODE_FAULTS

    @property
    def at_work(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def striking(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self.over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self.over.wait(self._chance.uniform(0.5, 4.0)) and not self.done:
            if self._pool.lost >= FAULTS // NODE_FAULTS * (self.nodes + 1) - 1:
                self._kill_node()
            else:
                self._kill_worker()

    def _kill_worker(self) -> None:
        own = psutil.Process().children(recursive=True)  # and never those of another program
        busy = [p for p in own if _is_worker(p)]
        if busy:
            self._chance.choice(busy).send_signal(signal.SIGKILL)
            self.workers += 1

    def _kill_node(self) -> None:
        for second in list(self._cluster.worker_nodes):  # none while the last is not yet mended
            self._cluster.remove_node(second, allow_graceful=False)
            self.nodes += 1


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name().startswith("ray::_Member")
    return False


@pytest.mark.slow
def test_twenty_killed_workers_and_nodes_do_not_move_a_bit_of_a_training_run() -> None:
    import ray
    from ray.cluster_utils import Cluster

    plain = Coordinates(mu=1e-3)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    made = network()
    try:
        with Pool(partial(Measurer, network(), plain, batch), Where(2, cluster.address)) as pool:
            faults = Faults(cluster, pool)
            spread = training(Sharded(plain, pool), made)
            with faults.striking():
                while faults.at_work or spread.step < 20:
                    list(spread.run(spread.step + 1))
                    if not cluster.worker_nodes:  # Ray adds nodes in the main thread alone
                        cluster.add_node(num_cpus=1)
            lost = pool.lost
    finally:
        ray.shutdown()
        cluster.shutdown()

    alone = network()
    undisturbed = training(plain, alone)
    list(undisturbed.run(spread.step))
    assert lost >= FAULTS
    assert faults.nodes >= NODE_FAULTS
    for here, there in zip(alone.parameters(), made.parameters(), strict=True):
        assert torch.equal(here, there)
