"""Flags of commands that evaluate, against a real Ray cluster of two nodes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzero_apps.cli import main

pytest.importorskip("ray")

RUNS = ["compare", "estimators", "--estimators", "fo", "--depths", "1", "--seeds", "2"]
RUNS += ["--batch", "16", "--steps", "30"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    if ray.is_initialized():
        ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_runs_of_a_comparison_are_spread_over_a_cluster(address: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"

    assert main([*RUNS, "--workers", "1", "--json", str(here)]) == 0
    assert main([*RUNS, "--cluster", address, "--json", str(there)]) == 0

    found = [json.loads(path.read_text(encoding="utf-8"))["rows"] for path in (here, there)]
    assert [row["accuracies"] for row in found[0]] == [row["accuracies"] for row in found[1]]


@pytest.mark.slow
def test_training_takes_all_that_the_cluster_has(address: str, tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--width", "4", "--batch", "600"]

    for name, more in (("here", []), ("there", ["--cluster", address])):
        assert main(["train", "--out", str(tmp_path / name), *flags, *more]) == 0

    weights = [(tmp_path / n / "weights.safetensors").read_bytes() for n in ("here", "there")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--cluster", "127.0.0.1:1", "got 127.0.0.1:1 ("),  # where nobody listens
        ("--workers", "99999", "--workers must be at most"),
    ],
)
def test_workers_that_cannot_be_had_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, flag: str, value: str, reason: str
) -> None:
    code = main(["train", "--out", str(tmp_path / "run"), flag, value])

    assert code == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_missing_ray_is_told_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed

    code = main(["train", "--out", str(tmp_path / "run"), "--workers", "2"])

    assert code == 2
    assert "pip install deepzero-apps[ray]" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
