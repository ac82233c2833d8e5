"""The reference of the command line, from the models that the flags are made of."""

__all__ = ["reference"]

from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deepzero_apps.cli.settings import CommonSettings, PlainSettings
from deepzero_apps.cli.verbs import COMMANDS, Command

_NAMES = {"Path": "PATH", "str": "TEXT", "int": "INT", "float": "NUMBER", "bool": ""}
_HEAD = "\n| flag | value | default | what it does |\n|---|---|---|---|"
_PLAIN = frozenset(PlainSettings.model_fields)
_COMMON = frozenset(CommonSettings.model_fields)


def reference() -> str:
    """Writes a section for each command: what it does, its flags, their defaults and help.

    Returns:
        Markdown; flags that many commands have come first and once.
    """
    plain = ["## Flags of every command", _HEAD, *_rows(PlainSettings, frozenset()), ""]
    common = ["## Flags of every command that computes", _HEAD, *_rows(CommonSettings, _PLAIN), ""]
    sections = (line for verb, command in COMMANDS.items() for line in _section(verb, command))
    return "\n".join([*plain, *common, *sections])


def _section(verb: str, command: Command) -> Iterator[str]:
    settings = command.settings_class()
    yield f"## deepzero-apps {verb}\n"
    yield from (line.strip() for line in (settings.__doc__ or "").splitlines())
    yield _HEAD
    yield from _rows(settings, _COMMON)
    shared = "every command" + (" that computes" if issubclass(settings, CommonSettings) else "")
    yield f"\nAnd the [flags of {shared}](#flags-of-{shared.replace(' ', '-')}).\n"


def _rows(settings: type[BaseModel], known: frozenset[str]) -> Iterator[str]:
    for name, info in settings.model_fields.items():
        if name in known:
            continue
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _rows(kind, known)
            continue
        cells = [f"`{flag(name, info)}`", _value(kind), _default(info), info.description or ""]
        yield "| " + " | ".join(" ".join(c.split()).replace("|", r"\|") for c in cells) + " |"


def flag(name: str, info: FieldInfo) -> str:
    """Returns a field's flag, or in capitals the name of what stands without one."""
    if tyro.conf.Positional in info.metadata:
        return name.replace("_", "-").upper()
    given = [m.name for m in info.metadata if getattr(m, "name", None) is not None]
    return "--" + (given[0] if given else name.replace("_", "-"))


def _value(kind: Any) -> str:  # noqa: ANN401 - an annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_value(get_args(kind)[0])} ..."
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) is not None and parts:
        return _value(parts[0])
    return _NAMES.get(getattr(kind, "__name__", ""), "TEXT")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value in (None, ()):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value}`"
