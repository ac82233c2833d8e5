"""``deepzero-apps certify`` of a service that fails, by processes that are killed: the bill."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from deepzero_apps.cli import main
from deepzero_apps.smoothing.vote_log import read_votes
from tests.cli import processes
from tests.smoothing.services.launch import launched


@pytest.mark.slow
@pytest.mark.usefixtures("own_module")  # moves to a folder of its own
def test_the_log_knows_every_image_that_the_service_was_sent() -> None:
    lots = random.Random(0)
    fields = {"batch": 8, "concurrency": 2, "retries": 4, "backoff": 0.01}
    flags = ["--classifier", "service.yaml", "--sigma", "0.25", "--images", "6", "--n0", "20"]
    flags += ["--n", "300", "--out", "run"]
    with launched() as service:
        described = {"url": f"{service.url}/scores", "classes": list(range(10)), **fields}
        Path("service.yaml").write_text(json.dumps(described))
        service.script(*lots.choices(["well", "500", "503", "garbage"], [4, 1, 1, 1], k=5_000))
        for lines in (40, 90):
            resume = ["--resume"] if Path("run").exists() else []
            code, _ = processes.stopped(
                Path("run/votes.jsonl"),
                "certify",
                *flags,
                *resume,
                lines=lines,
                by=signal.SIGKILL,
            )
            assert code == -signal.SIGKILL
        assert main(["certify", *flags, "--resume", "--budget", "20000"]) == 0
        sent = sum(service.sizes())

    votes = read_votes("run")
    # a process may die between its note and the request: of two calls at a time, twice
    assert 0 <= votes.spent - sent <= 2 * 2 * 8
    assert sum(entry.rows for entry in votes.entries) == 6 * 320
    assert main(["verify", "run"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("own_module")
def test_with_workers_and_a_budget_the_log_knows_at_least_what_was_sent() -> None:
    lots = random.Random(1)
    fields = {"batch": 8, "concurrency": 2, "retries": 3, "backoff": 0.01}
    flags = ["--classifier", "service.yaml", "--sigma", "0.25", "--images", "6", "--n0", "20"]
    flags += ["--n", "300", "--out", "run", "--budget", "20000"]
    with launched() as service:
        described = {"url": f"{service.url}/scores", "classes": list(range(10)), **fields}
        Path("service.yaml").write_text(json.dumps(described))
        service.script(*lots.choices(["well", "500", "503", "garbage"], [4, 1, 1, 1], k=5_000))
        code, _ = processes.stopped(
            Path("run/votes.jsonl"),
            *["certify", *flags, "--workers", "2"],
            lines=60,
            by=signal.SIGKILL,
            patience=240,
        )
        assert code == -signal.SIGKILL
        time.sleep(3)  # workers notice within moments that nobody asks them any more
        killed = read_votes("run").spent - sum(service.sizes())
        assert main(["certify", *flags, "--resume", "--workers", "2"]) == 0
        sent = sum(service.sizes())

    votes = read_votes("run")
    # each of four calls has at most 16 rows, and three repetitions of each were advanced
    assert 0 <= killed <= 4 * 16 * 4
    assert 0 <= votes.spent - sent <= 2 * 4 * 16 * 4
    assert sum(entry.rows for entry in votes.entries) == 6 * 320
    assert main(["verify", "run"]) == 0
