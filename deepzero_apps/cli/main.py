"""The command line: verbs, flags made from settings, and errors as exit codes.

Exit codes: 0 done, 1 ran and failed, 2 misuse (nothing was written), 130 interrupted.
"""

__all__ = ["main"]

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, make_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console

from deepzero_apps import __version__
from deepzero_apps.cli.allocator import keep_freed_memory
from deepzero_apps.cli.settings import CommonSettings, Misuse, read_config


@dataclass(frozen=True)
class _Command:
    module: str
    settings: str
    summary: str


_COMMANDS = {
    "demo": _Command("demo", "DemoSettings", "both applications at a small size, with figures"),
    "train": _Command("train", "TrainSettings", "train a network with or without backpropagation"),
    "defend": _Command("defend", "DefendSettings", "train a denoiser in front of a classifier"),
    "plan": _Command("plan", "PlanSettings", "say what a certification will cost and reach"),
    "certify": _Command("certify", "CertifySettings", "issue certificates for a data set"),
    "recertify": _Command(
        "recertify", "RecertifySettings", "make certificates again from the votes of a run"
    ),
    "merge": _Command("merge", "MergeSettings", "join certifications of disjoint images"),
    "serve": _Command("serve", "ServeSettings", "answer over HTTP, with certificates on demand"),
    "verify": _Command(
        "verify", "VerifySettings", "recompute certificates and flag what is wrong"
    ),
    "report": _Command("report", "ReportSettings", "show certificates as one HTML page"),
    "correct": _Command(
        "correct", "CorrectSettings", "train a corrector in the loop of a coarse simulator"
    ),
    "rollout": _Command("rollout", "RolloutSettings", "run a corrected simulator, with figures"),
    "compare estimators": _Command(
        "compare_estimators", "CompareEstimatorsSettings", "first order, CGE and RGE, q = d"
    ),
    "compare defence": _Command(
        "compare_defence", "CompareDefenceSettings", "all defences at equal queries"
    ),
    "compare correction": _Command(
        "compare_correction",
        "CompareCorrectionSettings",
        "all correctors at equal simulator steps",
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
    errors = Console(stderr=True, soft_wrap=True, emoji=False)
    keep_freed_memory()
    try:
        with _warnings_on(errors), _memory_explained():
            return _run(arguments)
    except Misuse as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        errors.print(
            "interrupted; --resume with --out FOLDER (the newest in runs/ if none was given) "
            "goes on from the last checkpoint"
        )
        return 130
    except SystemExit as stop:  # tyro's help and its own errors
        return stop.code if isinstance(stop.code, int) else 2
    except _failures() as error:
        errors.print(f"error: {error}", markup=False)
        return 1


@contextmanager
def _warnings_on(errors: Console) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: errors.print(
            f"warning: {message}", markup=False
        )
        yield


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
        return kind(**asdict(parsed))
    except ValidationError as error:
        raise Misuse(_in_words(error)) from error


def _flags(kind: type[BaseModel], fields: Mapping[str, Any]) -> type[Any]:
    """A plain twin of the settings for tyro, with a file's fields as defaults.

    The settings themselves are made once, from all flags, so that every refusal is ours to word
    and a field that has no default may come from the file or from a flag.
    """
    fields = _folded(kind, fields)
    unknown = sorted(fields.keys() - kind.model_fields.keys())
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
    return Annotated[(twin or info.annotation, replace(about, help=info.description), *markers)]


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
    from deepzero_apps.zeroth_order.oracle import BudgetExhausted

    return (
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
    width = max(map(len, _COMMANDS))
    verbs = "\n".join(f"  {name:{width}}  {c.summary}" for name, c in _COMMANDS.items())
    return (
        "usage: deepzero-apps COMMAND [flags]\n\n"
        "Trains neural networks around functions that can be evaluated and not differentiated.\n\n"
        f"{verbs}\n\n"
        "Each command explains itself: deepzero-apps COMMAND --help\n"
        "First steps:                  deepzero-apps demo"
    )
