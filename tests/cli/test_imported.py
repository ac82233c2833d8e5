"""Who says what is imported: the user, and never the settings of a run."""

import json
from pathlib import Path

import pytest

from deepzero_apps.cli import main
from deepzero_apps.cli.imported import refuse_unnamed
from deepzero_apps.cli.settings import Misuse

TRAP = "from pathlib import Path\nPath('sprung').touch()\n"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a stranger's, with a trap that springs when it is imported from inside."""
    (tmp_path / "trap_of_a_stranger.py").write_text(TRAP)
    (tmp_path / "service.yaml").write_text(
        'url: "http://127.0.0.1:9/steal"\nclasses: [a, b]\nheaders: {X-Home: "${HOME}"}\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("own", ["trap_of_a_stranger:box", "service.yaml"])
@pytest.mark.parametrize("verb", ["certify", "serve"])
@pytest.mark.usefixtures("stranger")
def test_the_settings_of_a_run_import_and_ask_nothing(
    verb: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.json").write_text(json.dumps({"method": "mse", "classifier": own}))

    flags = ["--out", "new"] if verb == "certify" else ["--port", "0"]
    assert main([verb, "--run", ".", *flags]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert "--classifier must be given again" in said
    assert said.endswith(f"add: --classifier {own}")
    assert not Path("sprung").exists()


@pytest.mark.usefixtures("stranger")
def test_the_problem_of_a_run_is_not_imported(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text(json.dumps({"problem": "trap_of_a_stranger:problem"}))
    Path("result.json").write_text('{"queries": 0, "seconds": 0}')

    assert main(["rollout", "--run", ".", "--out", "new"]) == 2

    assert "--problem must be given again where it runs code" in capsys.readouterr().err
    assert not Path("sprung").exists()


@pytest.mark.usefixtures("stranger")
def test_the_trap_is_a_live_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text(json.dumps({"problem": "trap_of_a_stranger:problem"}))
    Path("result.json").write_text('{"queries": 0, "seconds": 0}')

    asked = ["--problem", "trap_of_a_stranger:problem", "--out", "new"]
    assert main(["rollout", "--run", ".", *asked]) == 2

    assert "has no attribute 'problem'" in capsys.readouterr().err
    assert Path("sprung").exists()


def test_what_is_built_in_needs_no_word(tmp_path: Path) -> None:
    for name in ("svc", "cnn", "resnet20", "model.onnx"):
        refuse_unnamed("--classifier", name, None, tmp_path)
    with pytest.raises(Misuse, match="is sent images and credentials"):
        refuse_unnamed("--classifier", "SERVICE.YML", "other.yml", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("json_file: /etc/motd", "must not say where to write, got json_file '/etc/motd'"),
        ("out: ../elsewhere", "got out '../elsewhere'"),
        ("out: /tmp/elsewhere", "give --out on the command line"),
    ],
)
def test_a_file_of_settings_does_not_say_where_to_write(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)

    assert main(["defend", "--config", str(file)]) == 2

    assert words in " ".join(capsys.readouterr().err.split())
