"""``deepzero-apps compare defence``: the table, equal budgets, resumption, processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepzero_apps.cli import main
from deepzero_apps.cli.defences import METHODS
from tests.cli.conftest import CENTROIDS

SMALL = [
    "--steps",
    "3",
    "--width",
    "2",
    "--images",
    "3",
    "--n",
    "40",
    "--n0",
    "5",
    "--latent",
    "4",
]
GRID = """

def _on_grid(images):
    levels = 7 * images
    assert np.abs(levels - np.round(levels)).max() < 1e-5
"""
BUDGET = 1700  # 1000 clean answers and two steps of 64 images with 5 queries each


def compare(out: str, *flags: str) -> int:
    file = f"{out}.json"
    common = ["--out", out, "--budget", str(BUDGET), "--json", file, *SMALL]
    return main(["compare", "defence", *common, *flags])


def rows(out: str) -> list[dict[str, Any]]:
    """The rows of the JSON file, without what depends on the clock."""
    document: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


def test_all_methods_stand_in_the_table_at_equal_budgets(
    own_module: Callable[[str], str], cnn_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_module(CENTROIDS)
    flags = ["--classifier", "cnn", "--weights", str(cnn_weights), "--workers", "1"]

    assert compare("run", *flags) == 0

    document = json.loads(Path("run.json").read_text())
    assert set(document) == {"settings", "rows"}
    assert document["settings"]["budget"] == BUDGET
    assert [row["method"] for row in document["rows"]] == list(METHODS)
    for row in document["rows"]:
        assert set(row["certified_accuracy"]) == {"0.0", "0.25", "0.5", "0.75"}
        assert 0 <= row["acr"] <= 2
        assert row["images"] == 3
        low, high = row["acr_interval"]
        assert low <= row["acr"] <= high
        free = row["method"] in ("none", "mse", "fo-ds")
        assert row["queries"] == 0 if free else BUDGET - 700 < row["queries"] <= BUDGET
        assert row["seconds"] >= 0
    assert Path("run/certified_accuracy.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert all(f" {method} " in said for method in METHODS)


def test_a_classifier_without_gradients_leaves_fo_ds_out_and_resumes_for_nothing(
    centroids: str, asked: Callable[[], int]
) -> None:
    flags = ["--classifier", centroids, "--workers", "1"]
    assert compare("run", *flags) == 0
    first, queries = rows("run"), asked()
    methods = [row["method"] for row in first]
    assert methods == [m for m in METHODS if m != "fo-ds"]
    spent = sum(row["queries"] for row in first)
    shown = 1 + len(methods)  # one image each time that the black box is imported
    watched = 4  # an image, by certification
    assert queries == spent + len(methods) * 3 * (40 + 5 + watched) + shown

    assert compare("run", *flags, "--resume") == 0

    assert rows("run") == first
    assert asked() == queries + shown


def test_the_parts_of_a_comparison_are_runs_that_certify_continues(
    centroids: str, asked: Callable[[], int], tmp_path: Path
) -> None:
    assert (
        compare("run", "--classifier", centroids, "--methods", "none", "mse", "--workers", "1")
        == 0
    )
    queries = asked()
    votes = ["--images", "3", "--n", "40", "--n0", "5", "--classifier", centroids]

    assert main(["certify", "--run", "run/mse", "--resume", *votes]) == 0

    assert asked() == queries + 1
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_the_number_of_processes_decides_nothing(centroids: str) -> None:
    flags = ["--classifier", centroids, "--methods", "none", "mse", "zo-cv"]
    assert compare("one", *flags, "--workers", "1") == 0
    assert compare("two", *flags, "--workers", "2") == 0
    assert rows("one") == rows("two")
    weights = [Path(run, "zo-cv", "denoiser.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "fo-ds"], "--methods must name one besides fo-ds"),
        (["--methods", "mse", "mse"], "--methods must name each method once"),
        (["--methods", "magic"], "magic"),
        (["--budget", "700"], "--budget must cover one step of"),
        (["--latent", "5"], "--latent: latent must be a positive multiple of 4"),
        (["--workers", "0"], "--workers: "),
        (["--quantize", "0"], "--quantize: "),
        (["--answers", "poems"], "poems"),
        (["--n", "10"], "n must be at least 11 at alpha 0.001, got 10"),
        (["--json", "absent/file"], "--json: json must name a file in a folder that exists"),
        (["--resume"], None),
    ],
)
def test_misuse_is_refused_and_nothing_is_written(
    centroids: str, flags: list[str], words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", "run"] if words else []
    words = words or "--resume must come with --out"
    asked = ["--classifier", centroids, *out, *flags]

    assert main(["compare", "defence", *asked]) == 2

    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("run").exists()
    assert not Path("runs").exists()


def test_labels_alone_train_every_method_that_asks(own_module: Callable[[str], str]) -> None:
    flags = ["--classifier", f"{own_module(CENTROIDS)}:labels", "--workers", "1"]

    assert compare("run", *flags) == 0

    document = json.loads(Path("run.json").read_text())
    assert document["settings"]["answers"] == "labels"
    asking = [row for row in document["rows"] if row["method"] not in ("none", "mse")]
    assert [row["method"] for row in asking] == ["zo-ds", "zo-ae-ds", "deepzero", "zo-cv"]
    assert all(BUDGET - 700 < row["queries"] <= BUDGET for row in asking)
    votes = ["--images", "3", "--n", "40", "--n0", "5"]
    assert main(["certify", "--run", "run/zo-cv", "--resume", *votes, *flags[:2]]) == 0


def test_scores_reduced_to_labels_are_the_labels(own_module: Callable[[str], str]) -> None:
    name = own_module(CENTROIDS)
    flags = ["--methods", "none", "zo-cv", "--workers", "1"]
    assert compare("one", "--classifier", f"{name}:labels", *flags) == 0
    assert compare("two", "--classifier", f"{name}:scores", "--answers", "labels", *flags) == 0

    assert rows("one") == rows("two")
    files = [Path(run, "zo-cv", "denoiser.safetensors") for run in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_quantized_images_are_compared_and_seen(own_module: Callable[[str], str]) -> None:
    name = own_module(
        CENTROIDS.replace("    with open", "    _on_grid(images)\n    with open") + GRID
    )
    flags = ["--classifier", f"{name}:scores", "--workers", "1", "--quantize", "3"]

    assert compare("run", *flags, "--methods", "mse", "zo-ds", "zo-cv") == 0

    settings = json.loads(Path("run/zo-cv/config.json").read_text())
    assert (settings["quantize"], settings["mu"]) == (3, pytest.approx(2 / 7))


def test_another_comparison_s_folder_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--classifier", centroids, "--methods", "none", "--workers", "1"]
    assert compare("run", *flags) == 0
    before = Path("run/none/certificates/certificates.jsonl").read_bytes()

    assert compare("run", *flags, "--sigma", "0.25", "--resume") == 1

    assert "other settings (sigma: 0.5 in the folder, 0.25" in capsys.readouterr().err
    assert Path("run/none/certificates/certificates.jsonl").read_bytes() == before
