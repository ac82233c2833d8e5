"""What is refused in an exported file, and that nothing in it is ever unpickled."""

import io
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deepzero_apps.smoothing.exported_files import Program, program

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def exported(module: nn.Module, *inputs: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def sound() -> bytes:
    torch.manual_seed(0)
    example = torch.rand(3, 1, 2, 2, dtype=torch.float32)
    return exported(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).float().eval(), example)


def changed(content: bytes, ending: str, change: Callable[[bytes], bytes]) -> bytes:
    """Another archive, one of whose files is changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, change(data) if entry.endswith(ending) else data)
    return out.getvalue()


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


def opened(content: bytes) -> Program:
    return program(content, device=torch.device("cpu"), name="model.pt2")


def test_example_inputs_are_never_unpickled(
    sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    armed = changed(sound, SAMPLES, lambda _: torch_bomb(trace))
    x = torch.rand(3, 1, 2, 2, dtype=torch.float32)

    found = opened(armed)

    assert not trace.exists()
    assert torch.equal(found.call(x), opened(sound).call(x))
    # The bomb is a live one: this is what happens where torch opens the file by itself.
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    torch.export.load(io.BytesIO(armed))
    assert trace.exists()


def torch_bomb(trace: Path) -> bytes:
    file = io.BytesIO()
    torch.save((Bomb(trace),), file)
    return file.getvalue()


def test_the_program_knows_its_batch_and_dtype(sound: bytes) -> None:
    found = opened(sound)

    assert (found.fewest, found.most, found.dtype) == (3, 3, torch.float32)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (WEIGHTS, '"use_pickle": false', '"use_pickle": true', "plain tensors only"),
        (WEIGHTS, '"weight_0"', '"opaque_obj_0"', "plain tensors only"),
        (WEIGHTS, '"weight_0"', '"custom_obj_0"', "plain tensors only"),
        (WEIGHTS, "{", "[", "must hold JSON in"),
        (GRAPH, "torch.ops.aten.linear.default", "torch.load", "operators only, got 'torch.load'"),
        (GRAPH, "torch.ops.aten.linear.default", "torch.ops.load_library", "operators only"),
        (GRAPH, "torch.ops.aten.linear.default", "torch.ops.aten.__class__", "operators only"),
        (GRAPH, "torch.ops.aten.linear.default", "#x", "operators only, got '#x'"),
        (GRAPH, '"name": "linear"', '"name": "a=exit()"', r"plain names, got 'a=exit\(\)'"),
    ],
)
def test_what_is_no_data_is_refused(
    *, sound: bytes, file: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(changed(sound, file, replaced(old, new)))


@pytest.mark.parametrize(
    "size", ["exec(chr(97))", "__import__('os')", "s0.x", "open", "S('exit()')", ["s0"], "e(1)"]
)
def test_sizes_that_are_more_than_arithmetic_are_refused(sound: bytes, size: object) -> None:
    def change(data: bytes) -> bytes:
        graph = json.loads(data)
        graph["range_constraints"] = {"s0": {"expr_str": size}}
        return json.dumps(graph).encode()

    with pytest.raises(ValueError, match="sizes of plain arithmetic, got"):
        opened(changed(sound, GRAPH, change))


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    "part", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.BatchNorm2d(1).double(), Noisy()]
)
def test_a_program_that_draws_or_mixes_images_is_refused(part: nn.Module) -> None:
    content = exported(nn.Sequential(part, nn.Flatten()).train(), torch.rand(3, 1, 2, 2))
    with pytest.raises(ValueError, match=r"answer each image by itself.*, got aten\."):
        opened(content)


@pytest.mark.parametrize("part", [nn.Dropout(), nn.Dropout2d(), nn.BatchNorm2d(1).double()])
def test_the_same_for_evaluation_is_opened(part: nn.Module) -> None:
    x = torch.rand(3, 1, 2, 2)
    module = nn.Sequential(part, nn.Flatten()).eval()

    torch.testing.assert_close(opened(exported(module, x)).call(x), module(x))


def test_a_program_of_two_inputs_is_refused() -> None:
    content = exported(nn.Bilinear(2, 2, 2), torch.rand(3, 2), torch.rand(3, 2))
    with pytest.raises(ValueError, match="one input and one output, got 2 and 1"):
        opened(content)


def test_weights_alone_are_refused_unread(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(ValueError, match=r"weights alone.* are pickle and never loaded"):
        opened(torch_bomb(trace))
    assert not trace.exists()


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_a_torn_file_is_refused(sound: bytes, cut: int) -> None:
    with pytest.raises(ValueError, match=r"model.pt2 must (be a file|hold a program)"):
        opened(sound[:cut])
