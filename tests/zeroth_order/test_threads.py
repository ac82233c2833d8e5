"""Work in threads: order, errors, torch's own threads, and the same bits as without."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from deepzero_apps.zeroth_order.engines import DifferencePropagation
from deepzero_apps.zeroth_order.threads import in_order
from tests.networks import images, make


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_order_from_threads_of_one_thread_each() -> None:
    def work(item: int) -> tuple[int, int, bool]:
        torch.ones(1000 * (20 - item)).sum()
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert list(in_order(work, range(20))) == [(i, 1, False) for i in range(20)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_reaches_the_consumer_and_torch_has_its_threads_back() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ArithmeticError("at three")
        return item

    with pytest.raises(ArithmeticError, match="at three"):
        list(in_order(work, range(50)))
    assert torch.get_num_threads() == 2


def head(outputs: Tensor) -> Tensor:
    return outputs.flatten(2).tanh().sum(2)


@pytest.mark.parametrize("name", ["residual", "transformer", "unet", "dropout"])
def test_gradients_have_the_same_bits_for_one_and_two_threads(name: str) -> None:
    network, x = make(name, training=True).float(), images().float()
    coordinates = torch.arange(0, sum(p.numel() for p in network.parameters()), 3)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            engine = DifferencePropagation(budget=4000)
            evaluation = engine.prepare(network, x, head)
            found.append(evaluation.differences(coordinates, mu=0.01))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
