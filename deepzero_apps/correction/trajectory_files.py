"""Trajectories on disk: a folder, checksummed, made by one process, continued after a crash.

    | ``trajectories.json``     | settings, parameters, versions, and the SHA-256 of each file
    | ``simulation_0000.npz``   | one simulation: fields, native, parameter, settings
    | ``lock``                  | held while a process writes here

Each file is written under another name and renamed once it is whole and on the disk, so that a making that was
killed continues with the simulations that are missing; a simulation depends on nothing but its own
start, so that the result is the same to the bit (by the same versions). No array is used before its
file's checksum is verified, and nothing is ever unpickled.
"""

__all__ = ["TrajectoryError", "TrajectoryFolder", "load"]

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

import deepzero_apps
from deepzero_apps import files
from deepzero_apps.correction.trajectories import Trajectories, join
from deepzero_apps.files import InUse, is_temporary
from deepzero_apps.files.opening import read_plain
from deepzero_apps.foreign import read_arrays

_INDEX = "trajectories.json"
_LOCK = "lock"
_SHOWN = 5
_NO_ARRAYS = (ValueError, KeyError, OSError)


class TrajectoryError(Exception):
    """Trajectories on disk cannot be read, written or continued."""


class TrajectoryFolder:
    """The folder of one set of trajectories while it is made; a context manager that locks it.

    Args:
        path: The folder: absent, empty, or of a making with equal settings and parameters.
        settings: What the simulations follow from, of JSON's types; ``problem`` names the problem.
        parameters: The parameter of each simulation to be made.

    Raises:
        TypeError: If the settings are not of JSON's types.
        ValueError: If the settings name no problem, or there is no parameter.
        TrajectoryError: On entry, if the folder is in use, holds something else, or holds
            trajectories of another problem, other settings or other parameters.

    Example:
        >>> import tempfile
        >>> one = Trajectories(np.ones((1, 2, 1, 4)), np.array([0.1]))
        >>> with TrajectoryFolder(tempfile.mkdtemp(), {"problem": "rest"}, [0.1]) as folder:
        ...     for index in folder.missing():
        ...         folder.save(index, one)
        ...     folder.load().fields.shape
        (1, 2, 1, 4)
    """

    def __init__(
        self, path: Path | str, settings: Mapping[str, Any], parameters: Sequence[float]
    ) -> None:
        self.path = Path(path)
        self.settings = _plain(settings)
        self.parameters = [float(parameter) for parameter in parameters]
        if not self.parameters or not all(map(math.isfinite, self.parameters)):
            raise ValueError(f"parameters must be finite, at least one, got {self.parameters}")
        self._files: dict[str, str] = {}
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with _explained("made", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(self.path)
        self._lock = _locked(self.path)
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def missing(self) -> list[int]:
        """Lists the simulations that are still to be made, by their place in ``parameters``."""
        names = map(_name, range(len(self.parameters)))
        return [
            index
            for index, name in enumerate(names)
            if name not in self._files or not (self.path / name).exists()
        ]

    def save(self, index: int, simulation: Trajectories) -> None:
        """Writes one simulation, whole or not at all.

        Args:
            index: Its place in ``parameters``.
            simulation: That simulation alone.

        Raises:
            ValueError: If it is not one simulation of that parameter.
            TrajectoryError: If the folder is not open.
        """
        if self._lock is None:
            raise TrajectoryError(f"{self.path} must be open; use `with TrajectoryFolder(...)`")
        expected = self.parameters[index]
        if simulation.parameters.tolist() != [expected]:
            raise ValueError(
                f"simulation must be the one of parameter {expected}, "
                f"got {simulation.parameters.tolist()}"
            )
        data = _packed(simulation, self.settings)
        _replace(self.path / _name(index), data)
        self._files[_name(index)] = hashlib.sha256(data).hexdigest()
        self._write_index()

    def load(self) -> Trajectories:
        """Reads all simulations; see `load`."""
        return load(self.path, self.settings)

    def _open(self) -> None:
        with _explained("tidied", self.path):
            files.remove_temporary(self.path)
        if not (self.path / _INDEX).exists():
            self._write_index()
        index = _read_index(self.path)
        _refuse_others(index["settings"], self.settings, self.path)
        _refuse_others(
            {"parameters": index["parameters"]}, {"parameters": self.parameters}, self.path
        )
        self._files = index["files"]

    def _write_index(self) -> None:
        index = {
            "settings": self.settings,
            "parameters": self.parameters,
            "versions": {"deepzero_apps": deepzero_apps.__version__, "numpy": np.__version__},
            "files": self._files,
        }
        _replace(self.path / _INDEX, (json.dumps(index, indent=2) + "\n").encode())


def load(path: Path | str, expected: Mapping[str, Any] | None = None) -> Trajectories:
    """Reads a folder of trajectories and verifies it: completeness, checksums, settings.

    Args:
        path: The folder.
        expected: Settings that it must have been made with; those not named are not looked at.

    Returns:
        All simulations, in the order of their making; ``meta`` is the settings.

    Raises:
        TrajectoryError: If the folder holds no trajectories, or not all of them, or those of
            another problem or other settings, or a file is damaged.
    """
    path = Path(path)
    index = _read_index(path)
    found = index["settings"]
    if expected is not None:
        _refuse_others({key: found[key] for key in expected if key in found}, expected, path)
    names = [_name(i) for i in range(len(index["parameters"]))]
    absent = [name for name in names if name not in index["files"]]
    if absent:
        raise TrajectoryError(
            f"{path} is unfinished: {len(absent)} of {len(names)} simulations are missing; "
            "make them with the command that began it"
        )
    result = join([_read(path / name, index["files"][name], found) for name in names])
    if result.parameters.tolist() != index["parameters"]:
        raise TrajectoryError(
            f"{path / _INDEX} must list the parameters of its files, "
            f"{result.parameters.tolist()}, got {index['parameters']}; restore it"
        )
    return result


def _name(index: int) -> str:
    return f"simulation_{index:04d}.npz"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"settings must be of JSON's types, got {settings}: {error}") from error
    if "problem" not in plain:
        raise ValueError(f"settings must name the problem, got none in {sorted(plain)}")
    return plain


