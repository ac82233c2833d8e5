r"""Classifiers in files: ONNX, and programs exported by torch.

Both are known by the bytes of their file, which their fingerprint covers, and run what was
fingerprinted: the file is read once, hashed, and handed over from memory; a copy in another
process reads it again and refuses another content. A program that takes a fixed number of images,
or a limited one, is asked in pieces, the last one filled up with copies of its last image, whose
answers are thrown away.

A model file is a program. Neither kind is loaded by pickle (see ``exported_files`` for what is
refused), but operators that read files or exhaust memory exist in both: run those of people you
trust.

References:
    | ONNX Runtime, Python API
    | https://onnxruntime.ai/docs/api/python/api_summary.html

    | torch.export
    | https://docs.pytorch.org/docs/stable/export.html
"""

__all__ = ["ExportedClassifier", "OnnxClassifier"]

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deepzero_apps.smoothing.adapters import Adapter, class_count
from deepzero_apps.smoothing.exported_files import program
from deepzero_apps.smoothing.fingerprint import fingerprint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
_NUMBERS = ("tensor(float)", "tensor(float16)", "tensor(double)")
_LOCATION = re.compile(rb"\n\x08location\x12")


@dataclass(frozen=True)
class _Running:
    """A model ready to be asked.

    Args:
        ask: Images to answers.
        fewest: The fewest images that it takes.
        most: The most; None for no limit.
    """

    ask: Callable[[Tensor], Tensor]
    fewest: int = 1
    most: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._piece(part) for part in images.split(self.most or len(images))])

    def _piece(self, images: Tensor) -> Tensor:
        rows = len(images)
        if rows >= self.fewest:
            return self.ask(images)
        padding = images[-1:].expand(self.fewest - rows, *images.shape[1:])
        answer = self.ask(torch.cat((images, padding)))
        return answer[:rows] if len(answer) == self.fewest else answer


class _FileClassifier(Adapter):
    """A model in a file. Abstract; the two below are final."""

    def __init__(self, path: Path | str, *, classes: int) -> None:
        self.path, self.classes = Path(path).absolute(), class_count(classes)
        self.name = self.path.name
        contents = self._contents()
        self._digests = _digests(contents)
        self._running = self._open(contents)

    @abstractmethod
    def _contents(self) -> dict[str, bytes]:
        """Reads the model's file, under the name "", and those that it names."""

    @abstractmethod
    def _open(self, contents: Mapping[str, bytes]) -> _Running:
        """Makes the model ready, from what was read."""

    @property
    def fingerprint(self) -> str:
        """A sha256 over the bytes of the model's files, and how they are read."""
        return fingerprint(type(self).__name__, self.classes, self._digests, self._options())

    def _options(self) -> tuple[object, ...]:
        return ()

    def _answer(self, images: Tensor) -> Tensor:
        return self._running(images)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        contents = self._contents()
        if _digests(contents) != self._digests:
            raise ValueError(
                f"{self.path} must stay as it is while it is used, got another content"
            )
        self._running = self._open(contents)


