"""The process behind a pipe: what is left of it, interrupts, threads, forks."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from solvers.external import Program, SimulatorError
from tests.programs import ADDER, BAD, FIELDS, GOOD, Array, adder, exists, open_files, pid


def test_nothing_is_left_behind() -> None:
    adder().close()
    before, threads = open_files(), threading.active_count()
    numbers = []
    for _ in range(3):
        with adder("os._exit(1)") as program:
            program.step(FIELDS, GOOD)
            numbers.append(pid(program))
            with pytest.raises(SimulatorError):
                program.step(FIELDS, BAD)
            program.step(FIELDS, GOOD)
            numbers.append(pid(program))
        program.close()
    forgotten = adder()
    forgotten.step(FIELDS, GOOD)
    numbers.append(pid(forgotten))
    del forgotten
    gc.collect()
    assert not any(map(exists, numbers))
    assert (open_files(), threading.active_count()) == (before, threads)


def test_what_a_program_started_is_killed_with_it() -> None:
    code = (
        "import os, subprocess, sys, time;"
        "child = subprocess.Popen(['sleep', '60']); sys.stderr.write(str(child.pid));"
        "sys.stderr.flush(); time.sleep(60)"
    )
    program = Program([sys.executable, "-I", "-S", "-c", code], (1,), timeout=1.0)
    with pytest.raises(SimulatorError, match=r"it said: \d+$") as caught:
        program.step(np.zeros((1, 1)), np.zeros(1))
    child = int(str(caught.value).rsplit(maxsplit=1)[-1])
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    # An orphan is waited for by process 1, where that does so.
    return exists(number) and not (state.exists() and ") Z" in state.read_text())


def test_an_interrupt_kills_the_program_and_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with adder() as program:
        program.step(FIELDS, GOOD)
        first = pid(program)

        def interrupted(*_: object) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("solvers.pipes._readable", interrupted)
            with pytest.raises(KeyboardInterrupt):
                program.step(FIELDS, GOOD)
        assert not exists(first)
        np.testing.assert_array_equal(program.step(FIELDS, GOOD)[0], FIELDS + 1)


def test_threads_take_turns() -> None:
    with adder() as program:
        answers: list[Array] = []

        def work(k: int) -> None:
            for _ in range(20):
                answers.append(program.step(FIELDS + k, GOOD)[0] - k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert program.steps == len(answers) == 80
        np.testing.assert_array_equal(answers, np.broadcast_to(FIELDS + 1, (80, *FIELDS.shape)))


FORK = """
import gc, os, sys
import numpy as np
from solvers.external import Program
code, fields, nu = sys.argv[1], np.arange(6.0).reshape(2, 1, 3), np.zeros(2)
program = Program([sys.executable, "-I", "-S", "-c", code, ""], (1, 3), native_size=1)
program.step(fields, nu)
first = program._pipe._process.pid
child = os.fork()
if child == 0:
    after, _ = program.step(fields, nu)
    print(int(after.sum()), program._pipe._process.pid != first, flush=True)
    sys.exit()
os.waitpid(child, 0)
after, _ = program.step(fields, nu)
print(int(after.sum()), program._pipe._process.pid == first)
"""


def test_a_fork_starts_a_program_of_its_own_and_leaves_this_one_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, ADDER], capture_output=True, text=True, check=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("21 True\n21 True\n", "")
