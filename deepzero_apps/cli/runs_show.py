"""``deepzero-apps runs show``: all that the folder of one run says, and how to go on with it."""

__all__ = ["RunsShowSettings", "run"]

import json
import os.path
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from deepzero_apps.cli.answers import write_json
from deepzero_apps.cli.found_runs import FoundRun, found_run
from deepzero_apps.cli.runs_list import runs_table, show
from deepzero_apps.cli.settings import Misuse, PlainSettings
from deepzero_apps.cli.verbs import COMMANDS
from deepzero_apps.foreign.text import printable
from deepzero_apps.runs.tracking import flattened

_CONTINUED_BY = {"merge": "certify"}
_DECIDING = ("answers", "method", "problem", "quantize", "run")  # what other defaults depend on
_WIDTH = 28


class RunsShowSettings(PlainSettings):
    """Shows one run: settings that are not the defaults, results, files, and how to go on."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


def run(settings: RunsShowSettings) -> int:
    """Prints what is known of a run."""
    found = found_run(settings.run)
    if found is None:
        raise Misuse(f"RUN must be the folder of a run, got {settings.run}")
    chosen, files, way_on = _chosen(found), _files(found.path), _way_on(found)
    show(runs_table([found]))
    _section("settings that are not the defaults", chosen)
    _section("started with", found.versions)
    _section("result", flattened(found.result, lists=True))
    _section("last row of metrics", found.last)
    _section("files", {name: f"{size:,} bytes" for name, size in files.items()})
    _section("watch", _watched(found.path))
    _print(way_on)
    document = {**found.document(), "chosen": chosen, "files": files, "way_on": way_on}
    write_json(settings.json_file, document)
    return 0


def _chosen(found: FoundRun) -> dict[str, Any]:
    """The settings that differ from what the command would have taken by itself."""
    usual = flattened(_defaults(found))
    own = flattened(found.config)
    return {name: value for name, value in own.items() if usual.get(name, _chosen) != value}


def _defaults(found: FoundRun) -> dict[str, Any]:
    command = COMMANDS.get(_CONTINUED_BY.get(found.kind, found.kind))
    if command is None:
        return {}
    kind = command.settings_class()
    fields = kind.model_fields
    given = {n: found.config[n] for n in _DECIDING if n in fields and n in found.config}
    needed = {"out": "."} if "out" in fields and fields["out"].is_required() else {}
    try:
        usual = kind(**needed, **given).record()
    except (ValidationError, TypeError, Misuse):
        return {}
    return usual | {name: fields[name].get_default() for name in given}


def _files(path: Path) -> dict[str, int]:
    try:
        return {
            file.name: file.stat().st_size
            for file in sorted(path.iterdir())
            if file.is_file() and not file.name.startswith(".") and file.name != "lock"
        }
    except OSError:  # the folder is not for us to see, which is told as its fault
        return {}


def _way_on(found: FoundRun) -> str:
    """Says how the run is continued, as a command where that is possible."""
    if found.state in ("running", "damaged"):
        return {"running": "it is running", "damaged": found.fault}[found.state]
    kind = _CONTINUED_BY.get(found.kind, found.kind)
    fields = COMMANDS[kind].settings_class().model_fields if kind in COMMANDS else {}
    if "resume" not in fields:
        return "it cannot be continued"
    if not found.config.keys() <= fields.keys():
        return "it is a part of another run, and continued with it"
    config, out = (shlex.quote(str(p)) for p in (found.path / "config.json", found.path))
    line = f"deepzero-apps {kind} --config {config} --out {out} --resume"
    done = "it is finished; the same again:" if found.state == "finished" else "continue it:"
    return f"{done} {line}{_budget(found, kind)}"


def _budget(found: FoundRun, kind: str) -> str:
    limited = kind == "certify" and found.state == "interrupted"
    return "  (and the --budget that it had, if it had one)" if limited else ""


def _watched(path: Path) -> dict[str, str]:
    watched = {}
    if os.path.isdir(path / "tensorboard"):
        watched["TensorBoard"] = f"tensorboard --logdir {shlex.quote(str(path / 'tensorboard'))}"
    database = path / "mlflow" / "mlflow.db"
    if os.path.isfile(database):
        address = shlex.quote(f"sqlite:///{database.absolute()}")
        watched["MLflow"] = f"mlflow ui --backend-store-uri {address}"
    return watched


def _section(title: str, fields: Mapping[str, Any]) -> None:
    if fields:
        _print(f"{title}\n" + "\n".join(_lines(fields)) + "\n")


def _lines(fields: Mapping[str, Any]) -> Iterator[str]:
    width = min(_WIDTH, max(map(len, fields)))
    for name, value in fields.items():
        yield f"  {name:{width}}  {_written(value)}"


def _written(value: Any) -> str:  # noqa: ANN401 - of JSON's types
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _print(text: str) -> None:
    Console(soft_wrap=True).print(Text(printable(text)))
