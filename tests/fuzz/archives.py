"""Readers of binary files: arrays, pictures, checkpoints, weights, exported programs, pipes."""

__all__ = ["ENTRIES"]

import hashlib
import io
import json
import re
import struct
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import save_file as save_weights
from torch import nn

from deepzero_apps.runs import RunFolderError, load_file, save_file
from deepzero_apps.smoothing.exported_files import program
from deepzero_apps.smoothing.runtimes import OnnxClassifier
from deepzero_apps.vision import adjustable_cnn, load_weights
from deepzero_apps.vision.archives import npz
from deepzero_apps.vision.folders import image_folder
from solvers.external import Program, SimulatorError
from tests.fuzz.mutations import mutated, mutated_json, mutated_zip

_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def _npz() -> list[bytes]:
    images = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    made = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, images=images, labels=np.arange(6) % 3, classes=np.array(["a", "b", "c"]))
        made.append(file.getvalue())
    return made


def _read_npz(data: bytes, folder: Path) -> None:
    (folder / "a.npz").write_bytes(data)
    npz(folder / "a.npz")


def _pictures() -> list[bytes]:
    made = []
    for form, mode in (("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("PPM", "RGB"), ("GIF", "P"),
                       ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")):  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).convert(mode).save(
            file, form
        )
        made.append(file.getvalue())
    return made


def _read_picture(data: bytes, folder: Path) -> None:
    place = folder / "images" / "a"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("1.png", "2.png", "3.png"):
        (place / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        image_folder(folder / "images")


def _checkpoint() -> list[bytes]:
    state = {
        "weights": {"a": torch.arange(6.0).reshape(2, 3), 3: torch.ones(2, dtype=torch.bfloat16)},
        "counts": (1, 2.5, None, "text", float("inf"), np.int8(3)),
        "empty": torch.zeros(0, 4),
    }
    file = Path(_scratch(), "seed.safetensors")
    save_file(file, state)
    return [file.read_bytes()]


def _read_checkpoint(data: bytes, folder: Path) -> None:
    file = folder / "a.safetensors"
    file.write_bytes(data)
    load_file(file)


def _sealed(random: Random, data: bytes) -> bytes:
    """Changes the skeleton or the header, and seals the file again, as a stranger would."""
    if random.random() < 0.3:
        return mutated(random, data)
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length], data[8 + length :]
    header = mutated_json(random, header) if random.random() < 0.5 else _skeleton(random, header)
    if random.random() < 0.2:
        rest = mutated(random, rest)
    header = header.replace(b'"sha256": "', b'"sha256":"')
    fresh = struct.pack("<Q", len(header)) + header + rest
    found = _SEAL.search(fresh)
    if found is None:
        return fresh
    blank = fresh[: found.start(1)] + b"0" * 64 + fresh[found.end(1) :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return fresh[: found.start(1)] + digest + fresh[found.end(1) :]


def _skeleton(random: Random, header: bytes) -> bytes:
    fields = json.loads(header)
    about = fields.get("__metadata__", {"tree": ""})  # weights have no tree
    about["tree"] = mutated_json(random, about["tree"].encode()).decode(errors="replace")
    return json.dumps(fields, separators=(",", ":")).encode(errors="surrogatepass")


def _network() -> nn.Module:
    return adjustable_cnn(2, width=2, channels=1, classes=3)


def _weights() -> list[bytes]:
    file = Path(_scratch(), "weights.safetensors")
    save_weights(_network().state_dict(), file)
    return [file.read_bytes()]


def _read_weights(data: bytes, folder: Path) -> None:
    (folder / "w.safetensors").write_bytes(data)
    load_weights(_network(), folder / "w.safetensors")


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(torch.flatten(x, 1))
        return out


def _exported() -> list[bytes]:
    file, module = io.BytesIO(), _Small().float().eval()
    torch.export.save(
        torch.export.export(module, (torch.rand(3, 1, 2, 2, dtype=torch.float32),)), file
    )
    return [file.getvalue()]


def _scripted() -> list[bytes]:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.save(torch.jit.script(_Small().float().eval()), file)
    return [file.getvalue()]


def _read_program(data: bytes, _: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program(data, device=torch.device("cpu"), name="model")


def _onnx() -> list[bytes]:
    weight = np.ones((4, 2), dtype=np.float32)
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 2, 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    return [bytes(model.SerializeToString())]


def _read_onnx(data: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(data)
    OnnxClassifier(folder / "model.onnx", classes=2)


def _json_parts(random: Random, data: bytes) -> bytes:
    """Changes the JSON of an exported program, or other parts."""
    return mutated_json(random, data) if data[:1] in b"{[" else mutated(random, data)


def _pipe_answers() -> list[bytes]:
    header = struct.pack("<4q", 1, 3, 0, 0)
    return [header + struct.pack("<3d", 1.0, 2.0, 3.0)]


def _read_pipe(data: bytes, folder: Path) -> None:
    """A program that answers these bytes, whatever it is asked."""
    (folder / "answer").write_bytes(data)
    code = "import sys; sys.stdin.buffer.read(64); sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    command = [sys.executable, "-I", "-S", "-c", code, str(folder / "answer")]
    with Program(command, (1, 3), timeout=5.0) as simulator:
        simulator.step(np.ones((1, 1, 3)), np.ones(1))


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-seeds-")


def _scratch() -> str:
    """A folder for valid files, as long as this process lives."""
    return _place().name


ENTRIES = [
    ("image archives", _npz, mutated_zip, _read_npz, (ValueError,), 90),
    ("image folders", _pictures, mutated, _read_picture, (ValueError,), 60),
    ("checkpoints", _checkpoint, _sealed, _read_checkpoint, (RunFolderError,), 80),
    ("weights", _weights, _sealed, _read_weights, (ValueError, OSError), 20),
    ("torch.export programs", _exported, lambda r, d: mutated_zip(r, d, _json_parts), _read_program, (ValueError,), 3),
    ("TorchScript programs", _scripted, mutated_zip, _read_program, (ValueError,), 10),
    ("ONNX models", _onnx, mutated, _read_onnx, (ValueError,), 10),
    ("answers of programs", _pipe_answers, mutated, _read_pipe, (SimulatorError,), 2),
]  # fmt: skip
