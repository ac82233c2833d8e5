"""The command line: verbs, flags made from settings, and errors as exit codes.

Exit codes: 0 done, 1 ran and failed, 2 misuse (nothing was written), 130 interrupted.
"""

__all__ = ["main"]

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console

from deepzero_apps import __version__
from deepzero_apps.cli.settings import CommonSettings, Misuse, read_config


@dataclass(frozen=True)
class _Command:
    module: str
    settings: str
    summary: str


_COMMANDS = {
    "demo": _Command("demo", "DemoSettings", "defend and certify a classifier without gradients"),
    "train": _Command("train", "TrainSettings", "train a network with or without backpropagation"),
    "defend": _Command("defend", "DefendSettings", "train a denoiser in front of a classifier"),
    "certify": _Command("certify", "CertifySettings", "issue certificates for a data set"),
    "compare estimators": _Command(
        "compare_estimators", "CompareEstimatorsSettings", "first order, CGE and RGE, q = d"
    ),
    "compare defence": _Command(
        "compare_defence", "CompareDefenceSettings", "all defences at equal queries"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The arguments without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True)
    warnings.showwarning = lambda message, *_, **__: errors.print(
        f"warning: {message}", markup=False
    )
    try:
        return _run(arguments)
    except Misuse as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print(
            "interrupted; the same command with --resume goes on from the last checkpoint"
        )
        return 130
    except SystemExit as stop:  # tyro's help and its own errors
        return stop.code if isinstance(stop.code, int) else 2
    except _failures() as error:
        errors.print(f"error: {error}", markup=False)
        return 1


def _run(arguments: list[str]) -> int:
    asked = arguments[1:] if arguments[:1] == ["compare"] else arguments
    if not asked or asked[0] in ("-h", "--help"):
        Console().print(_overview(), markup=False)
        return 0 if asked else 2
    if arguments[0] == "--version":
        Console().print(__version__, markup=False)
        return 0
    verb, rest = _verb(arguments)
    command = _COMMANDS[verb]
    module = import_module(f"deepzero_apps.cli.{command.module}")
    settings: type[CommonSettings] = getattr(module, command.settings)
    run: Callable[[Any], int] = module.run
    parsed = _parse(settings, verb, rest)
    _set_threads(parsed.threads)
    return run(parsed)


def _set_threads(threads: int) -> None:
    """Sets torch's threads: two processes that each take all cores are far slower than one."""
    import torch

    torch.set_num_threads(threads)


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if verb in _COMMANDS:
            return verb, arguments[words:]
    raise Misuse(
        f"the subcommand must be one of {', '.join(_COMMANDS)}, got {' '.join(arguments[:2])}"
    )


def _parse(kind: type[CommonSettings], verb: str, arguments: list[str]) -> CommonSettings:
    parsed = tyro.cli(
        _flags(kind, _config_fields(arguments) or {}),
        args=arguments,
        prog=f"deepzero-apps {verb}",
        description=kind.__doc__,
    )
    try:
        return kind(**vars(parsed))
    except ValidationError as error:
        raise Misuse(_in_words(error)) from error


def _flags(kind: type[CommonSettings], fields: dict[str, Any]) -> type[Any]:
    """A plain twin of the settings for tyro, with a file's fields as defaults.

    The settings themselves are made once, from all flags, so that every refusal is ours to word
    and a field that has no default may come from the file or from a flag.
    """
    unknown = sorted(fields.keys() - kind.model_fields.keys())
    if unknown:
        raise Misuse(f"--config must hold fields of this command, got {', '.join(unknown)}")
    flags: list[Any] = []
    for name, info in kind.model_fields.items():
        flag = _shown(name, info)
        if name in fields:
            flags.append((name, flag, field(default=_typed(name, info, fields[name]))))
        elif info.is_required():
            flags.append((name, flag))
        else:
            flags.append((name, flag, field(default=info.get_default(call_default_factory=True))))
    return make_dataclass(kind.__name__, flags, kw_only=True)


def _shown(name: str, info: FieldInfo) -> Any:  # noqa: ANN401 - an annotation
    """A field's type with its help and whatever else it tells tyro."""
    given: list[Any] = [m for m in info.metadata if "tyro" in type(m).__module__]
    named: list[Any] = [m for m in given if is_dataclass(m)]
    about: Any = named[0] if named else tyro.conf.arg(name=name.replace("_", "-"))
    markers = [m for m in given if m not in named]
    return Annotated[(info.annotation, replace(about, help=info.description), *markers)]


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
        place = ".".join(str(part) for part in fault["loc"]).replace("json_file", "json")
        flag = "--" + place.replace("_", "-")
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if fault["type"] == "value_error" else f", got {fault['input']!r}"
        lines.append(f"{flag}: {message}{got}" if fault["loc"] else message)
    return "\n".join(lines)


def _failures() -> tuple[type[Exception], ...]:
    """Errors with a message for the user; any other is a defect of ours and keeps its trace."""
    from deepzero_apps.runs import RunFolderError
    from deepzero_apps.smoothing.blackbox import ClassifierError
    from deepzero_apps.smoothing.journal import JournalError
    from deepzero_apps.zeroth_order.oracle import BudgetExhausted

    return (
        RunFolderError,
        ClassifierError,
        JournalError,
        BudgetExhausted,
        FloatingPointError,
        OSError,
        ValueError,
    )


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    verbs = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in _COMMANDS.items())
    return (
        "usage: deepzero-apps COMMAND [flags]\n\n"
        "Trains neural networks around functions that can be evaluated and not differentiated.\n\n"
        f"{verbs}\n\n"
        "Each command explains itself: deepzero-apps COMMAND --help\n"
        "First steps:                  deepzero-apps demo"
    )
