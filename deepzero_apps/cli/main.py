"""The command line: verbs, flags made from settings, and errors as exit codes.

Exit codes: 0 done, 1 ran and failed, 2 misuse (nothing was written), 130 interrupted, 143 terminated.
"""

__all__ = ["main"]

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console

from deepzero_apps import __version__
from deepzero_apps.cli.allocator import keep_freed_memory
from deepzero_apps.cli.answers import json_apart
from deepzero_apps.cli.logs import console, logging_on, one_console, timed
from deepzero_apps.cli.settings import CommonSettings, Misuse, PlainSettings, read_config
from deepzero_apps.cli.verbs import COMMANDS

_LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The arguments without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    with one_console() as errors:
        try:
            with _memory_explained():
                return _run(arguments)
        except Misuse as error:
            errors.print(f"error: {error}", markup=False)
            return 2
        except KeyboardInterrupt:
            errors.print("interrupted; nothing was begun", markup=False)
            return 130
        except _failures() as error:
            errors.print(f"error: {error}", markup=False)
            return 1


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for what the CPU's allocator refuses
        if isinstance(error, MemoryError) or "allocate" in str(error):
            first = (str(error) or "no reason given").splitlines()[0]
            raise MemoryError(
                f"memory is exhausted; ask for smaller networks, batches or images ({first})"
            ) from error
        raise


def _run(arguments: list[str]) -> int:
    asked = arguments[1:] if arguments[:1] in (["compare"], ["runs"]) else arguments
    if not asked or asked[0] in ("-h", "--help"):
        Console().print(_overview(), markup=False)
        return 0 if asked else 2
    if arguments[0] == "--version":
        Console().print(__version__, markup=False)
        return 0
    verb, rest = _verb(arguments)
    command = COMMANDS[verb]
    try:
        parsed = _parse(command.settings_class(), verb, rest)
    except SystemExit as stop:  # tyro's help and its own errors
        return stop.code if isinstance(stop.code, int) else 2
    if isinstance(parsed, CommonSettings):
        _set_threads(parsed.threads)
    with logging_on(parsed.log_level), json_apart(parsed.json_file):
        return _ended(command.function(), parsed, verb)


def _ended(run: Callable[[Any], int], settings: PlainSettings, verb: str) -> int:
    """Runs a command; says how it can be continued, or who it was that left the program."""
    try:
        with timed(_LOGGER, verb):
            return run(settings)
    except KeyboardInterrupt:
        console().print(f"interrupted{_way_on(settings)}", markup=False)
        return 130
    except BrokenPipeError:
        return _unheard()
    except SystemExit as stop:  # nothing of ours leaves so, but rich does
        if isinstance(stop.__context__, BrokenPipeError):
            return _unheard()
        if stop.code == signal.SIGTERM and "ray" in sys.modules:  # Ray leaves so when told to
            console().print(f"terminated{_way_on(settings)}", markup=False)
            return 128 + signal.SIGTERM
        console().print(
            f"error: a function that was asked left the program (SystemExit: {stop}); it must "
            "return or raise an error",
            markup=False,
        )
        return 1


def _unheard() -> int:
    """Ends as a command does whose reader has gone: quietly, also when Python closes its output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 1


def _way_on(settings: PlainSettings) -> str:
    if not hasattr(settings, "resume"):
        return ""
    out: Path | None = getattr(settings, "out", None)
    named = out or "FOLDER (the newest in runs/ if none was given)"
    return f"; --resume with --out {named} and the same flags goes on from the last checkpoint"


def _set_threads(threads: int) -> None:
    """Sets torch's threads: two processes that each take all cores are far slower than one."""
    import torch

    torch.set_num_threads(threads)


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if verb in COMMANDS:
            return verb, arguments[words:]
    raise Misuse(
        f"the subcommand must be one of {', '.join(COMMANDS)}, got {' '.join(arguments[:2])}"
    )


def _parse(kind: type[PlainSettings], verb: str, arguments: list[str]) -> PlainSettings:
    parsed = tyro.cli(
        _flags(kind, _config_fields(arguments) or {}),
        args=arguments,
        prog=f"deepzero-apps {verb}",
        description=kind.__doc__,
    )
    try:
        return kind(**asdict(parsed))
    except ValidationError as error:
        raise Misuse(_in_words(error)) from error


