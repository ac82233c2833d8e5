"""A small program for the tests of simulators behind pipes, and what there is to know of processes."""

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.external import Program

Array = NDArray[np.float64]

# Adds 1 to fields and to native parts, states of one number; does otherwise what its argument
# says where the parameter of the first state is negative.
ADDER = """
import os, struct, sys, time
source, sink, fault = sys.stdin.buffer, sys.stdout.buffer, sys.argv[1]
def read(count):
    return list(struct.unpack(f"<{count}d", source.read(8 * count)))
while len(header := source.read(32)) == 32:
    b, n, m, f = struct.unpack("<4q", header)
    fields, parameters, native, forcing = read(b * n), read(b), read(b * m), read(b * n * f)
    after, m = [x + 1 for x in fields], 1
    native = [x + 1 for x in native] or [0.0] * b
    if parameters[0] < 0:
        exec(fault)
    sink.write(struct.pack("<4q", b, n, m, 0))
    sink.write(struct.pack(f"<{b * n + b}d", *after, *native))
    sink.flush()
"""


def adder(fault: str = "", **settings: float) -> Program:
    command = [sys.executable, "-I", "-S", "-c", ADDER, fault]
    return Program(command, (1, 3), **{"native_size": 1, "timeout": 10.0, **settings})  # type: ignore[arg-type]


def pid(program: Program) -> int:
    assert program._pipe is not None
    return program._pipe._process.pid


def exists(number: int) -> bool:
    """Whether there is a process of that number, a zombie included."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


FIELDS = np.arange(6.0).reshape(2, 1, 3)
GOOD, BAD = np.array([0.0, 0.0]), np.array([-1.0, 0.0])
