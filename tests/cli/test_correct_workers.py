"""``deepzero-apps correct --workers``: the same files whatever the number of workers.

A file of its own, for Ray is started in the working directory, where the user's module lies.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepzero_apps.cli import main
from deepzero_apps.workers import Where
from deepzero_apps.workers.where import Connection

pytest.importorskip("ray")


def correct(out: str, *flags: str) -> int:
    small = ["--width", "2", "--batch", "2", "--unrolled", "3", "--rollout-steps", "5"]
    return main(["correct", "--out", out, *small, *flags])


def result(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return found


@pytest.mark.slow
def test_any_number_of_workers_ends_in_the_same_files(decay: str) -> None:
    common = ["--problem", decay, "--q", "4", "--updates", "3"]
    connection = Connection(Where(4))
    try:
        for count in ("1", "2"):  # the first makes the trajectories too
            assert correct(count, *common, "--workers", count) == 0
        flags = ["--problem", decay, "--run", "2", "--workers", "2"]
        assert main(["rollout", "--out", "rolled", *flags]) == 0
    finally:
        connection.close()
    assert correct("alone", *common, "--data", "made/here") == 0

    assert result("2")["queries"] == result("1")["queries"] == result("alone")["queries"]
    assert Path("1/config.json").read_bytes() == Path("2/config.json").read_bytes()
    assert result("1")["validation"][1]["mae"] == result("2")["validation"][1]["mae"]
    one, two, alone = (load_file(f"{run}/corrector.safetensors") for run in ("1", "2", "alone"))
    for name, weights in one.items():
        assert torch.equal(weights, two[name])
        # three steps of Adam; signs of gradients that are nearly zero may differ
        torch.testing.assert_close(weights, alone[name], rtol=0, atol=6 * 5e-3)
    folder = Path("runs/trajectories/box_of_the_user-problem-6x8-6x8-seed0")
    for part in ("reference", "coarse"):
        for file in sorted((folder / part).glob("*.npz")):
            found, here = (
                np.load(f)["fields"] for f in (file, Path("made/here", part, file.name))
            )
            np.testing.assert_array_equal(found, here)
