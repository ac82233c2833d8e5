"""What is asked of Ray, and what of it is left as it was."""

import socket
import subprocess
import sys

import pytest

from deepzero_apps.workers import Pool, Where, where
from tests.workers.objects import Counter

pytest.importorskip("ray")

OPENED = """
import os, subprocess, sys
import ray
from deepzero_apps.workers import Pool, Where
from tests.workers.objects import Counter
with Pool(Counter, Where(1)) as pool:
    print(dict(pool.ask("double", [(1,)])))
    address = ray.get_runtime_context().gcs_address
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    code = f"import ray; ray.init(address={address!r}); print('came in')"
    came = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, text=True)
    print(came.returncode, came.stdout, "token" in came.stderr)
print(ray.is_initialized())
"""


GPUS = """
import ray
from deepzero_apps.workers import Pool, Where
from tests.workers.objects import Counter
ray.init(num_cpus=4, num_gpus=2, log_to_driver=False, logging_level="ERROR")
for count in (2, 4):
    with Pool(Counter, Where(count, device="cuda")) as pool:
        seen = {}
        while len(seen) < count:  # all have started
            seen.update(answer for _, answer in pool.ask("devices", [(0.1,)] * count))
        print(sorted(seen.values()))
"""


def test_each_worker_has_a_gpu_of_its_own_or_an_even_share() -> None:
    """Ray is told of two GPUs: it hands out numbers, with a GPU behind them or not."""
    done = subprocess.run(
        [sys.executable, "-c", GPUS], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout.splitlines() == ["['0', '1']", "['0', '0', '1', '1']"], done.stderr


def test_gpus_that_ray_does_not_see_are_refused() -> None:
    code = "from deepzero_apps.workers import Pool, Where; Pool(list, Where(1, device='cuda'))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )

    assert "ValueError: device must be cpu for workers on machines without a GPU" in done.stderr


def test_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"got 127\.0\.0\.1:1 "):
        Pool(Counter, Where(1, "127.0.0.1:1"))


def test_listener_that_is_not_ray_is_told_from_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait for minutes."""
    monkeypatch.setattr(where, "_STATUS", 5.0)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="does not answer as Ray within 5 s"):
            Pool(Counter, Where(1, address))


def test_ray_of_this_machine_refuses_strangers_and_ends_with_its_pool() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENED], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout.splitlines() == ["{0: 2}", "1  True", "False"], done.stderr
