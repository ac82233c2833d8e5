"""Runs the command line in processes of its own, which can be interrupted and killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PREAMBLE = "import sys; from deepzero_apps.cli import main; sys.exit(main())"
LIMITED = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
)


def start(*arguments: str, preamble: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", preamble + PREAMBLE, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(
    path: Path, *arguments: str, lines: int, by: signal.Signals, patience: float = 60
) -> tuple[int, str]:
    """Starts a command and stops it when a file has so many lines; gives code and message."""
    process = start(*arguments)
    deadline = time.monotonic() + patience
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the run did not start"
            time.sleep(0.002)
    finally:
        process.send_signal(by)
        _, said = process.communicate(timeout=60)
    return process.returncode, said
