"""The audit of dependencies: a vulnerability fails, an answer that cannot be had does not."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
FAULT = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
SOUND = {"name": "a", "version": "1.0", "vulns": []}
FAULTY = {"name": "b", "version": "1.5", "vulns": [FAULT]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (json.dumps({"dependencies": [SOUND, UNKNOWN]}), 0, "audited 1 of 2 packages: 0 vuln"),
        (json.dumps({"dependencies": [SOUND, FAULTY]}), 1, "b 1.5: PYSEC-1, mended in 2.0"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, "NOT audited: none of 1 packages"),
        (json.dumps({"dependencies": []}), 0, "NOT audited"),
        ("", 0, "NOT audited: connection refused"),
        ("[]", 0, "NOT audited: connection refused"),
    ],
)
def test_what_pip_audit_says_is_judged(
    *,
    audit: ModuleType,
    said: str,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.CompletedProcess([], code, stdout=said, stderr="x\nconnection refused\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)

    assert audit.audit() == code
    assert words in capsys.readouterr().out


def test_no_answer_in_time_is_no_failure(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 300)

    monkeypatch.setattr(audit.subprocess, "run", late)

    assert audit.audit() == 0
    assert "NOT audited: no answer within 300 s" in capsys.readouterr().out
