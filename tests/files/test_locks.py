"""Locks: exclusive, released with the file, told by whom they are held."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepzero_apps.files import InUse, lock


def test_lock_is_exclusive_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    with pytest.raises(InUse, match=r"lock is in use by another process") as caught:
        lock(tmp_path / "lock")
    assert caught.value.owner == str(os.getpid())

    held.close()
    lock(tmp_path / "lock").close()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from deepzero_apps.files import lock; "
        "held = lock(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "lock")], check=False)
    owner = (tmp_path / "lock").read_text()

    lock(tmp_path / "lock").close()

    assert done.returncode == -signal.SIGKILL
    assert int(owner) != os.getpid() == int((tmp_path / "lock").read_text())