class OnnxClassifier(_FileClassifier):
    """An ONNX model as a black box, run by ONNX Runtime.

    The model has one input, of images ``(n, channel, height, width)`` or of flat rows, whose
    name and dtype are its own; to one of bytes, images are clipped, multiplied by 255 and
    rounded. Weights in files beside it are read and hashed with it.

    Args:
        path: The ``.onnx`` file.
        classes: The number of classes, at least 2.
        output: The output to read: floats ``(n, classes)`` are scores, read as logits, integers
            ``(n,)`` are labels. By default the first with float scores, else the first.
        threads: Threads of a call, at least 1.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If it is no such model, or an argument is out of range.
    """

    def __init__(
        self, path: Path | str, *, classes: int, output: str | None = None, threads: int = 1
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.output, self.threads = output, threads
        super().__init__(path, classes=classes)

    def _options(self) -> tuple[object, ...]:
        return (self.output,)

    def _contents(self) -> dict[str, bytes]:
        model = _read(self.path)
        beside = {name: _read(self._beside(name)) for name in _external(model)}
        return {"": model, **beside}

    def _beside(self, name: str) -> Path:
        path = (self.path.parent / name).resolve()
        if not path.is_relative_to(self.path.parent.resolve()):
            raise ValueError(f"{self.path} must keep its weights beside it, got {name!r}")
        return path

    def _open(self, contents: Mapping[str, bytes]) -> _Running:
        session = self._session(contents)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) not in (2, 4):
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
            raise ValueError(
                f"{self.path} must have one input of images, of {', '.join(_TYPES)}, got {found}"
            )
        into, out = inputs[0], self._chosen(outputs)
        batch = into.shape[0] if isinstance(into.shape[0], int) else None

        def ask(images: Tensor) -> Tensor:
            rows = _as_input(images, _TYPES[into.type], flat=len(into.shape) == 2)
            return torch.from_numpy(np.asarray(session.run([out], {into.name: rows.numpy()})[0]))

        return _Running(ask, fewest=batch or 1, most=batch)

    def _session(self, contents: Mapping[str, bytes]) -> "InferenceSession":
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX models need onnxruntime: pip install 'deepzero-apps[onnx]'"
            ) from error

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        weights = {name: content for name, content in contents.items() if name}
        if weights:
            options.add_external_initializers_from_files_in_memory(
                list(weights), list(weights.values()), [len(w) for w in weights.values()]
            )
        try:
            return onnxruntime.InferenceSession(
                contents[""], options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ValueError(f"{self.path} must be an ONNX model: {error}") from error

    def _chosen(self, outputs: "list[NodeArg]") -> str:
        names = [one.name for one in outputs]
        if not names:
            raise ValueError(f"{self.path} must have an output, got none")
        if self.output is not None:
            if self.output not in names:
                raise ValueError(f"output must be one of {names}, got {self.output!r}")
            return self.output
        scores = [one.name for one in outputs if one.type in _NUMBERS and len(one.shape) == 2]
        return str((scores or names)[0])


class ExportedClassifier(_FileClassifier):
    """A program exported by torch as a black box: ``torch.export`` or TorchScript.

    Which of the two a file holds is seen from its content. The program must have been
    exported in evaluation mode: one from ``torch.export`` cannot be switched, and
    with active dropout or statistics of the batch it is refused. One input, one output.

    Args:
        path: The ``.pt2``, ``.pt`` or ``.ts`` file.
        classes: The number of classes, at least 2.
        device: Where it runs; where the images are, therefore.

    Raises:
        ValueError: If it is no such program.
    """

    def __init__(
        self, path: Path | str, *, classes: int, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        super().__init__(path, classes=classes)

    def _contents(self) -> dict[str, bytes]:
        return {"": _read(self.path)}

    def _open(self, contents: Mapping[str, bytes]) -> _Running:
        found = program(contents[""], device=self.device, name=self.path.name)

        def ask(images: Tensor) -> Tensor:
            # A copy, because a program that starts in place would change its input.
            answer: Tensor = found.call(images.to(found.dtype or images.dtype, copy=True))
            return answer

        return _Running(ask, fewest=found.fewest, most=found.most)


def _as_input(images: Tensor, dtype: torch.dtype, *, flat: bool) -> Tensor:
    images = images.cpu().contiguous()
    if dtype is torch.uint8:
        images = (images.clamp(0, 1) * 255).round()
    return images.flatten(1).to(dtype) if flat else images.to(dtype)


def _external(model: bytes) -> list[str]:
    """The files that a model keeps weights in; a name missed here cannot be loaded later."""
    names = set()
    for match in _LOCATION.finditer(model):
        length = shift = 0
        for place in range(match.end(), min(match.end() + 5, len(model))):
            length |= (model[place] & 0x7F) << shift
            shift += 7
            if model[place] < 0x80:
                names.add(model[place + 1 : place + 1 + length])
                break
    return sorted(name.decode("utf-8", errors="replace") for name in names)


def _digests(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
