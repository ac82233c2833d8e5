"""Models in files against the network that they were exported from."""

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim

from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.runtimes import ExportedClassifier, OnnxClassifier

# Two runtimes sum up to 144 products in orders of their own: at most 144 roundings of 2^-24 of
# terms of size one, and the worst case is far from what happens.
CLOSE = {"rtol": 0, "atol": 144 * 2**-24}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    parts = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10)
    network = nn.Sequential(*parts).float().eval()
    network[1].running_mean.uniform_()
    return network


@pytest.fixture
def images() -> Tensor:
    return torch.rand(11, 1, 8, 8, dtype=torch.float32)


def expected(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(images)
    return answer


@pytest.fixture(scope="module")
def onnx_files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, example = tmp_path_factory.mktemp("onnx"), torch.rand(4, 1, 8, 8, dtype=torch.float32)
    ways: dict[str, dict[str, Any]] = {
        "fixed": {},
        "dynamic": {"dynamic_shapes": ({0: Dim("batch")},), "external_data": False},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own code
        for name, options in ways.items():
            file = folder / f"{name}.onnx"
            torch.onnx.export(network, (example,), file, dynamo=True, verbose=False, **options)
    return {name: folder / f"{name}.onnx" for name in ways}


@pytest.fixture(scope="module")
def torch_files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, example = tmp_path_factory.mktemp("pt2"), torch.rand(4, 1, 8, 8, dtype=torch.float32)
    shapes = {"fixed": None, "any": Dim("batch"), "most": Dim("batch", max=4), "two": Dim.DYNAMIC}
    for name, shape in shapes.items():
        program = torch.export.export(
            network, (example,), dynamic_shapes=None if shape is None else ({0: shape},)
        )
        torch.export.save(program, folder / f"{name}.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, example), folder / "script.ts")
    return {file.stem: file for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_an_onnx_model_answers_as_the_network(
    *,
    network: nn.Module,
    onnx_files: dict[str, Path],
    images: Tensor,
    name: str,
    rows: int,
) -> None:
    scores = OnnxClassifier(onnx_files[name], classes=10)(images[:rows])

    torch.testing.assert_close(scores, expected(network, images[:rows]), **CLOSE)


@pytest.mark.parametrize("name", ["fixed", "any", "most", "two", "script"])
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_an_exported_program_answers_as_the_network(
    *,
    network: nn.Module,
    torch_files: dict[str, Path],
    images: Tensor,
    name: str,
    rows: int,
) -> None:
    scores = ExportedClassifier(torch_files[name], classes=10)(images[:rows].double())

    torch.testing.assert_close(scores, expected(network, images[:rows]), **CLOSE)
    assert not scores.requires_grad


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX model of one node."""

    def write(
        operator: str,
        *,
        into: int = TensorProto.FLOAT,
        out: int = TensorProto.FLOAT,
        shape: Sequence[str | int] = ("n", 2),
        answer: Sequence[str | int] = ("n", 2),
        inputs: int = 1,
        options: Mapping[str, int] = MappingProxyType({}),
    ) -> Path:
        names = [f"x{i}" for i in range(inputs)]
        graph = helper.make_graph(
            [helper.make_node(operator, names, ["y"], **options)],
            "one node",
            [helper.make_tensor_value_info(name, into, shape) for name in names],
            [helper.make_tensor_value_info("y", out, answer)],
        )
        opset = [helper.make_opsetid("", 18)]
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
        return path

    return write


def test_flat_rows_of_doubles_and_labels_are_taken_as_the_model_has_them(
    written: Callable[..., Path],
) -> None:
    path = written(
        "ArgMax",
        into=TensorProto.DOUBLE,
        out=TensorProto.INT64,
        answer=["n"],
        options={"axis": 1, "keepdims": 0},
    )
    labels = OnnxClassifier(path, classes=2)(torch.tensor([[[[0.1, 0.2]]], [[[0.4, 0.3]]]]))

    assert labels.tolist() == [1, 0]


def test_a_model_of_bytes_sees_rounded_pixels(written: Callable[..., Path]) -> None:
    path = written("Cast", into=TensorProto.UINT8, options={"to": TensorProto.FLOAT})
    scores = OnnxClassifier(path, classes=2)(torch.tensor([[[[0.5, 1.4]]], [[[-1.0, 0.1]]]]))

    assert scores.tolist() == [[128.0, 255.0], [0.0, 26.0]]  # 127.5 to even, 25.5 to even


def test_weights_in_a_file_beside_the_model_are_part_of_the_fingerprint(
    onnx_files: dict[str, Path], tmp_path: Path
) -> None:
    model, weights = (onnx_files["fixed"].with_name(f"fixed.onnx{end}") for end in ("", ".data"))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    beside = copy.with_name("fixed.onnx.data")
    with pytest.raises(ValueError, match=r"cannot read .*fixed.onnx.data: No such file"):
        OnnxClassifier(copy, classes=10)
    beside.write_bytes(weights.read_bytes())
    before = OnnxClassifier(copy, classes=10)

    other = np.frombuffer(weights.read_bytes(), dtype=np.float32) * 2
    beside.write_bytes(other.tobytes())
    after = OnnxClassifier(copy, classes=10)

    assert before.fingerprint == OnnxClassifier(model, classes=10).fingerprint
    assert before.fingerprint != after.fingerprint
    x = torch.rand(4, 1, 8, 8)
    assert (before(x) - after(x)).abs().max() > 0.1


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], bytes(4), raw=True)
    onnx.external_data_helper.set_external_data(weight, location="../secret")
    graph = helper.make_graph([], "weights", [], [], initializer=[weight])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())

    with pytest.raises(ValueError, match=r"must keep its weights beside it, got '../secret'"):
        OnnxClassifier(path, classes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"into": TensorProto.INT64, "out": TensorProto.INT64}, "one input of images.*int64"),
        ({"shape": ["n", 1, 2], "answer": ["n", 1, 2]}, r"one input of images.*\['n', 1, 2\]"),
        ({"operator": "Add", "inputs": 2}, "one input of images.* x0: .* x1: "),
    ],
)
def test_a_model_of_other_inputs_is_refused(
    written: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    path = written(**{"operator": "Identity", **options})
    with pytest.raises(ValueError, match=message):
        OnnxClassifier(path, classes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "logits"}, r"output must be one of \['y'\], got 'logits'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
    ],
)
def test_bad_options_are_refused(
    written: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    path = written("Identity")
    with pytest.raises(ValueError, match=message):
        OnnxClassifier(path, **{"classes": 2, **options})


@pytest.mark.parametrize("content", [b"", b"no model", b"\n\x08location\x12"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.onnx must be an ONNX model"):
        OnnxClassifier(path, classes=2)
    with pytest.raises(ValueError, match=r"model.onnx must be a file that torch exported"):
        ExportedClassifier(path, classes=2)


def test_a_copy_answers_the_same_and_refuses_another_file(
    torch_files: dict[str, Path], onnx_files: dict[str, Path], images: Tensor, tmp_path: Path
) -> None:
    made: list[tuple[type[Any], Path]] = [
        (ExportedClassifier, torch_files["any"]),
        (ExportedClassifier, torch_files["script"]),
        (OnnxClassifier, onnx_files["dynamic"]),
    ]
    for kind, source in made:
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        classifier: Adapter = kind(path, classes=10)
        packed = pickle.dumps(classifier)
        copy = pickle.loads(packed)
        assert torch.equal(copy(images), classifier(images))
        assert copy.fingerprint == classifier.fingerprint

        path.write_bytes(source.read_bytes() + b"\0")
        with pytest.raises(ValueError, match=r"must stay as it is .* got another content"):
            pickle.loads(packed)


def test_fingerprints_follow_the_bytes(
    torch_files: dict[str, Path], onnx_files: dict[str, Path]
) -> None:
    prints = [ExportedClassifier(file, classes=10).fingerprint for file in torch_files.values()]
    prints += [OnnxClassifier(file, classes=10).fingerprint for file in onnx_files.values()]

    assert len(set(prints)) == 7
    again = ExportedClassifier(torch_files["any"], classes=10)
    assert again.fingerprint == prints[list(torch_files).index("any")]
