"""``deepzero-apps verify``: exit codes, what it prints, and data made again."""

import json
import re
import shutil
from pathlib import Path

import pytest

from deepzero_apps.cli import main
from tests.smoothing.sound_certificates import sound, write

VOTES = ["--images", "4", "--n", "60", "--n0", "10", "--sigma", "0.25"]
LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.978\t1\t1\n20\t3\t3\t0.955\t1\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "run", [sound(i, votes=90 + i) for i in range(4)])
    return tmp_path / "run"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a log and an empty file."""
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("log").write_text(LOG)


def test_what_holds_exits_with_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0

    said = capsys.readouterr().out
    assert re.search(r"largest radius possible +0\.7502", said)
    assert "not checked" in said
    assert said.rstrip().endswith("nothing is wrong")


def test_findings_exit_with_1_and_are_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = folder / "certificates.jsonl"
    file.write_text(file.read_text().replace('"votes": 92', '"votes": 93'))

    assert main(["verify", str(folder), "--json", str(tmp_path / "found.json")]) == 1

    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FINDING")]
    document = json.loads((tmp_path / "found.json").read_text())
    assert len(lines) == len(document["findings"])
    assert "certificates.jsonl, line 3, image 2: votes: 93 votes and 8 others" in lines[0]
    assert document["findings"][0]["kind"] == "votes"


def test_settings_that_the_run_does_not_name_are_found(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--classifier", centroids, "--out", "run"]) == 0
    assert main(["verify", "run"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    config["votes"]["alpha"] = 0.4
    Path("run/config.json").write_text(json.dumps(config))
    capsys.readouterr()

    assert main(["verify", "run"]) == 1

    assert "settings: alpha 0.001, expected 0.4" in capsys.readouterr().out


def test_a_plain_log_needs_the_statements_of_its_authors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text(LOG)
    stated = ["--sigma", "0.25", "--n", "100000", "--alpha"]

    assert main(["verify", str(log)]) == 0
    assert main(["verify", str(log), *stated, "0.001", "--images", "60"]) == 1
    said = capsys.readouterr().out
    assert "radius 0.978, expected at most 0.952864" in said
    assert "no row for image 40" in said
    assert "alpha 0.01 explains all 2 radii" in said


def test_many_findings_of_a_kind_are_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{i}\t3\t3\t9.5\t1\t1\n" for i in range(30))
    (tmp_path / "log").write_text(LOG.splitlines()[0] + "\n" + rows)
    stated = ["--sigma", "0.25", "--n", "1000", "--alpha", "0.001"]

    assert main(["verify", str(tmp_path / "log"), *stated, "--show", "4"]) == 1

    said = capsys.readouterr().out
    assert said.count("radius impossible: radius 9.5") == 4
    assert "radius impossible: 26 more" in said
    assert "30 findings" in said


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "cannot read absent: No such file"),
        (["empty"], "empty is empty"),
        (["."], "must hold certificates.jsonl"),
        (["log", "--sigma", "1"], "--sigma, --alpha and --n must be stated together"),
        (["log", "--data"], "--data must come with the folder of a certify run"),
    ],
)
def test_misuse_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == 2

    assert message in " ".join(capsys.readouterr().err.split())


def test_data_and_classifier_of_a_run_are_made_again(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", *VOTES, "--out", "run", "--classifier", centroids]) == 0
    assert main(["verify", "run", "--data", "--classifier", centroids]) == 0
    assert "fingerprints of images, classifier and denoiser" in capsys.readouterr().out

    config = Path("run/config.json")
    config.write_text(config.read_text().replace(":scores", ":labels"))

    assert main(["verify", "run"]) == 0
    renamed = centroids.replace(":scores", ":labels")
    assert main(["verify", "run", "--data", "--classifier", renamed]) == 1
    said = capsys.readouterr().out
    assert said.count("FINDING") == 1
    assert "changed classifier" in said


def test_a_changed_denoiser_is_told_from_a_changed_classifier(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["--method", "mse", "--classifier", centroids, "--sigma", "0.25", "--width", "2"]
    for name, seed in (("run", "0"), ("other", "1")):
        assert main(["defend", "--out", name, *train, "--steps", "2", "--seed", seed]) == 0
    own = ["--classifier", centroids]
    assert main(["certify", *VOTES, "--run", "run", *own]) == 0
    assert main(["verify", "run", "--data", *own]) == 0

    shutil.copy("other/denoiser.safetensors", "run/denoiser.safetensors")

    assert main(["verify", "run/certificates", "--data", *own]) == 1
    assert "changed denoiser: fingerprint" in capsys.readouterr().out


def test_shards_merged_and_certified_again_pass(centroids: str) -> None:
    flags = [*VOTES, "--procedure", "adaptive", "--radii", "0.1", "--classifier", centroids]
    for part in ("1", "2"):
        assert main(["certify", *flags, "--shard", f"{part}/2", "--out", f"part{part}"]) == 0
        assert main(["verify", f"part{part}"]) == 0
    assert main(["merge", "part1", "part2", "--out", "joint"]) == 0
    assert main(["recertify", "--run", "joint", "--alpha", "0.01", "--out", "again"]) == 0

    assert main(["verify", "joint"]) == 0
    assert main(["verify", "again"]) == 0
    assert main(["verify", "again", "--data", "--classifier", centroids]) == 0


def test_a_certificate_left_out_of_a_finished_run_is_missing(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--n", "60", "--n0", "10", "--sigma", "0.25", "--images", "6", "--shard", "2/2"]
    assert main(["certify", *flags, "--out", "run", "--classifier", centroids]) == 0
    file = Path("run/certificates.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    last = next(line for line in lines if json.loads(line)["index"] == 5)
    file.write_text("".join(line for line in lines if line != last))
    Path("run/certificates.tsv").unlink()

    assert main(["verify", "run"]) == 1

    assert "missing: no row for image 5" in capsys.readouterr().out
