"""What every subcommand's settings share: a frozen, validated model, from a file and from flags.

The model's fields are the flags, their docstrings the help. ``--config FILE`` names a JSON or YAML
file of fields (a run's own ``config.json`` is one); flags override it.
"""

__all__ = ["CommonSettings", "Misuse", "overridden", "read_config"]

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tuned = TypeVar("Tuned", bound="DataclassInstance")


class Misuse(Exception):
    """A command that cannot be carried out as it was given; exit code 2."""


class CommonSettings(BaseModel):
    """Fields of every subcommand."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random: splits, initial weights, batches, noise, directions."""

    device: str = "cpu"
    """Where networks run, such as cpu or cuda:0."""

    threads: int = Field(1, ge=1)
    """Threads of each process; more than one pays off for images of 32x32 and larger networks."""

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the result to this JSON file."""

    config: Path | None = None
    """Start from the fields of this JSON or YAML file; flags override it."""

    @field_validator("device")
    @classmethod
    def _usable(cls, device: str) -> str:
        import torch  # a second that --help need not pay

        try:
            torch.zeros(1, device=device).item()  # the meta device has no numbers
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device must be one that this torch can use, got {device} ({reason})"
            ) from error
        return device

    @field_validator("json_file")
    @classmethod
    def _writable(cls, json_file: Path | None) -> Path | None:
        """Finds out before minutes of work that the result could not be written."""
        if json_file is not None and (
            json_file.is_dir() or not json_file.absolute().parent.is_dir()
        ):
            raise ValueError(f"json must name a file in a folder that exists, got {json_file}")
        return json_file

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result, for a run's folder."""
        return self.model_dump(mode="json", exclude={"json_file", "config", "out", "resume"})


def overridden(tuned: Tuned, flags: BaseModel) -> Tuned:
    """Returns tuned settings with the flags of the same names, where given, in their place."""
    given = {field.name: getattr(flags, field.name) for field in fields(tuned)}
    return replace(tuned, **{name: value for name, value in given.items() if value is not None})


def read_config(path: Path) -> dict[str, Any]:
    """Reads the fields of a JSON or YAML file.

    Raises:
        Misuse: If the file cannot be read or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise Misuse(
            f"--config must name a readable JSON or YAML file, got {path}: {error}"
        ) from error
    if not isinstance(fields, Mapping) or not all(isinstance(key, str) for key in fields):
        raise Misuse(
            f"--config must hold a mapping of fields, got {type(fields).__name__} in {path}"
        )
    return {str(key): value for key, value in fields.items() if key != "versions"}
