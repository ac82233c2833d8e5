"""The command line's frame: verbs, settings files, refusals as exit codes."""

import json
import re
import warnings
from pathlib import Path

import pytest

from deepzero_apps import __version__
from deepzero_apps.cli import main
from deepzero_apps.cli.certify import show
from deepzero_apps.cli.defences import TUNED
from deepzero_apps.cli.verbs import COMMANDS
from deepzero_apps.smoothing.reporting.tables import Row

TINY = ["--method", "mse", "--steps", "2", "--width", "1", "--batch", "8"]


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["compare", "--help"], 0),
        (["compare"], 2),
        (["runs", "-h"], 0),
        (["runs"], 2),
    ],
)
def test_the_overview_names_every_command(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr().out
    one_word = ("demo", "train", "defend", "certify", "correct", "rollout")
    runs = ("runs list", "runs show", "runs compare")
    for verb in (*one_word, *runs, "compare estimators", "compare defence", "compare correction"):
        assert re.search(rf"^  {verb} ", said, re.MULTILINE), verb


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "verb",
    ["demo", "defend", "certify", "compare defence", "correct", "rollout", "compare correction"],
)
def test_help_explains_every_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: deepzero-apps {verb}" in said
    assert "--seed" in said
    assert "Seed of everything random" in said


@pytest.mark.parametrize("arguments", [["attack"], ["compare", "everything"], ["defend", "--no"]])
def test_what_does_not_exist_is_misuse(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = "".join(capsys.readouterr())
    assert arguments[-1] in said
    assert "Traceback" not in said


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_of_settings_is_overridden_by_flags(
    tmp_path: Path, centroids: str, suffix: str
) -> None:
    fields = {"classifier": centroids, "method": "mse", "steps": 9, "width": 1, "sigma": 0.25}
    file = tmp_path / f"settings.{suffix}"
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items())
    file.write_text(json.dumps(fields) if suffix == "json" else lines)

    assert main(["defend", "--config", str(file), "--steps", "2", "--out", "run"]) == 0

    config = json.loads(Path("run/config.json").read_text())
    assert (config["sigma"], config["steps"], config["classifier"]) == (0.25, 2, centroids)


