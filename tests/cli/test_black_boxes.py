"""Classifiers by name and of the user's own, sound and broken."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepzero_apps.cli import main
from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.blackbox import labels_of
from deepzero_apps.vision import Splits, load
from tests.cli.conftest import CENTROIDS

NETWORK = """
import torch
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""

ESTIMATOR = """
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB
raw = load_digits()
estimator = GaussianNB(var_smoothing=0.1).fit(raw.data / 16, raw.target)
"""

ADAPTER = """
from deepzero_apps.smoothing.blackbox import CallableClassifier
adapter = CallableClassifier(lambda x: x.reshape(len(x), 64)[:, :10], classes=10, name="ten")
"""

BROKEN = {
    "nan": ("np.full((len(x), 10), np.nan)", "scores must be finite, got NaN scores"),
    "infinite": ("np.full((len(x), 10), np.inf)", "scores must be finite, got infinite scores"),
    "few": ("np.zeros((len(x), 9))", r"scores of shape \(1, 10\) .* got shape \(1, 9\)"),
    "rows": ("np.zeros((len(x) + 1, 10))", r"got shape \(2, 10\)"),
    "raises": ("1 / 0", "raised ZeroDivisionError"),
    "nothing": ("None", "raised TypeError"),
    "words": ("np.array(['a'] * len(x))", "raised TypeError"),
    "label": ("np.full(len(x), 10)", r"labels must be in 0 \.\.\. 9, got 10"),
    "whole": ("np.zeros((len(x), 10), int)", "scores must be floating, got torch.int64"),
}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load("digits")


def own(name: str, splits: Splits) -> tuple[bool, bool, float]:
    """Whether it answers scores, whether it has gradients, and its accuracy."""
    box = black_box(name, splits, weights=None, seed=0, device="cpu")
    hits = labels_of(box.classifier(splits.test.pixels())) == splits.test.labels
    return box.scores, box.white_box is not None, float(hits.float().mean())


def test_a_function_of_scores(splits: Splits, centroids: str) -> None:
    scores, white, accuracy = own(centroids, splits)
    assert (scores, white) == (True, False)
    assert accuracy > 0.85  # nearest class mean; chance is 0.1


def test_a_function_of_labels(splits: Splits, own_module: Callable[[str], str]) -> None:
    scores, white, accuracy = own(f"{own_module(CENTROIDS)}:labels", splits)
    assert (scores, white) == (False, False)
    assert accuracy > 0.85


def test_an_estimator(splits: Splits, own_module: Callable[[str], str]) -> None:
    scores, white, accuracy = own(f"{own_module(ESTIMATOR)}:estimator", splits)
    assert (scores, white) == (True, False)
    assert accuracy > 0.8


def test_a_network_has_gradients(splits: Splits, own_module: Callable[[str], str]) -> None:
    assert own(f"{own_module(NETWORK)}:network", splits)[:2] == (True, True)


def test_an_adapter_of_the_library(splits: Splits, own_module: Callable[[str], str]) -> None:
    assert own(f"{own_module(ADAPTER)}:adapter", splits)[:2] == (True, False)


def test_the_built_in_network_is_right_on_clean_digits(splits: Splits, cnn_weights: Path) -> None:
    box = black_box("cnn", splits, weights=cnn_weights, seed=0, device="cpu")
    hits = labels_of(box.classifier(splits.test.pixels())) == splits.test.labels
    assert hits.float().mean() > 0.97


def test_built_in_estimators_are_right_on_clean_digits_and_the_same_each_time(
    splits: Splits,
) -> None:
    for name in ("svc", "forest"):
        one, other = (
            black_box(name, splits, weights=None, seed=0, device="cpu").classifier
            for _ in range(2)
        )
        hits = labels_of(one(splits.test.pixels())) == splits.test.labels
        assert hits.float().mean() > 0.95, name
        assert one.fingerprint == other.fingerprint, name


@pytest.mark.parametrize(
    ("text", "attribute", "words"),
    [
        ("import absent_module", "f", "ModuleNotFoundError: No module named 'absent_module'"),
        ("def f(:", "f", "SyntaxError"),
        ("1 / 0", "f", "ZeroDivisionError: division by zero"),
        ("g = 1", "f", "AttributeError: .* has no attribute 'f'"),
        ("g = 1", "g", "must name a function, a network or an estimator, got int"),
        ("class Net: ...", "Net", "must name a function, a network or an estimator, got a class"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(
    *,
    own_module: Callable[[str], str],
    splits: Splits,
    text: str,
    attribute: str,
    words: str,
) -> None:
    with pytest.raises(Misuse, match=words):
        own(f"{own_module(text)}:{attribute}", splits)


@pytest.mark.parametrize("verb", ["defend", "certify"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_refused_before_any_work(
    own_module: Callable[[str], str], verb: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, words = BROKEN[kind]
    name = own_module(f"import numpy as np\ndef f(x):\n    return {answer}\n")

    assert main([verb, "--classifier", f"{name}:f", "--out", "run"]) == 2

    said = capsys.readouterr().err
    assert re.match(f"error: --classifier: .*{words}", said)
    assert said.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("verb", ["defend", "certify"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise OSError('unplugged')", "raised OSError .* unplugged"),
        ("return np.full((len(x), 10), np.nan)", "scores must be finite, got NaN"),
        ("return np.zeros((len(x), 10))[1:]", "got shape"),
    ],
)
def test_an_answer_that_breaks_later_is_one_message(
    *,
    own_module: Callable[[str], str],
    verb: str,
    fault: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = f"import numpy as np\ndef f(x):\n    if len(x) > 1: {fault}\n    return x[:, 0, :, :].reshape(1, 64)[:, :10]\n"
    name = own_module(text)
    flags = ["--steps", "2"] if verb == "defend" else ["--n", "50"]

    assert main([verb, "--classifier", f"{name}:f", "--out", "run", *flags]) == 1

    said = capsys.readouterr().err
    assert re.match(f"error: .*{words}", said)
    assert said.count("\n") == 1


@pytest.mark.parametrize("method", ["zo-ds", "deepzero", "zo-ae-ds", "zo-cv"])
def test_labels_are_refused_where_scores_are_needed(
    own_module: Callable[[str], str], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{own_module(CENTROIDS)}:labels"
    assert main(["defend", "--classifier", name, "--method", method, "--out", "run"]) == 2
    assert "--classifier must answer scores (n, classes)" in capsys.readouterr().err
    assert not Path("run").exists()


def test_labels_suffice_for_certificates(own_module: Callable[[str], str]) -> None:
    name = f"{own_module(CENTROIDS)}:labels"
    votes = ["--images", "2", "--n", "20", "--n0", "5"]
    assert main(["certify", "--classifier", name, "--out", "run", *votes]) == 0


def test_the_number_of_classes_must_fit(
    own_module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = own_module(ADAPTER.replace("classes=10", "classes=11"))
    assert main(["certify", "--classifier", f"{name}:adapter", "--out", "run"]) == 2
    assert "error: --classifier" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_network_of_the_user_may_teach_fo_ds(own_module: Callable[[str], str]) -> None:
    name = own_module(NETWORK)
    small = ["--steps", "2", "--width", "1", "--batch", "8"]
    flags = ["--classifier", f"{name}:network", "--method", "fo-ds"]
    assert main(["defend", *flags, *small, "--out", "run"]) == 0
    assert torch.is_grad_enabled()
