r"""Files that torch exported, opened without pickle.

A file is a zip archive, and what is in it says of which kind it is.

*TorchScript* (``torch.jit.save``) holds TorchScript code and tensors. ``torch.jit.load`` reads it by
its own parser in C++, which knows tensors and TorchScript's types and runs no Python. But the code
can call any operator of torch, files among them: it is looked through first (``script_checks``).

*torch.export* (``torch.export.save``, ``.pt2``) holds a graph as JSON and tensors as raw bytes, but
``torch.export.load`` by itself is not safe: it unpickles the example inputs, any tensor marked
``use_pickle`` and any custom object, and it evaluates symbolic sizes as Python expressions. So
an archive is copied in memory first. Example inputs are left out, which are not needed to run it;
pickled tensors, custom objects, targets that are no operators, names that are none and sizes
that are more than arithmetic are refused. Nothing remains to be unpickled.

What is opened in the end is a copy of what was looked at, each entry once: two readers of zip files
may disagree on a strange one. All this keeps files from doing what no model does. It is no sandbox:
the operators themselves are a million lines of C++.
"""

__all__ = ["Program", "program"]

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from deepzero_apps.foreign import refuse_bomb
from deepzero_apps.smoothing.script_checks import SPACES, checked_script

_WEIGHT_NAMES = re.compile(
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json))"
)
_FRAME_NAMES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_SAMPLES, _GRAPH = "data/sample_inputs/model.pt", "models/model.json"
_INNER = "wrap_with_set_grad_enabled|wrap_with_autocast|cond|map_impl|scan|while_loop"
_TARGET = re.compile(
    rf"torch\.ops\.({SPACES})\.(?!__|from_file|save)\w+(\.(?!__)\w+)?"
    rf"|torch\.ops\.higher_order\.({_INNER})|torch\._?sym_\w+|math\.(?!__)\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_LABEL = re.compile(r"[\w.]*")
_SIZE = re.compile(  # such as Mul(Integer(2), Symbol('s31', positive=True)): no function of Python's
    r"([su]\d++|'[a-z]{1,3}\d++'|[a-z_]{1,20}=(?=True|False)|[A-Z][A-Za-z]++|[\d\s+\-*/(),<>=])*+"
)


@dataclass(frozen=True)
class Program:
    """A program that can be called.

    Args:
        call: Images to an answer.
        dtype: The dtype of images that it takes; None for any.
        fewest: The fewest images that it takes.
        most: The most; None for no limit.
    """

    call: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None
    fewest: int = 1
    most: int | None = None


def program(content: bytes, *, device: torch.device, name: str) -> Program:
    """Opens a program.

    Args:
        content: The file's bytes.
        device: Where it is to run.
        name: What to call the file in messages.

    Returns:
        The program.

    Raises:
        ValueError: If it is none, needs pickle, or does not answer each image by itself.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {entry.partition("/")[2]: entry for entry in _entries(archive, name)}
            if _GRAPH in files:
                copy, opened = _without_pickle(archive, files, name), _exported
            elif "constants.pkl" in files and any(file.startswith("code/") for file in files):
                copy, opened = checked_script(archive, files.values(), name), _scripted
            else:
                raise ValueError(
                    f"{name} must hold a program, by torch.export.save or torch.jit.save, got neither; "
                    "weights alone, as torch.save writes them, are pickle and never loaded"
                )
    except ValueError:
        raise
    except Exception as error:  # a damaged archive makes zipfile raise errors of many classes
        raise ValueError(
            f"{name} must be a file that torch exported, got no archive, or a damaged one"
        ) from error
    return opened(copy, device=device, name=name)


def _entries(archive: zipfile.ZipFile, name: str) -> list[str]:
    """The names in an archive, each of them once, of parts that are no bombs."""
    refuse_bomb(archive, archive.infolist())
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise ValueError(f"{name} must hold each part once, got one twice")
    return names


def _scripted(content: bytes, *, device: torch.device, name: str) -> Program:
    try:
        module = torch.jit.load(io.BytesIO(content), map_location=device)
    except Exception as error:  # the parser in C++ raises whatever its parts raise
        raise ValueError(f"{name} must be a TorchScript program: {error}") from error
    module.eval()
    dtypes = (tensor.dtype for tensor in module.parameters() if tensor.is_floating_point())
    return Program(module, next(dtypes, None))


def _exported(content: bytes, *, device: torch.device, name: str) -> Program:
    try:
        loaded = torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise ValueError(f"{name} must be an exported program: {type(error).__name__}") from error
    _check_evaluation(loaded, name)
    if device.type != "cpu":
        loaded = move_to_device_pass(loaded, device)
    inputs = [n for n in loaded.graph.nodes if n.name in loaded.graph_signature.user_inputs]
    if len(inputs) != 1 or len(loaded.graph_signature.user_outputs) != 1:
        raise ValueError(
            f"{name} must have one input and one output, got {len(inputs)} and "
            f"{len(loaded.graph_signature.user_outputs)}"
        )
    images: Tensor = inputs[0].meta["val"]
    fewest, most = _batch(images.shape[0], loaded)
    return Program(loaded.module(), images.dtype, fewest, most)


def _batch(rows: int | torch.SymInt, loaded: ExportedProgram) -> tuple[int, int | None]:
    """The fewest and the most images that a program takes."""
    if isinstance(rows, int):
        return rows, rows
    limits = loaded.range_constraints.get(rows.node.expr)
    if limits is None:
        return 1, None
    most = int(limits.upper) if limits.upper.is_Integer else None
    return max(1, int(limits.lower)), most


def _check_evaluation(loaded: ExportedProgram, name: str) -> None:
    """Refuses dropout that is active, batch norm that uses the batch, anything drawn at random."""
    for node in loaded.graph.nodes:
        operator = node.target
        if not isinstance(operator, torch._ops.OpOverload):
            continue
        training = _training(operator, node)
        random = torch.Tag.nondeterministic_seeded in operator.tags and training is None
        if training or random:
            raise ValueError(
                f"{name} must answer each image by itself, the same each time, got {operator}, "
                "which draws at random or mixes the images of a batch; call .eval() before the "
                "export"
            )


def _training(operator: torch._ops.OpOverload, node: torch.fx.Node) -> bool | None:
    """Whether an operator is told to train; None if it is not asked."""
    given = {argument.name: argument.default_value for argument in operator._schema.arguments}
    given.update(zip(given, node.args, strict=False))
    given.update(node.kwargs)
    flags = [bool(given[name]) for name in ("train", "training") if name in given]
    return flags[0] if flags else None


def _without_pickle(archive: zipfile.ZipFile, files: dict[str, str], name: str) -> bytes:
    """Copies the parts of an archive that are data; refuses what only pickle could read."""
    _check_graph(_json(archive, files[_GRAPH], name), name)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as written:
        written.writestr("model/" + _SAMPLES, b"")
        for file, entry in files.items():
            if file.endswith("_config.json"):
                _check_payloads(_json(archive, entry, name), name)
            if file == _GRAPH or _WEIGHT_NAMES.fullmatch(file) or _FRAME_NAMES.fullmatch(file):
                written.writestr("model/" + file, archive.read(entry))
    return copy.getvalue()


def _json(archive: zipfile.ZipFile, entry: str, name: str) -> object:
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must hold JSON in {entry}, got something else") from error


def _check_payloads(config: object, name: str) -> None:
    for part in _mappings(config):
        plain = str(part.get("path_name", "weight_")).startswith(("weight_", "tensor_"))
        if part.get("use_pickle") or not plain:
            raise ValueError(
                f"{name} must hold plain tensors only, got one that only pickle could read, and "
                "pickle is never loaded"
            )


def _check_graph(graph: object, name: str) -> None:
    for part in _mappings(graph):
        if "target" in part and "inputs" in part:
            _check_text(part["target"], _TARGET, f"{name} must be made of operators only")
        if "expr_str" in part:
            _check_text(part["expr_str"], _SIZE, f"{name} must have sizes of plain arithmetic")
        if isinstance(part.get("name"), str):
            _check_text(part["name"], _LABEL, f"{name} must have plain names")


def _check_text(text: object, pattern: re.Pattern[str], demand: str) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError(f"{demand}, got {str(text)[:60]!r}")


def _mappings(value: object) -> Iterator[dict[str, object]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _mappings(part)
