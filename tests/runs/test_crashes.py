"""Real processes, killed, locked out and forbidden to write; a real limit on what they write."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepzero_apps.runs import RunFolder, RunFolderError

# A parent that forks: importing torch anew for every kill would take most of the time.
KILLED = """
import os, random, signal, sys, time
import torch
from deepzero_apps.runs import RunFolder

def work(path, acknowledge):
    with RunFolder.create(path, {}, resume=True) as run:
        step, _ = run.load_latest() or (0, None)
        run.truncate_metrics(step)
        while True:
            step += 1
            run.log({"step": step})
            run.save(step, {"step": step, "w": torch.full((100_000,), step)})
            os.write(acknowledge, step.to_bytes(8, "little"))

def last(pipe):
    seen = 0
    while block := os.read(pipe, 8):
        seen = int.from_bytes(block, "little")
    return seen

def main(path):
    torch.set_num_threads(1)
    chance, resumed = random.Random(0), 0
    for _ in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(path, writer)
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(chance.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        acknowledged = last(reader)
        os.close(reader)
        with RunFolder.create(path, {}, resume=True) as run:
            step, state = run.load_latest() or (0, {"step": 0, "w": torch.zeros(1)})
            rows = [row["step"] for row in run.metrics()]
            left = [name for _, _, names in os.walk(path) for name in names if "tmp" in name]
        whole = state["step"] == step and bool((state["w"] == step).all())
        kept = max(acknowledged, resumed) <= step <= max(acknowledged, resumed) + 1
        logged = rows in (list(range(1, step + 1)), list(range(1, step + 2)))
        killed = os.WIFSIGNALED(status)
        print(killed, whole, kept, logged, not left, flush=True)
        resumed = step
    print(resumed)

main(sys.argv[1])
"""

# Killed before and after each step that writing a better checkpoint takes, one after the other.
EVERYWHERE = """
import os, signal, sys
from pathlib import Path
import torch
from deepzero_apps.runs import RunFolder

STATES = {step: {"w": torch.full((1000,), step)} for step in (1, 2)}

def arm(at):
    seen = iter(range(10_000))
    def around(function):
        def doing(*args):
            for turn in range(2):
                if next(seen) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if turn == 0:
                    result = function(*args)
            return result
        return doing
    os.fsync, Path.replace, Path.unlink = map(around, (os.fsync, Path.replace, Path.unlink))

def work(path, at):
    with RunFolder.create(path, {}, resume=False, keep=1) as run:
        run.save(1, STATES[1], score=0.5)
        arm(at)
        run.save(2, STATES[2], score=0.75)

for at in range(10_000):
    path = Path(sys.argv[1]) / str(at)
    child = os.fork()
    if child == 0:
        try:
            work(path, at)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    with RunFolder.create(path, {}, resume=True, keep=1) as run:
        (latest, state), best = run.load_latest(), run.load_best()
        whole = all(bool((s["w"] == n).all()) for n, s in ((latest, state), (best[0], best[2])))
        run.save(2, STATES[2], score=0.75)
        names = sorted(os.listdir(path / "checkpoints"))
    print(latest, best.step, whole, run.load_best().step, len(names))
    if not os.WIFSIGNALED(status):
        break
"""

LOCKED_OUT = """
import sys
from deepzero_apps.runs import RunFolder, RunFolderError
try:
    RunFolder.create(sys.argv[1], {}, resume=True)
except RunFolderError as error:
    print(error)
"""

# Root may write anywhere, so a process of root becomes nobody first.
FORBIDDEN = """
import os
from deepzero_apps.runs import RunFolder, RunFolderError
if os.getuid() == 0:
    os.setuid(65534)
for path in ("new", "."):
    try:
        RunFolder.create(path, {}, resume=True)
    except RunFolderError as error:
        print(error)
"""


def output(code: str, *arguments: str, folder: Path) -> list[str]:
    """What a new interpreter prints, as lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    *rounds, reached = output(KILLED, str(tmp_path / "run"), folder=tmp_path)

    assert rounds == ["True True True True True"] * 12
    assert int(reached) > 0


def test_kill_at_any_step_of_writing_leaves_a_latest_and_a_best(tmp_path: Path) -> None:
    *killed, unharmed = output(EVERYWHERE, str(tmp_path), folder=tmp_path)

    # Latest, best; the states are theirs; in the end the best is the second, and no file too many.
    old, between, new = "1 1 True 2 2", "1 2 True 2 2", "2 2 True 2 2"
    # Two files: fsync, rename, fsync of the folder each, and before them nothing; then a removal.
    count = {line: killed.count(line) for line in (old, between, new)}
    assert killed == [old] * count[old] + [between] * count[between] + [new] * count[new]
    assert (count[old], count[between], count[new]) == (3, 6, 5)
    assert unharmed == new


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {}, resume=False):
        lines = output(LOCKED_OUT, str(tmp_path / "run"), folder=tmp_path)

    run = tmp_path / "run"
    remedy = "wait for it to end or choose another --out"
    assert lines == [f"{run} is in use by another run (process {os.getpid()}); {remedy}"]


def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    lines = output(FORBIDDEN, folder=tmp_path)

    tmp_path.chmod(0o755)
    why = "Permission denied; choose a folder that you may write to with --out"
    assert lines == [f"new cannot be made: {why}", f"lock cannot be locked: {why}"]


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunFolder.create(tmp_path, {}, resume=False) as run:
        run.log({"step": 1})
        run.save(1, {"w": torch.ones(10)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(RunFolderError, match=r"step-0*2\.safetensors cannot be written"):
                run.save(2, {"w": torch.ones(10_000)})
            with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be extended"):
                run.log({"step": 2, "note": "x" * 10_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        found = run.load_latest()
        assert found is not None
        assert (found[0], found[1]["w"].tolist()) == (1, [1.0] * 10)
        assert run.metrics() == [{"step": 1}]
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
            "step-000000000001.safetensors"
        ]