def _refuse_others(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Compares as JSON, in which 1 is not true and a tuple is a list."""
    texts = [{k: json.dumps(v) for k, v in each.items()} for each in (found, expected)]
    unequal = [
        f"{key}: {texts[0].get(key, 'absent')} there, {texts[1].get(key, 'absent')} asked for"
        for key in {**texts[0], **texts[1]}
        if texts[0].get(key) != texts[1].get(key)
    ]
    if unequal:
        more = f" and {len(unequal) - _SHOWN} more" if len(unequal) > _SHOWN else ""
        raise TrajectoryError(
            f"{path} holds other trajectories ({'; '.join(unequal[:_SHOWN])}{more}); "
            "ask for the same or choose another folder"
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder of something else, before anything is written to it."""
    found = sorted(folder.iterdir())
    foreign = [path.name for path in found if path.name != _LOCK and not is_temporary(path)]
    if foreign and folder / _INDEX not in found:
        raise TrajectoryError(
            f"{folder} must be empty or hold trajectories, got {foreign[0]!r} in it; "
            "choose another folder"
        )


def _explained(action: str, path: Path) -> AbstractContextManager[None]:
    return files.explained(
        action, path, TrajectoryError, again="make the rest with the command that began it"
    )


def _locked(folder: Path) -> IO[bytes]:
    with _explained("locked", folder):
        try:
            return files.lock(folder / _LOCK)
        except InUse as error:
            raise TrajectoryError(
                f"{folder} is being made by another process ({error.owner}); "
                "wait for it or choose another folder"
            ) from None


def _replace(path: Path, data: bytes) -> None:
    with _explained("written", path):
        files.replace(path, data)


def _packed(simulation: Trajectories, settings: Mapping[str, Any]) -> bytes:
    arrays: dict[str, NDArray[Any]] = {
        "fields": simulation.fields,
        "parameters": simulation.parameters,
        "settings": np.array(json.dumps(settings)),
    }
    if simulation.native is not None:
        arrays["native"] = simulation.native
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    return read_arrays(io.BytesIO(data))


def _read(path: Path, digest: str, settings: Mapping[str, Any]) -> Trajectories:
    if not path.exists():
        raise TrajectoryError(f"{path} is missing; make it with the command that made the others")
    with _explained("read", path):
        data = read_plain(path)
    if hashlib.sha256(data).hexdigest() != digest:
        _refuse_stranger(path, data, settings)
        raise TrajectoryError(
            f"{path} is damaged: its checksum is not the one in {_INDEX}; remove it and make it "
            "again with the command that made it"
        )
    try:
        arrays = _unpacked(data)
        return Trajectories(
            arrays["fields"], arrays["parameters"], arrays.get("native"), meta=dict(settings)
        )
    except _NO_ARRAYS as error:
        raise TrajectoryError(
            f"{path} must hold a simulation, got {error!r}; restore it"
        ) from error


def _refuse_stranger(path: Path, data: bytes, settings: Mapping[str, Any]) -> None:
    """Says so where a file is whole and of other settings, put here by mistake."""
    try:
        found = json.loads(str(_unpacked(data)["settings"]))
    except _NO_ARRAYS:
        return
    _refuse_others(found, settings, path)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.exists():
        raise TrajectoryError(f"{folder} holds no trajectories: it has no {_INDEX}")
    kinds = {"settings": dict, "parameters": list, "files": dict}
    with _explained("read", path):
        text = read_plain(path)
    try:
        index: dict[str, Any] = json.loads(text)
        whole = all(isinstance(index[key], kind) for key, kind in kinds.items())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TrajectoryError(f"{path} is damaged: {error!r}; restore it") from error
    if not whole or not index["parameters"]:
        raise TrajectoryError(f"{path} is damaged: it must hold {', '.join(kinds)}; restore it")
    return index
