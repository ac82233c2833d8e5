"""Numbered checkpoints: the newest few and the best are kept, a damaged one is passed over."""

import math
import os
from pathlib import Path

import pytest
import torch

from deepzero_apps.runs import RunFolderError, checkpoints, save_file
from deepzero_apps.runs.checkpoints import Best, Checkpoints


def name(step: int) -> str:
    return f"step-{step:012d}.safetensors"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (0, 9, 10, 100):
        Checkpoints(tmp_path).save(step, {"step": step})

    assert sorted(os.listdir(tmp_path)) == [name(10), name(100)]
    assert Checkpoints(tmp_path).load_latest() == (100, {"step": 100})


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_of_the_newest_are_kept_as_asked_for(keep: int, tmp_path: Path) -> None:
    for step in range(5):
        Checkpoints(tmp_path, keep=keep).save(step, step)

    assert sorted(os.listdir(tmp_path)) == [name(step) for step in range(5 - keep, 5)]


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (0, ValueError, "keep must be at least 1, got 0"),
        (2.0, TypeError, r"keep must be an int, got 2\.0 of type float"),
    ],
)
def test_bad_number_to_keep_is_refused(
    keep: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        Checkpoints(tmp_path, keep=keep)


def test_best_is_kept_until_a_better_one_comes(tmp_path: Path) -> None:
    scores = {1: 0.5, 2: 0.75, 3: None, 4: 0.75, 5: math.nan, 6: -math.inf, 7: 0.875, 8: 0.25}
    best = {}
    for step, score in scores.items():
        # A new object each time: a resumed run learns the score so far from the disk.
        Checkpoints(tmp_path).save(step, {"w": torch.full((2,), step)}, score=score)
        found = Checkpoints(tmp_path).load_best()
        assert found is not None
        best[step] = (found.step, found.score, found.state["w"].tolist())

    assert best == {
        1: (1, 0.5, [1, 1]),
        **{step: (2, 0.75, [2, 2]) for step in range(2, 7)},
        **{step: (7, 0.875, [7, 7]) for step in (7, 8)},
    }
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", name(7), name(8)]


def test_best_of_one_process_stays_until_a_better_one_comes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, score in enumerate((0.25, 0.75, 0.5)):
        checkpoints.save(step, None, score=score)

    assert checkpoints.load_best() == (1, 0.75, None)


def test_score_of_minus_infinity_is_better_than_none_and_nan_is_not(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, None, score=math.nan)
    assert Checkpoints(tmp_path).load_best() is None

    Checkpoints(tmp_path).save(2, None, score=-math.inf)
    assert Checkpoints(tmp_path).load_best() == Best(2, -math.inf, None)


def test_best_is_on_the_disk_before_the_checkpoint_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def record(path: Path, state: object) -> None:
        written.append(path.name)
        save_file(path, state)

    monkeypatch.setattr(checkpoints, "save_file", record)
    Checkpoints(tmp_path).save(3, None, score=1)

    assert written == ["best.safetensors", name(3)]


def test_best_is_read_where_no_other_is_whole(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, "one", score=1)
    Checkpoints(tmp_path).save(2, "two")
    for step in (1, 2):
        damage(tmp_path / name(step))

    with pytest.warns(UserWarning, match=rf"fell back to .* step 1: .*{name(2)}.*{name(1)}"):
        assert Checkpoints(tmp_path).load_latest() == (1, "one")


def test_damaged_best_is_said_and_replaced_by_the_next(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, "one", score=1)
    damage(tmp_path / "best.safetensors")

    with pytest.raises(RunFolderError, match=r"best\.safetensors cannot be used: .* checksum"):
        Checkpoints(tmp_path).load_best()
    with pytest.warns(UserWarning, match=r"best checkpoint is lost.*best\.safetensors"):
        Checkpoints(tmp_path).save(2, "two", score=0.5)
    assert Checkpoints(tmp_path).load_best() == Best(2, 0.5, "two")


@pytest.mark.parametrize("state", [3, {"step": 1}, {"step": "1", "score": 1.0, "state": 0}])
def test_best_of_another_form_is_refused(state: object, tmp_path: Path) -> None:
    save_file(tmp_path / "best.safetensors", state)

    with pytest.raises(RunFolderError, match="must hold step, score, state, got something else"):
        Checkpoints(tmp_path).load_best()


@pytest.mark.parametrize("score", [True, "1", torch.ones(())])
def test_score_that_is_no_number_is_refused(score: float, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="score must be a number, got"):
        Checkpoints(tmp_path).save(1, None, score=score)

    assert os.listdir(tmp_path) == []


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load_latest() is None
    assert Checkpoints(tmp_path / "absent").load_latest() is None


def test_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, torch.ones(2))
    Checkpoints(tmp_path).save(2, torch.zeros(2))
    damage(tmp_path / name(2))

    with pytest.warns(UserWarning, match=rf"fell back to .* step 1: .*{name(2)} .* checksum"):
        found = Checkpoints(tmp_path).load_latest()

    assert found is not None
    assert found[0] == 1
    assert found[1].tolist() == [1, 1]


def test_going_on_from_the_fallback_removes_the_damaged_one_and_not_the_good(
    tmp_path: Path,
) -> None:
    for step in (10, 20):
        Checkpoints(tmp_path).save(step, step)
    damage(tmp_path / name(20))

    Checkpoints(tmp_path).save(15, 15)

    assert sorted(os.listdir(tmp_path)) == [name(10), name(15)]


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, step)
        damage(tmp_path / name(step))

    with pytest.raises(
        RunFolderError, match=rf"no checkpoint can be read: .*{name(2)}.*{name(1)}"
    ):
        Checkpoints(tmp_path).load_latest()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"")
    for step in (1, 2, 3):
        Checkpoints(tmp_path).save(step, step)

    assert "mine.safetensors" in os.listdir(tmp_path)
    assert Checkpoints(tmp_path).load_latest() == (3, 3)


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
        Checkpoints(tmp_path).save(step, None)