def _flags(kind: type[BaseModel], fields: Mapping[str, Any]) -> type[Any]:
    """A plain twin of the settings for tyro, with a file's fields as defaults.

    The settings themselves are made once, from all flags, so that every refusal is ours to word
    and a field that has no default may come from the file or from a flag.
    """
    fields = _folded(kind, fields)
    unknown = sorted(map(str, fields.keys() - kind.model_fields.keys()))
    if unknown:
        raise Misuse(f"--config must hold fields of this command, got {', '.join(unknown)}")
    flags: list[Any] = []
    for name, info in kind.model_fields.items():
        inner = _nested(info)
        if inner is not None:
            base = info.get_default(call_default_factory=True).model_dump()
            twin = _flags(inner, {**base, **fields[name]})
            flags.append((name, _shown(name, info, twin), field(default_factory=twin)))
        elif name in fields:
            default = _typed(name, info, fields[name])
            flags.append((name, _shown(name, info), field(default=default)))
        elif info.is_required():
            flags.append((name, _shown(name, info)))
        else:
            default = info.get_default(call_default_factory=True)
            flags.append((name, _shown(name, info), field(default=default)))
    return make_dataclass(kind.__name__, flags, kw_only=True)


def _folded(kind: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Groups a file's fields: those of a nested model may stand beside it, as its flags do."""
    folded = dict(fields)
    for name, info in kind.model_fields.items():
        inner = _nested(info)
        if inner is None:
            continue
        own = folded.get(name, {})
        if not isinstance(own, Mapping):
            raise Misuse(f"--config: field {name} must be a mapping, got {own!r}")
        beside = inner.model_fields.keys() & folded.keys() - kind.model_fields.keys()
        folded[name] = {**own, **{flag: folded.pop(flag) for flag in beside}}
    return folded


def _nested(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _shown(name: str, info: FieldInfo, twin: type[Any] | None = None) -> Any:  # noqa: ANN401 - an annotation
    """A field's type with its help and whatever else it tells tyro."""
    given: list[Any] = [m for m in info.metadata if "tyro" in type(m).__module__]
    named: list[Any] = [m for m in given if is_dataclass(m)]
    about: Any = named[0] if named else tyro.conf.arg(name=name.replace("_", "-"))
    markers = [m for m in given if m not in named]
    text = " ".join((info.description or "").split())  # tyro would keep the source's line breaks
    return Annotated[(twin or info.annotation, replace(about, help=text), *markers)]


def _typed(name: str, info: FieldInfo, value: object) -> object:
    try:
        annotation: Any = info.annotation
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise Misuse(f"--config: field {name}: {message}, got {value!r}") from error


def _config_fields(arguments: list[str]) -> dict[str, Any] | None:
    for i, word in enumerate(arguments):
        if word.startswith("--config="):
            return read_config(Path(word.removeprefix("--config=")))
        if word == "--config" and i + 1 < len(arguments):
            return read_config(Path(arguments[i + 1]))
    return None


def _in_words(error: ValidationError) -> str:
    """A validation error as the user wrote it: flag, expectation, value."""
    lines = []
    for fault in error.errors():
        names = [part for part in fault["loc"] if isinstance(part, str)]
        flag = "--" + names[-1].removesuffix("_file").replace("_", "-") if names else ""
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if fault["type"] == "value_error" else f", got {fault['input']!r}"
        lines.append(f"{flag}: {message}{got}" if names else message)
    return "\n".join(lines)


def _failures() -> tuple[type[Exception], ...]:
    """Errors with a message for the user; any other is a defect of ours and keeps its trace."""
    from deepzero_apps.correction.simulator import SimulatorFailure
    from deepzero_apps.correction.trajectory_files import TrajectoryError
    from deepzero_apps.runs import RunFolderError
    from deepzero_apps.smoothing.blackbox import ClassifierError
    from deepzero_apps.smoothing.journal import JournalError
    from deepzero_apps.smoothing.vote_log import VoteLogError
    from deepzero_apps.workers import WorkersLost
    from deepzero_apps.zeroth_order.oracle import BudgetExhausted

    return (
        WorkersLost,
        RunFolderError,
        ClassifierError,
        JournalError,
        VoteLogError,
        SimulatorFailure,
        TrajectoryError,
        BudgetExhausted,
        FloatingPointError,
        MemoryError,
        OSError,
        ValueError,
    )


def _overview() -> str:
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: deepzero-apps COMMAND [flags]\n\n"
        "Trains neural networks around functions that can be evaluated and not differentiated.\n\n"
        f"{verbs}\n\n"
        "Each command explains itself: deepzero-apps COMMAND --help\n"
        "First steps:                  deepzero-apps demo"
    )
