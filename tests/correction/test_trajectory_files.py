"""Folders of trajectories: what was saved comes back to the bit, all else is refused by name."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzero_apps.correction.trajectories import Trajectories, join
from deepzero_apps.correction.trajectory_files import TrajectoryError, TrajectoryFolder, load

PARAMETERS = [100.0, 0.1, 400.0]
SETTINGS = {"problem": "wake", "coarse": (16, 32), "dt": 2.0, "seed": 0}


def simulation(index: int) -> Trajectories:
    values = np.random.default_rng(index)
    return Trajectories(
        values.normal(size=(1, 5, 2, 3, 4)),
        np.array(PARAMETERS[index : index + 1]),
        values.normal(size=(1, 5, 7)),
    )


def archive(**arrays: Any) -> bytes:  # noqa: ANN401
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def made(path: Path, indices: tuple[int, ...] = (0, 1, 2)) -> Path:
    with TrajectoryFolder(path, SETTINGS, PARAMETERS) as folder:
        for index in indices:
            folder.save(index, simulation(index))
    return path


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    loaded = load(made(tmp_path, (2, 0, 1)))

    whole = join([simulation(i) for i in range(3)])
    assert np.array_equal(loaded.fields, whole.fields)
    assert loaded.parameters.tolist() == PARAMETERS
    assert loaded.native is not None
    assert np.array_equal(loaded.native, np.concatenate([simulation(i).native for i in range(3)]))
    assert loaded.meta == {**SETTINGS, "coarse": [16, 32]}


def test_a_killed_making_continues_with_what_is_missing(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from deepzero_apps.correction import trajectory_files
        from tests.correction.test_trajectory_files import PARAMETERS, SETTINGS, simulation

        def kill(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        with trajectory_files.TrajectoryFolder(sys.argv[1], SETTINGS, PARAMETERS) as folder:
            folder.save(1, simulation(1))
            os.fsync = kill
            folder.save(0, simulation(0))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "killed"],
        check=False, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(TrajectoryError, match="unfinished: 2 of 3 simulations are missing"):
        load(tmp_path / "killed")

    with TrajectoryFolder(tmp_path / "killed", SETTINGS, PARAMETERS) as folder:
        assert folder.missing() == [0, 2]
        for index in folder.missing():
            folder.save(index, simulation(index))

    made(tmp_path / "at once")
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("killed", "at once")]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".npz"):
            bits = [(tmp_path / n / name).read_bytes() for n in ("killed", "at once")]
            assert bits[0] == bits[1]


def test_a_flipped_bit_is_found_and_the_file_can_be_made_again(tmp_path: Path) -> None:
    path = made(tmp_path) / "simulation_0001.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(TrajectoryError, match=r"simulation_0001.npz is damaged: its checksum"):
        load(tmp_path)

    path.unlink()
    with pytest.raises(TrajectoryError, match=r"simulation_0001.npz is missing"):
        load(tmp_path)
    with TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS) as folder:
        assert folder.missing() == [1]
        folder.save(1, simulation(1))
        assert np.array_equal(folder.load().fields[1], simulation(1).fields[0])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda _: b"no archive", "simulation_0001.npz must hold a simulation, got ValueError"),
        (lambda arrays: archive(fields=arrays["fields"]), "got KeyError"),
        (
            lambda arrays: archive(**{**arrays, "fields": arrays["fields"] * np.nan}),
            r"got ValueError.*fields must be finite",
        ),
    ],
    ids=["garbage", "incomplete", "not finite"],
)
def test_a_file_that_holds_no_simulation_is_named_though_its_checksum_is_right(
    tmp_path: Path, data: Callable[[dict[str, Any]], bytes], words: str
) -> None:
    path = made(tmp_path) / "simulation_0001.npz"
    with np.load(path, allow_pickle=False) as file:
        path.write_bytes(data(dict(file)))
    index = json.loads((tmp_path / "trajectories.json").read_text())
    index["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "trajectories.json").write_text(json.dumps(index))
    with pytest.raises(TrajectoryError, match=words):
        load(tmp_path)


def test_a_file_of_another_problem_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    made(tmp_path / "wake")
    with TrajectoryFolder(tmp_path / "b", {"problem": "burgers"}, PARAMETERS) as folder:
        folder.save(0, simulation(0))
    (tmp_path / "b" / "simulation_0000.npz").replace(tmp_path / "wake" / "simulation_0000.npz")

    with pytest.raises(TrajectoryError, match='problem: "burgers" there, "wake" asked for'):
        load(tmp_path / "wake")


def test_other_settings_and_parameters_are_refused_by_name(tmp_path: Path) -> None:
    made(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    for settings, parameters, message in (
        ({**SETTINGS, "seed": 1}, PARAMETERS, "seed: 0 there, 1 asked for"),
        ({**SETTINGS, "seed": False}, PARAMETERS, "seed: 0 there, false asked for"),
        ({"problem": "wake"}, PARAMETERS, "dt: 2.0 there, absent asked for"),
        (SETTINGS, PARAMETERS[:2], r"parameters: \[100.0, 0.1, 400.0\] there"),
    ):
        with (
            pytest.raises(TrajectoryError, match=message),
            TrajectoryFolder(tmp_path, settings, parameters),
        ):
            pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_loading_compares_the_settings_that_are_named(tmp_path: Path) -> None:
    made(tmp_path)

    assert len(load(tmp_path, {"problem": "wake", "coarse": [16, 32]})) == 3
    with pytest.raises(TrajectoryError, match='problem: "wake" there, "smoke" asked for'):
        load(tmp_path, {"problem": "smoke"})
    with pytest.raises(TrajectoryError, match="steps: absent there, 3 asked for"):
        load(tmp_path, {"steps": 3})


def test_a_second_maker_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS) as first:
        with (
            pytest.raises(TrajectoryError, match="being made by another process"),
            TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS),
        ):
            pass
        first.save(0, simulation(0))

    with TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS) as second:
        assert second.missing() == [1, 2]


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tmp").write_text("years")
    with (
        pytest.raises(TrajectoryError, match=r"must be empty or hold .*, got 'thesis"),
        TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS),
    ):
        pass

    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tmp"]
    with pytest.raises(TrajectoryError, match="holds no trajectories: it has no"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"settings": {}, "files": {}}', "{}", "\x00\xff"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (made(tmp_path) / "trajectories.json").write_text(text)

    with pytest.raises(TrajectoryError, match=r"trajectories.json is damaged"):
        load(tmp_path)


def test_an_index_whose_parameters_were_edited_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path) / "trajectories.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parameters": [1, 2, 3]}))

    with pytest.raises(TrajectoryError, match=r"must list the parameters.*got \[1, 2, 3\]"):
        load(tmp_path)


def test_a_simulation_of_another_parameter_is_not_saved(tmp_path: Path) -> None:
    with (
        TrajectoryFolder(tmp_path, SETTINGS, PARAMETERS) as folder,
        pytest.raises(ValueError, match=r"the one of parameter 100.0, got \[0.1\]"),
    ):
        folder.save(0, simulation(1))
    with pytest.raises(TrajectoryError, match="must be open"):
        folder.save(0, simulation(0))


@pytest.mark.parametrize(
    ("settings", "parameters", "message"),
    [
        ({"grid": 3}, [1.0], r"must name the problem, got none in \['grid'\]"),
        ({"problem": np.ones(1)}, [1.0], "settings must be of JSON's types"),
        ({"problem": "a", "x": float("nan")}, [1.0], "settings must be of JSON's"),
        ({"problem": "a"}, [], r"parameters must be finite, at least one, got \[\]"),
        ({"problem": "a"}, [float("nan")], r"parameters must be finite"),
    ],
)
def test_settings_that_cannot_be_written_are_refused(
    tmp_path: Path,
    settings: dict[str, object],
    parameters: list[float],
    message: str,
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        TrajectoryFolder(tmp_path, settings, parameters)
