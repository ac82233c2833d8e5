"""Classifiers by name and of the user's own, sound and broken."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deepzero_apps.cli import main
from deepzero_apps.cli.black_boxes import black_box
from deepzero_apps.cli.settings import Misuse
from deepzero_apps.smoothing.blackbox import labels_of
from deepzero_apps.vision import Splits, load
from tests.cli.conftest import CENTROIDS
from tests.smoothing.services.launch import Running, launched

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


def test_labels_suffice_for_training(own_module: Callable[[str], str]) -> None:
    name = f"{own_module(CENTROIDS)}:labels"
    small = ["--method", "zo-ds", "--steps", "2", "--width", "1", "--batch", "8"]
    budget = ["--budget", "1400"]  # 1,000 are the classifier's own clean answers
    assert main(["defend", "--classifier", name, "--out", "run", *small, *budget]) == 0


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


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with launched() as running:
        yield running


@pytest.fixture
def service(server: Running, tmp_path: Path) -> Callable[..., str]:
    """Writes the description of the running service; returns the file's name."""
    server.script()

    def write(kind: str = "scores", suffix: str = ".yaml", **fields: object) -> str:
        described = {"url": f"{server.url}/{kind}", "classes": list(range(10)), "backoff": 0}
        path = tmp_path / f"service{suffix}"
        path.write_text(json.dumps({**described, **fields}))  # JSON is YAML, too
        return str(path)

    return write


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_service_of_scores(
    server: Running, service: Callable[..., str], splits: Splits, suffix: str
) -> None:
    assert own(service(suffix=suffix), splits) == (True, False, pytest.approx(0.97, abs=0.03))
    assert server.sizes()[0] == 1  # the first image, before any work


def test_a_service_of_labels(service: Callable[..., str], splits: Splits) -> None:
    scores, white, accuracy = own(service("numbers", answer="label"), splits)

    assert (scores, white) == (False, False)
    assert accuracy > 0.94


def test_classes_of_a_service_take_the_order_of_the_data(
    service: Callable[..., str], splits: Splits
) -> None:
    digits = [str(digit) for digit in range(10)]
    moved = [*digits[1:], "0"]  # the service calls its first class 1, and so on
    _, _, accuracy = own(service(classes=moved), splits)
    _, _, by_place = own(service(classes=[f"digit {digit}" for digit in digits]), splits)

    assert accuracy < 0.02
    assert by_place > 0.94
    with pytest.raises(Misuse, match=r"classes must be those of the data, 0, 1, 2.*got zero, 1"):
        own(service(classes=["zero", *digits[1:]]), splits)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "nowhere"}, "url must be an http or https address"),
        ({"headers": {"Authorization": "Bearer abc"}}, "must take its credential from the env"),
        ({"headers": {"Authorization": "${ABSENT_KEY}"}}, "ABSENT_KEY, which is not set"),
        ({"answers": "elsewhere", "give_up": 1}, "does not answer: .*no list at 'elsewhere'"),
        ({"row": "elsewhere"}, "must answer a first image, got no usable answer from"),
        ({"classes": ["a", "b"]}, "must answer a first image, got no usable answer from"),
    ],
)
def test_a_service_that_is_not_as_described_is_refused(
    service: Callable[..., str], splits: Splits, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(Misuse, match=f"--classifier.*{words}"):
        own(service(**fields), splits)


def test_an_address_is_no_classifier(splits: Splits) -> None:
    with pytest.raises(Misuse, match=r"a file that describes the service, .*service.yaml as `url"):
        own("https://host/predict", splits)


def test_models_in_files(splits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    example = torch.rand(2, 1, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, example), tmp_path / "model.pt")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(value.detach().numpy(), name)
            for name, value in zip("wb", network[1].parameters(), strict=True)
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    hits = network(splits.test.pixels()).argmax(1) == splits.test.labels

    for name in ("model.pt2", "model.pt", "model.onnx"):
        found = own(str(tmp_path / name), splits)
        assert found == (True, False, pytest.approx(float(hits.float().mean())))
    with pytest.raises(Misuse, match=r"cannot read .*absent.onnx: No such file"):
        own(str(tmp_path / "absent.onnx"), splits)


@pytest.mark.parametrize("name", ["svc", "mine"])
def test_bits_round_what_the_classifier_is_shown(
    name: str, splits: Splits, own_module: Callable[[str], str]
) -> None:
    name = name if name == "svc" else f"{own_module(CENTROIDS)}:scores"
    images = splits.test.pixels(slice(0, 20)) + 0.1
    plain, coarse = (
        black_box(name, splits, weights=None, seed=0, device="cpu", bits=bits).classifier
        for bits in (None, 2)
    )

    rounded = (images.clamp(0, 1) * 3).round() / 3
    assert torch.equal(coarse(images), plain(rounded))
    assert not torch.equal(coarse(images), plain(images))
    assert coarse.fingerprint != plain.fingerprint


def test_a_network_of_the_user_may_teach_fo_ds(own_module: Callable[[str], str]) -> None:
    name = own_module(NETWORK)
    small = ["--steps", "2", "--width", "1", "--batch", "8"]
    flags = ["--classifier", f"{name}:network", "--method", "fo-ds"]
    assert main(["defend", *flags, *small, "--out", "run"]) == 0
    assert torch.is_grad_enabled()
