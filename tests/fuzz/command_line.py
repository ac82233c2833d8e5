"""The command line on broken files: whatever they hold, it ends with a message and an exit code."""

__all__ = ["ENTRIES"]

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

from deepzero_apps.cli.certify import CertifySettings
from deepzero_apps.cli.correct import CorrectSettings
from deepzero_apps.cli.defend import DefendSettings
from deepzero_apps.cli.main import _parse, main
from deepzero_apps.cli.settings import Misuse
from tests.fuzz.folders import _written
from tests.fuzz.mutations import mutated_json


class Ended(Exception):
    """A command ended with an exit code other than 0."""


def _settings() -> list[bytes]:
    defend = DefendSettings(method="mse").record()
    certify = {**CertifySettings().record(), "versions": {"python": "3"}}
    return [json.dumps(each, default=str).encode() for each in (defend, certify)] + [
        b"classifier: svc\nsigma: .25\nbudget: 1000\n",
        b"votes: {n: 200, n0: 20}\nsigma: 0.25\nshard: 1/2\n",
        json.dumps(CorrectSettings().record(), default=str).encode(),
    ]


def _read_settings(data: bytes, folder: Path) -> None:
    refused = 0
    for name in ("settings.yaml", "settings.json"):
        (folder / name).write_bytes(data)
        for kind, verb in (
            (DefendSettings, "defend"),
            (CertifySettings, "certify"),
            (CorrectSettings, "correct"),
        ):
            try:
                with (
                    contextlib.redirect_stderr(io.StringIO()),
                    contextlib.redirect_stdout(io.StringIO()),
                ):
                    _parse(kind, verb, ["--config", str(folder / name)])
            except (Misuse, SystemExit):
                refused += 1
    if refused == 6:
        raise Misuse("by every command")


def _said(arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    assert code in (0, 1, 2)
    for text in (out.getvalue(), err.getvalue()):
        assert all(character.isprintable() or character in "\n\t" for character in text), text
    if code:
        raise Ended(code)


def _command(*arguments: str) -> Callable[[bytes, Path], None]:
    """A command on a certified run whose config.json and result.json are broken."""

    def read(data: bytes, folder: Path) -> None:
        place = folder / "run"
        place.mkdir(exist_ok=True)
        for name in ("certificates.jsonl", "votes.jsonl"):
            (place / name).write_bytes(_written(name)[0])
        config, _, result = data.partition(b"\0")
        (place / "config.json").write_bytes(config)
        (place / "result.json").write_bytes(result)
        _said(
            [word.replace("RUN", str(place)).replace("FOLDER", str(folder)) for word in arguments]
        )

    return read


def _configs() -> list[bytes]:
    certify = CertifySettings().record()
    certify["versions"] = {"deepzero_apps": "0.1.0", "python": "3.11"}
    again = {"command": "recertify", "run": "elsewhere", "alpha": 0.01}
    result = json.dumps({"images": 3, "wanted": 3, "seconds": 1.0, "queries": 330}).encode()
    return [json.dumps(each, default=str).encode() + b"\0" + result for each in (certify, again)]


def _mutated_configs(random: object, data: bytes) -> bytes:
    config, _, result = data.partition(b"\0")
    if random.random() < 0.6:  # type: ignore[attr-defined]
        config = mutated_json(random, config)  # type: ignore[arg-type]
    else:
        result = mutated_json(random, result)  # type: ignore[arg-type]
    return config + b"\0" + result


_PRICES = (Ended,)

ENTRIES = [
    ("files of settings", _settings, mutated_json, _read_settings, (Misuse,), 10),
    ("verify on runs", _configs, _mutated_configs, _command("verify", "RUN"), _PRICES, 4),
    ("verify --data on runs", _configs, _mutated_configs, _command("verify", "RUN", "--data"), _PRICES, 2),
    ("report on runs", _configs, _mutated_configs, _command("report", "RUN", "--out", "FOLDER/page.html"), _PRICES, 2),
    ("runs list", _configs, _mutated_configs, _command("runs", "list", "FOLDER"), _PRICES, 4),
    ("runs show", _configs, _mutated_configs, _command("runs", "show", "RUN"), _PRICES, 4),
]  # fmt: skip
