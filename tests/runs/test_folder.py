"""A run's folder: whose it is, what it refuses, and that a resumed run is the same run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from deepzero_apps.runs import RunFolder, RunFolderError

CONFIG: dict[str, Any] = {"seed": 3, "training": {"rate": 0.1, "steps": 10}, "sigma": [0.5]}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    files = folder.rglob("*")
    return {str(path): path.read_bytes() if path.is_file() else None for path in files}


def test_config_is_recorded_with_versions_and_read_back(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a" / "run", CONFIG, resume=False).close()

    text = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    run = RunFolder(tmp_path / "a" / "run")

    assert text == {**CONFIG, "versions": run.versions}
    assert run.config == CONFIG
    assert run.versions["torch"] == torch.__version__
    assert run.versions["seed"] == 3


@pytest.mark.parametrize("resume", [False, True])
def test_empty_folder_is_taken(resume: bool, tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=resume) as run:
        assert run.load_latest() is None
        assert run.metrics() == []
        assert run.result() is None


def test_same_run_continues_with_resume_alone(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.save(4, {"w": torch.ones(1)})
    before = snapshot(tmp_path)

    with pytest.raises(RunFolderError, match="holds a run already; pass --resume to continue"):
        RunFolder.create(tmp_path, CONFIG, resume=False)
    assert snapshot(tmp_path) == before
    with RunFolder.create(tmp_path, CONFIG, resume=True) as run:
        assert run.load_latest() == (4, {"w": torch.ones(1)})


@pytest.mark.parametrize("resume", [False, True])
def test_other_settings_are_refused_and_named(resume: bool, tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG, resume=False).close()
    before = snapshot(tmp_path)

    other = {**CONFIG, "training": {"rate": 0.2, "steps": 10}}
    with pytest.raises(RunFolderError, match=r"training\.rate: 0\.1 in the folder, 0\.2 asked"):
        RunFolder.create(tmp_path, other, resume=resume)

    assert snapshot(tmp_path) == before


def test_only_the_first_differing_fields_are_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {}, resume=False).close()

    with pytest.raises(RunFolderError, match=r"\(a0: .*; a4: absent .* asked for and 3 more\)"):
        RunFolder.create(tmp_path, {f"a{i}": i for i in range(8)}, resume=True)


def test_versions_are_not_compared(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG, resume=False).close()
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "versions": {"torch": "1.0"}}))

    with RunFolder.create(tmp_path, CONFIG, resume=True) as run:
        assert run.versions == {"torch": "1.0"}


@pytest.mark.parametrize("resume", [False, True])
def test_folder_of_something_else_is_refused_untouched(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    before = snapshot(tmp_path)

    with pytest.raises(RunFolderError, match=r"must be empty or hold a run, got 'thesis.tex'"):
        RunFolder.create(tmp_path, CONFIG, resume=resume)

    assert snapshot(tmp_path) == before


def test_folder_left_by_a_run_killed_at_its_start_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".config.json.0123abcd.tmp").write_text("{")

    with RunFolder.create(tmp_path, CONFIG, resume=False):
        assert not (tmp_path / ".config.json.0123abcd.tmp").exists()


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(RunFolderError, match="must be a folder, got a file"):
        RunFolder.create(tmp_path / "file", CONFIG, resume=True)
    with pytest.raises(RunFolderError, match="cannot be made: Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_damaged_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(RunFolderError, match=r"config\.json is damaged"):
        RunFolder.create(tmp_path, CONFIG, resume=True)


def test_bad_settings_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"config\['f'\] must be .*, got function"):
        RunFolder.create(tmp_path / "run", {"f": snapshot}, resume=False)
    with pytest.raises(TypeError, match="config must be a dict, got list"):
        RunFolder.create(tmp_path / "run", [], resume=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not have a field 'versions'"):
        RunFolder.create(tmp_path / "run", {"versions": 1}, resume=False)

    assert not (tmp_path / "run").exists()


def test_folder_without_a_run_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no run: it has no config\.json"):
        RunFolder(tmp_path)


def test_folder_in_use_is_refused_and_can_be_read(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.log({"step": 1})
        with pytest.raises(RunFolderError, match="is in use by another run"):
            RunFolder.create(tmp_path, CONFIG, resume=True)
        assert RunFolder(tmp_path).metrics() == [{"step": 1}]


def test_failure_under_the_lock_releases_it(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG, resume=False).close()
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").touch()

    with pytest.raises(RunFolderError, match="checkpoints cannot be made: File exists") as error:
        RunFolder.create(tmp_path, CONFIG, resume=True)

    # The error's traceback keeps the frame, and so the lock's file, from being collected.
    assert error.tb is not None
    (tmp_path / "checkpoints").unlink()
    RunFolder.create(tmp_path, CONFIG, resume=True).close()


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.log({}),
        lambda run: run.save(1, {}),
        lambda run: run.truncate_metrics(1),
        lambda run: run.finish({}),
    ],
    ids=["log", "save", "truncate_metrics", "finish"],
)
def test_closed_folder_is_not_written_to(
    write: Callable[[RunFolder], None], tmp_path: Path
) -> None:
    run = RunFolder.create(tmp_path, CONFIG, resume=False)
    run.close()
    run.close()
    before = snapshot(tmp_path)

    with pytest.raises(RunFolderError, match="is open for reading only"):
        write(run)

    assert snapshot(tmp_path) == before


def test_metrics_are_strict_json_lines(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.log({"step": 1, "loss": torch.tensor(0.5)})
        run.log({"step": 2, "loss": float("nan")})

    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    )


def test_metrics_reach_the_disk_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.log({"step": 1})
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))

        run.save(1, {})

    names = (tmp_path / "metrics.jsonl", *(tmp_path / "checkpoints").iterdir())
    assert synced == [*(name.stat().st_ino for name in names), (names[1].parent).stat().st_ino]


def test_torn_last_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.log({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')

    assert RunFolder(tmp_path).metrics() == [{"step": 1}]
    with RunFolder.create(tmp_path, CONFIG, resume=True) as run:
        run.log({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.truncate_metrics(0)
        run.log({"note": "start"})
        for step in (1, 2, 3):
            run.log({"step": step})
        run.truncate_metrics(2)

        assert run.metrics() == [{"note": "start"}, {"step": 1}, {"step": 2}]


def test_damaged_row_and_bad_rows_are_named(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        with pytest.raises(TypeError, match=r"row must have an int as step, got 1\.5"):
            run.log({"step": 1.5})
        with pytest.raises(TypeError, match="row must be a dict, got list"):
            run.log([])  # type: ignore[arg-type]
        assert not (tmp_path / "metrics.jsonl").exists()

        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
        with pytest.raises(RunFolderError, match=r"metrics\.jsonl is damaged in line 2"):
            run.metrics()


def test_result_marks_the_run_as_finished(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        run.finish({"accuracy": 0.75, "radius": float("inf")})

    assert RunFolder(tmp_path).result() == {"accuracy": 0.75, "radius": None}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"result\.json is damaged"):
        run.result()


class Training:
    """A small network in training, on data from a generator."""

    def __init__(self, make: Callable[[Any], Optimizer], plan: Callable[[Optimizer], Any]) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        for weight in self.network.parameters():
            nn.init.normal_(weight, generator=self.generator)
        self.optimizer = make(self.network.parameters())
        self.scheduler = plan(self.optimizer)

    def step(self) -> None:
        x = torch.randn(8, 4, generator=self.generator)
        self.optimizer.zero_grad()
        self.network(x).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> dict[str, Any]:
        parts = ("network", "optimizer", "scheduler")
        return {"generator": self.generator.get_state()} | {
            part: getattr(self, part).state_dict() for part in parts
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state.pop("generator"))
        for part, value in state.items():
            getattr(self, part).load_state_dict(value)

    def numbers(self) -> list[Tensor]:
        return [t.detach().clone() for t in self.network.state_dict().values()]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
        lambda p: Adam(p, lr=0.05, amsgrad=True),
        lambda p: AdamW(p, lr=0.05, betas=(0.8, 0.99)),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
@pytest.mark.parametrize(
    "plan",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
        lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=7, cycle_momentum=False),
        lambda o: lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [3]
        ),
    ],
    ids=["cosine", "multistep", "onecycle", "lambda", "sequential"],
)
def test_resumed_training_ends_in_the_same_bits(
    make: Callable[[Any], Optimizer], plan: Callable[[Optimizer], Any], tmp_path: Path
) -> None:
    straight = Training(make, plan)
    with RunFolder.create(tmp_path, CONFIG, resume=False) as run:
        for step in range(1, 7):
            straight.step()
            if step == 3:
                run.save(step, straight.state())

    resumed = Training(make, plan)
    found = RunFolder(tmp_path).load_latest()
    assert found is not None
    resumed.restore(found[1])
    for _ in range(3):
        resumed.step()

    torch.testing.assert_close(resumed.numbers(), straight.numbers(), rtol=0, atol=0)
    assert resumed.optimizer.param_groups[0]["lr"] == straight.optimizer.param_groups[0]["lr"]
