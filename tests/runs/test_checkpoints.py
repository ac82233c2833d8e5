"""Numbered checkpoints: the newest two are kept, a damaged one is passed over."""

import os
from pathlib import Path

import pytest
import torch

from deepzero_apps.runs import RunFolderError
from deepzero_apps.runs.checkpoints import load_latest, save


def name(step: int) -> str:
    return f"step-{step:012d}.safetensors"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (0, 9, 10, 100):
        save(tmp_path, step, {"step": step})

    assert sorted(os.listdir(tmp_path)) == [name(10), name(100)]
    assert load_latest(tmp_path) == (100, {"step": 100})


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def test_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1, torch.ones(2))
    save(tmp_path, 2, torch.zeros(2))
    damage(tmp_path / name(2))

    with pytest.warns(UserWarning, match=rf"fell back to .* step 1: .*{name(2)} .* checksum"):
        found = load_latest(tmp_path)

    assert found is not None
    assert found[0] == 1
    assert found[1].tolist() == [1, 1]


def test_going_on_from_the_fallback_removes_the_damaged_one_and_not_the_good(
    tmp_path: Path,
) -> None:
    for step in (10, 20):
        save(tmp_path, step, step)
    damage(tmp_path / name(20))

    save(tmp_path, 15, 15)

    assert sorted(os.listdir(tmp_path)) == [name(10), name(15)]


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, step)
        damage(tmp_path / name(step))

    with pytest.raises(
        RunFolderError, match=rf"no checkpoint can be read: .*{name(2)}.*{name(1)}"
    ):
        load_latest(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"")
    for step in (1, 2, 3):
        save(tmp_path, step, step)

    assert "best.safetensors" in os.listdir(tmp_path)
    assert load_latest(tmp_path) == (3, 3)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, "step must not be negative, got -1"),
        (True, TypeError, "step must be an int, got True of type bool"),
        (1.0, TypeError, r"step must be an int, got 1\.0 of type float"),
    ],
)
def test_bad_step_is_refused(
    step: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        save(tmp_path, step, None)