def test_a_run_s_own_config_starts_the_same_run(tmp_path: Path, centroids: str) -> None:
    assert main(["defend", "--classifier", centroids, *TINY, "--out", "one"]) == 0
    assert main(["defend", "--config", "one/config.json", "--out", "two"]) == 0
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert (config["lr"], config["mu"]) == (TUNED["mse"].lr, TUNED["mse"].mu)
    one, two = (tmp_path / name / "denoiser.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("nested", [True, False])
def test_votes_may_stand_in_a_group_or_beside_the_others(
    tmp_path: Path, centroids: str, nested: bool
) -> None:
    votes = {"images": 2, "n": 20, "n0": 5}
    fields = {"classifier": centroids, **({"votes": votes} if nested else votes)}
    (tmp_path / "votes.json").write_text(json.dumps(fields))

    assert main(["certify", "--config=votes.json", "--n0", "6", "--out", "run"]) == 0

    config = json.loads(Path("run/config.json").read_text())
    assert config["votes"] | {"images": 2, "n": 20, "n0": 6} == config["votes"]
    assert main(["certify", "--config", "run/config.json", "--out", "again"]) == 0
    assert json.loads(Path("again/config.json").read_text())["votes"] == config["votes"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "sigmas: 1", "--config must hold fields of this command, got sigmas"),
        ("a.yaml", "votes: {m: 1}", "--config must hold fields of this command, got m"),
        ("a.yaml", "votes: 3", "field votes must be a mapping, got 3"),
        ("a.yaml", "sigma: loud", "--config: field sigma: .* got 'loud'"),
        ("a.yaml", "n: -1", "--n: Input should be greater than or equal to 0, got -1"),
        ("a.yaml", "- 1", "must hold a mapping of fields, got list"),
        ("a.json", "[1]", "must hold a mapping of fields, got list"),
        ("a.json", "{", "--config must name a readable JSON or YAML file"),
        ("a.yaml", "a: [", "--config must name a readable JSON or YAML file"),
        ("a.yaml", "", "must hold a mapping of fields, got NoneType"),
        ("b.yaml", None, "--config must name a readable JSON or YAML file, got b.yaml"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str | None,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)

    assert main(["certify", "--config", name, "--out", "run"]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "tpu9"], "--device: device must be one that this torch can use"),
        (["--device", "meta"], "--device: device must be one that this torch can use"),
        (["--device", "cuda:99"], "--device: device must be one that this torch can use"),
        (["--seed", "-1"], "--seed: .* got -1"),
        (["--seed", str(2**32)], "--seed: .* got 4294967296"),
        (["--threads", "0"], "--threads: .* got 0"),
        (["--sigma", "nan"], "--sigma: .* got nan"),
        (["--sigma", "inf"], "--sigma: .* got inf"),
        (["--sigma", "0"], "--sigma: .* got 0"),
        (["--q", "0"], "--q: .* got 0"),
        (["--mu", "nan"], "--mu: .* got nan"),
        (["--mu", "inf"], "--mu: .* got inf"),
        (["--lr", "0"], "--lr: .* got 0"),
        (["--width", "1000000"], "--width: .* got 1000000"),
        (["--depth", "1"], "--depth: .* got 1"),
        (["--method", "none"], "--method must train something, got none"),
        (["--method", "mse", "--start", "x"], "--start must be left out for mse"),
        (["--start", "x.safetensors"], "--start: path must be a safetensors file, found none"),
        (["--budget", "700"], "--budget must cover one step .* 1,000 clean answers .* got 700"),
        (["--batch", "1001"], "--batch must be at most the 1000 training images, got 1001"),
        (["--root", "x"], "--root: root must be left out"),
        (["--json", "absent/result.json"], "--json: json must name a file in a folder"),
        (["--json", "."], "--json: json must name a file in a folder"),
        (["--classifier", "oracle"], "--classifier must be svc, forest, cnn, resnet"),
        (["--classifier", "resnet20"], "--weights must name a safetensors file"),
        (["--classifier", "cnn", "--weights", "x"], "--classifier cnn: path must be a safetensor"),
    ],
)
def test_misuse_is_refused_by_flag_and_nothing_is_written(
    centroids: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(Path())

    assert main(["defend", "--out", "run", "--classifier", centroids, *flags]) == 2

    said = capsys.readouterr()
    assert re.search(words, said.err.replace("\n", " "))
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert files(Path()).keys() - {"asked.txt"} == before.keys()


def test_resume_without_a_folder_is_refused(
    centroids: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["defend", "--classifier", centroids, "--resume"]) == 2
    assert "--resume must come with --out" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_exhausted_memory_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2^34 weights behind 64 features take 4 TiB, which no machine hands out.
    monkeypatch.chdir(tmp_path)
    flags = ["--method", "zo-ae-ds", "--latent", str(2**34), "--budget", str(2**50)]

    assert main(["defend", "--out", "run", *flags]) in (1, 2)

    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_warnings_are_put_back() -> None:
    before = warnings.showwarning
    assert main(["--version"]) == 0
    assert warnings.showwarning is before


def test_a_narrow_terminal_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    accuracy = {"0.0": 0.911, "0.25": 0.822, "0.5": 0.733, "0.75": 0.644}
    row = Row(
        method="zo-ae-ds",
        acr=0.4567,
        acr_interval=(0.4321, 0.4789),
        certified_accuracy=accuracy,
        certified_accuracy_interval={},
        images=500,
        queries=1_000_000,
        seconds=345.0,
    )

    show([row], "a title that is longer than a narrow terminal, and folds")

    said = capsys.readouterr().out
    for number in ("91.1", "82.2", "73.3", "64.4", "0.457", "0.432-0.479", "1,000,000", "345"):
        assert number in said


def test_colors_are_off_where_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["certify", "--sigma", "0"]) == 2
    assert "\x1b" not in "".join(capsys.readouterr())


def test_what_was_asked_for_is_never_drawn_as_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "--problem", ":x"]) == 2
    assert "got :x: ValueError" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["runs list", "runs show", "runs compare"])
def test_help_of_what_computes_nothing_has_no_seed(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: deepzero-apps {verb}" in said
    assert "--log-level" in said
    assert "--json" in said
    assert "--seed" not in said


def test_every_command_has_the_flags_of_all() -> None:
    for verb, command in COMMANDS.items():
        fields = command.settings_class().model_fields
        assert {"json_file", "config", "log_level"} <= fields.keys(), verb
        assert command.function().__name__ == "run", verb
