"""What every subcommand's settings share: a frozen, validated model, from a file and from flags.

The model's fields are the flags, their docstrings the help. ``--config FILE`` names a JSON or YAML
file of fields (a run's own ``config.json`` is one); flags override it.
"""

__all__ = [
    "STANDARD_OUTPUT",
    "UNRECORDED",
    "CommonSettings",
    "DrivenSettings",
    "Misuse",
    "PlainSettings",
    "WatchedSettings",
    "overridden",
    "read_config",
]

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, field_validator

from deepzero_apps.foreign import read_mapping

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tuned = TypeVar("Tuned", bound="DataclassInstance")

Tracking = Literal["tensorboard", "mlflow"]

STANDARD_OUTPUT = Path("-")
"""What ``--json`` is given to write to standard output."""

UNRECORDED = frozenset(
    {
        "checkpoint_every",
        "cluster",
        "config",
        "jobs",
        "json_file",
        "keep_checkpoints",
        "log_level",
        "out",
        "resume",
        "track",
        "workers",
    }
)
"""Fields that do not define a result: where it goes, how it is watched, who computes it."""


class Misuse(Exception):
    """A command that cannot be carried out as it was given; exit code 2."""


class PlainSettings(BaseModel):
    """Fields of every subcommand."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the result to this JSON file; - is standard output, and all else goes to standard error."""

    config: Path | None = None
    """Start from the fields of this JSON or YAML file; flags override it."""

    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """What is told on standard error: info for what happens, debug for how long it takes."""

    @field_validator("json_file")
    @classmethod
    def _writable(cls, json_file: Path | None) -> Path | None:
        """Finds out before minutes of work that the result could not be written."""
        if json_file is None or json_file == STANDARD_OUTPUT:
            return json_file
        if json_file.is_dir() or not json_file.absolute().parent.is_dir():
            raise ValueError(f"json must name a file in a folder that exists, got {json_file}")
        return json_file

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result, for a run's folder."""
        return self.model_dump(mode="json", exclude=set(UNRECORDED))

    def fields_of(self, *kinds: "type[PlainSettings]") -> dict[str, Any]:
        """Returns the fields of other kinds as they are here, to make settings of a part of the work.

        Args:
            *kinds: The kinds. ``config`` and ``json_file`` are the whole's own and left out.
        """
        names = {name for kind in kinds for name in kind.model_fields} - {"config", "json_file"}
        return {name: getattr(self, name) for name in names}

    def agreed(self, other: "PlainSettings", names: Iterable[str]) -> dict[str, Any]:
        """Takes fields from the settings of a run, from which no flag here may differ.

        Args:
            other: The settings of ``--run``.
            names: The names of the fields.

        Returns:
            The fields as the run has them.

        Raises:
            Misuse: If a flag is neither the default nor the run's.
        """
        taken = {}
        for name in names:
            default = type(self).model_fields[name].default
            asked, found = getattr(self, name), getattr(other, name)
            if asked not in (default, found):
                flag = name.replace("_", "-")
                raise Misuse(f"--{flag} must be that of --run, {found}, or left out, got {asked}")
            taken[name] = found
        return taken


class CommonSettings(PlainSettings):
    """Fields of subcommands that compute."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random: splits, initial weights, batches, noise, directions."""

    device: str = "cpu"
    """Where networks run, such as cpu or cuda:0."""

    threads: int = Field(1, ge=1)
    """Threads of each process; more than one pays off for images of 32x32 and larger networks."""

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


class WatchedSettings(CommonSettings):
    """Fields of subcommands whose runs others may watch."""

    track: Annotated[tuple[Tracking, ...], tyro.conf.UseAppendAction] = ()
    """Also send metrics to tensorboard or mlflow; may be given for each. metrics.jsonl is always there."""

    @field_validator("track")
    @classmethod
    def _installed(cls, track: tuple[Tracking, ...]) -> tuple[Tracking, ...]:
        for name in track:
            if find_spec(name) is None:
                raise ValueError(
                    f"track must name an installed package, got {name}; "
                    f"pip install deepzero-apps[{name}]"
                )
        return tuple(dict.fromkeys(track))


class DrivenSettings(WatchedSettings):
    """Fields of subcommands that train step by step."""

    checkpoint_every: float = Field(20.0, ge=0)
    """Seconds between checkpoints; 0 for one after every step."""

    keep_checkpoints: int = Field(2, ge=1, le=1_000_000)
    """How many of the newest checkpoints are kept; the best on validation data is kept besides."""


def overridden(tuned: Tuned, flags: BaseModel) -> Tuned:
    """Returns tuned settings with the flags of the same names, where given, in their place."""
    given = {field.name: getattr(flags, field.name) for field in fields(tuned)}
    return replace(tuned, **{name: value for name, value in given.items() if value is not None})


def read_config(path: Path) -> dict[str, Any]:
    """Reads the fields of a JSON or YAML file.

    Raises:
        Misuse: If the file cannot be read, holds no mapping, or says where to write outside of the
            working directory.
    """
    try:
        fields = read_mapping(path)
    except ValueError as error:
        raise Misuse(
            f"--config must name a readable JSON or YAML file, got {path}: {error}"
        ) from error
    _refuse_writing(fields, path)
    return {name: value for name, value in fields.items() if name != "versions"}


def _refuse_writing(fields: Mapping[str, Any], path: Path) -> None:
    """Refuses a file of settings, perhaps a stranger's, that names what would be overwritten."""
    out = fields.get("out")
    outside = isinstance(out, str) and (Path(out).is_absolute() or ".." in Path(out).parts)
    for name, flag, wrong in (
        ("json_file", "--json", "json_file" in fields),
        ("out", "--out", outside),
    ):
        if wrong:
            raise Misuse(
                f"--config must not say where to write, got {name} {fields[name]!r} in {path}; give "
                f"{flag} on the command line"
            )
