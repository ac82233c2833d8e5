"""The comparison of estimators: its rows, its refusals, its independence of processes."""

import json
from pathlib import Path

import pytest
import torch

from deepzero_apps.cli import main
from deepzero_apps.cli.compare_estimators import Cell, train_cell

TINY = ["compare", "estimators", "--depths", "1", "2", "--width", "2", "--steps", "2"]
TINY += ["--seeds", "2", "--batch", "16", "--workers", "1"]


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)  # as in a process of its own


WEIGHTS = {1: 20 + 4 + 30, 2: 20 + 4 + 38 + 4 + 30}
"""At width 2: 3x3 convolutions of 1 or 2 channels with biases, batch norms, ten classes."""


def test_rows_have_accuracies_and_queries_of_every_estimator_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"

    code = main([*TINY, "--json", str(tmp_path / "rows.json"), "--out", str(out)])

    assert code == 0
    result = json.loads((tmp_path / "rows.json").read_text())
    assert result["settings"]["seeds"] == 2
    found = {(r["estimator"], r["parameters"]): r for r in result["rows"]}
    assert set(found) == {(e, d) for e in ("fo", "cge", "rge") for d in WEIGHTS.values()}
    for (estimator, d), row in found.items():
        assert row["queries"] == 2 * (1 if estimator == "fo" else d + 1)
        assert 0 <= row["accuracy"] <= 100
        assert row["seconds"] > 0
        a, b = row["accuracies"]
        assert row["accuracy"] == pytest.approx((a + b) / 2)
        assert row["accuracy_std"] == pytest.approx(abs(a - b) / 2**0.5)  # of a sample of two
    assert (out / "estimators.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "result.json").read_text()) == result
    printed = capsys.readouterr().out
    assert "RGE, q = d" in printed
    assert all(str(weights) in printed for weights in WEIGHTS.values())


def test_cge_ends_where_first_order_ends() -> None:
    # The slopes differ by mu H / 2 + rounding, about 1 % of them; ten steps of Adam move the
    # loss of 2.3 by about 0.5, so that 1 % is far below 0.05.
    cells = [
        Cell(estimator, 1, 4, 10, batch=32, mu=1e-3, lr=0.03, seed=1)
        for estimator in ("fo", "cge")
    ]
    first, cge = (train_cell(cell) for cell in cells)

    assert cge["loss"] == pytest.approx(first["loss"], abs=0.05)


def test_a_cell_depends_on_its_fields_alone() -> None:
    cell = Cell("rge", 1, 2, 3, batch=16, mu=1e-4, lr=0.03, seed=4)
    first, second = train_cell(cell), train_cell(cell)

    for name in ("accuracy", "validation_accuracy", "loss", "queries"):
        assert first[name] == second[name]


def test_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    found = []
    for jobs in ("1", "2"):
        file = tmp_path / f"{jobs}.json"
        flags = ["--estimators", "fo", "--depths", "1", "--workers", jobs, "--json", str(file)]
        assert main([*TINY, *flags]) == 0
        found.append(json.loads(file.read_text())["rows"][0]["accuracies"])

    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--depths", "4"], "--depths must lie in 1...3"),
        (["--depths", "1", "1"], "--depths must be one or more different values"),
        (["--steps", "5", "5", "5"], "--steps must be one number from 1, or one for each"),
        (["--steps", "0"], "--steps must be one number from 1"),
        (["--mu-cge", "0"], "--mu-cge"),
        (["--lr-rge", "nan"], "--lr-rge"),
        (["--batch", "1"], "--batch"),
        (["--json", "/nowhere/rows.json"], "json must name a file in a folder that exists"),
    ],
)
def test_misuse_is_refused_by_flag_before_any_work(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_in_use_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("x")

    assert main([*TINY, "--out", str(tmp_path)]) == 2
    assert "--out must be a new or an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
