"""Fingerprints: equal for equal content in every process, different for any change."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from torch import nn

from deepzero_apps.smoothing.fingerprint import fingerprint

PROGRAM = """
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from deepzero_apps.smoothing.fingerprint import fingerprint
x, y = load_digits(return_X_y=True)
torch.manual_seed(3)
print(fingerprint(SVC().fit(x[:200], y[:200])))
print(fingerprint(RandomForestClassifier(3, random_state=0).fit(x[:200], y[:200])))
print(fingerprint(torch.nn.Linear(3, 2, dtype=torch.float64), {"b", "a", "c"}))
"""


def test_another_process_gives_the_same_fingerprint() -> None:
    x, y = load_digits(return_X_y=True)
    torch.manual_seed(3)
    here = [
        fingerprint(SVC().fit(x[:200], y[:200])),
        fingerprint(RandomForestClassifier(3, random_state=0).fit(x[:200], y[:200])),
        fingerprint(nn.Linear(3, 2, dtype=torch.float64), {"c", "a", "b"}),
    ]

    there = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )

    assert there.stdout.split() == here


def test_prediction_does_not_change_an_estimator_s_fingerprint() -> None:
    x, y = load_digits(return_X_y=True)
    svc = SVC().fit(x[:200], y[:200])
    before = fingerprint(svc)

    svc.predict(x[:5])
    svc.decision_function(x[:5])

    assert fingerprint(svc) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("ab", b"ab"),
        (("ab", "c"), ("a", "bc")),
        ([[1], 2], [1, [2]]),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(4), np.zeros(4, dtype=np.float32)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
        (nn.ReLU(), nn.Tanh()),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_different_values_have_different_fingerprints(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_moving_one_weight_or_buffer_changes_a_module_s_fingerprint() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    seen = {fingerprint(module)}
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.view(-1)[0].add_(1)
            seen.add(fingerprint(module))

    assert len(seen) == 1 + 4 + 3


def test_padding_between_the_fields_of_a_record_does_not_count() -> None:
    layout = np.dtype([("a", np.int8), ("b", np.float64)], align=True)
    one, other = (np.frombuffer(bytes([fill] * 16), dtype=layout).copy() for fill in (0, 255))
    other["a"], other["b"] = 0, 0.0

    assert one.tobytes() != other.tobytes()
    assert fingerprint(one) == fingerprint(other)


def test_how_a_fit_was_run_does_not_count_and_what_was_fitted_does() -> None:
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(3, random_state=0, n_jobs=1).fit(x[:100], y[:100])
    parallel = RandomForestClassifier(3, random_state=0, n_jobs=2).fit(x[:100], y[:100])
    another = RandomForestClassifier(3, random_state=1).fit(x[:100], y[:100])

    assert fingerprint(forest) == fingerprint(parallel) != fingerprint(another)


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[object] = [1]
    loop.append(loop)

    assert len(fingerprint(loop)) == 64
