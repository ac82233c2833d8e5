"""Mappings from JSON or YAML files, such as settings: small, plain, and each name once.

YAML has more than a list of settings needs. Tags that make objects are no part of the loader used
here; aliases, by which a file of a few lines stands for gigabytes or holds itself, are refused.
"""

__all__ = ["LARGEST", "read_mapping"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

LARGEST = 256 * 1024
"""Bytes that such a file may have: YAML takes seconds to parse as much."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a mapping; faults are named by their line, never by what stands there.

    Args:
        path: A file, JSON if its name ends so, else YAML.

    Returns:
        The mapping.

    Raises:
        ValueError: If the file cannot be read, is too large, is no JSON or YAML, has a name twice,
            an alias or more levels than Python allows, or holds no mapping with names that are text.
    """
    try:
        content = _parsed(_text(path), json_file=path.suffix == ".json")
        json.dumps(content, ensure_ascii=False, default=str, skipkeys=True).encode()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"cannot read {path}: not UTF-8") from None
    except UnicodeEncodeError:  # an escape such as \ud800, half of a character
        raise ValueError(f"{path} must hold text of whole characters") from None
    except _Unfit as error:
        raise ValueError(f"{path} {error}") from None
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must hold a mapping of fields, got {type(content).__name__}")
    return dict(content)


class _Unfit(Exception):
    """Why a text is no such mapping, without any of its content."""


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise _Unfit(f"must have at most {LARGEST:,} bytes, got more")
    return content.decode("utf-8-sig")


def _parsed(text: str, *, json_file: bool) -> object:
    kind = "JSON" if json_file else "YAML"
    try:
        if json_file:
            return json.loads(text, object_pairs_hook=_once)
        return yaml.load(text, _PlainLoader)
    except RecursionError:
        raise _Unfit(f"is no {kind} that can be read: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Unfit(f"is no JSON near line {error.lineno}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _Unfit(
            f"is no {_fault(error)}{f' near line {mark.line + 1}' if mark else ''}"
        ) from None
    except (ValueError, OverflowError) as error:  # a date or a number that there is not
        raise _Unfit(f"is no {kind}: a value cannot be read ({type(error).__name__})") from None


def _fault(error: yaml.YAMLError) -> str:
    return f"YAML {error.context}" if isinstance(error, _Refused) else "YAML"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _Unfit("must have each name once, got one twice")
    return fields


class _Refused(yaml.MarkedYAMLError):  # type: ignore[misc]  # yaml has no types
    """YAML that is well formed and not read here; its context is ours."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML's plain values alone, without aliases and without names that are there twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._refuse("that can be read here (aliases: write out what is repeated)")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        fields: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(fields) < len(node.value):
            raise _Refused("with each name once", problem_mark=node.start_mark)
        return fields

    def _refuse(self, why: str) -> NoReturn:
        raise _Refused(why, problem_mark=self.peek_event().start_mark)
