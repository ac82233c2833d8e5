"""Audits the installed packages for known vulnerabilities, where the service that knows them is reached.

    python .ci/audit.py

pip-audit asks PyPI for each package. Behind a firewall, or a mirror that has packages alone, it
answers for none of them; then this says so and passes: what could not be asked is no reason to fail.
A vulnerability that is known fails.
"""

import json
import subprocess
import sys
from typing import Any

SECONDS = 300


def audit() -> int:
    """Audits, and tells what was found.

    Returns:
        1 if there is a vulnerability; else 0.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return _skipped(f"no answer within {SECONDS} s")
    except (ValueError, KeyError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return _skipped(last[0])
    return _judged(packages)


def _judged(packages: list[dict[str, Any]]) -> int:
    """Tells of the packages that an answer was had for."""
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return _skipped(f"none of {len(packages)} packages is known to the service reached")
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in "
        f"{', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in audited
        for fault in package["vulns"]
    ]
    print(f"audited {len(audited)} of {len(packages)} packages: {len(faults)} vulnerabilities")  # noqa: T201
    for fault in faults:
        print(f"  {fault}")  # noqa: T201
    return 1 if faults else 0


def _skipped(reason: str) -> int:
    print(f"NOT audited: {reason}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(audit())
