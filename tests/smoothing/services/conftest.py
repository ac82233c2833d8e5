"""What the tests of services share: one running service, and the digits that it knows."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from tests.smoothing.services.launch import Running, launched


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    with launched() as server:
        yield server


@pytest.fixture
def server(running: Running) -> Running:
    """The service, well behaved and with nothing seen."""
    running.script()
    return running


@pytest.fixture(scope="session")
def images() -> Tensor:
    """30 digits that the service was not fitted to."""
    x = load_digits().data[600:630] / 16
    return torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8)


@pytest.fixture(scope="session")
def scores(images: Tensor) -> np.ndarray:
    """What the service's SVC says of them, asked here."""
    x, y = load_digits(return_X_y=True)
    svc = SVC().fit(x[:500] / 16, y[:500])
    answer: np.ndarray = svc.decision_function(images.flatten(1).double().numpy())
    return answer
