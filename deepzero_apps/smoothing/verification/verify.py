"""Verification: everything that follows from what is at hand is computed again.

Of our own certificates (a journal, alone or in its folder) that is every number; with the log of
votes beside them the counts, and with the data the images and the classifier. Of a plain log of the
field (``field_logs``) it is what its rows and its authors' statements imply about each other. The
rest is told as not checked. Nothing is asked of a classifier, and nothing is changed.
"""

__all__ = ["verify"]

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deepzero_apps.smoothing.certificates import ABSTAIN
from deepzero_apps.smoothing.verification.field_logs import (
    Claim,
    LogError,
    Row,
    check_radii,
    check_rows,
    read_log,
)
from deepzero_apps.smoothing.verification.findings import Report, coverage, gaps, repetitions
from deepzero_apps.smoothing.verification.journal_verification import Plan, Scene, verify_journal

_JSONL, _VOTES = "certificates.jsonl", "votes.jsonl"


def verify(
    path: Path | str,
    *,
    claim: Claim | None = None,
    total: int | None = None,
    plan: Plan | None = None,
    scene: Scene | None = None,
) -> Report:
    """Verifies certificates, or a plain log of the field.

    Args:
        path: A folder with certificates, a ``certificates.jsonl``, or a log.
        claim: What the authors of a plain log state; without it radii are compared with nothing.
        total: How many images the data set of a plain log has.
        plan: Which images our own certificates should be of.
        scene: Data and classifier of our own certificates, made again.

    Returns:
        What was found.

    Raises:
        LogError: If there is nothing to verify, or it is of no form known here.
        OSError: If a file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        nested = [p for p in (path, path / "certificates") if (p / _JSONL).is_file()]
        if not nested:
            raise LogError(f"{path} must hold {_JSONL}, or a folder certificates with it")
        return verify_journal(nested[0] / _JSONL, nested[0], plan=plan, scene=scene)
    if path.name == _VOTES:
        return verify(path.parent, plan=plan, scene=scene)
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{" and path.name != _JSONL:
        return _verify_log(content, path, claim, total)
    beside = path.parent if path.name == _JSONL else None
    return verify_journal(path, beside, plan=plan, scene=scene)


def _verify_log(content: bytes, path: Path, claim: Claim | None, total: int | None) -> Report:
    log = read_log(content, path.name)
    covered = coverage([row.index for row in log.rows], total)
    findings = [
        *log.findings,
        *check_rows(log.rows),
        *repetitions((r.line, r.index) for r in log.rows),
    ]
    findings += gaps(covered)
    notes = list(log.notes)
    checked = ["flags, abstention and signs of radii, row by row; duplicate and missing rows"]
    unchecked = [
        "the counts of votes: this form does not store them",
        "that selection and estimation votes are different ones",
        "classifier, images, noise and labels: no fingerprint is stored",
    ]
    if claim is None:
        unchecked.append("radii against sigma, alpha and n: none are stated with the log")
    else:
        wrong, remedies = check_radii(log.rows, claim)
        findings += wrong
        notes += remedies
        checked.append("radii against what is stated: sigma, alpha and n")
        unchecked.append("sigma, alpha and n themselves, beyond that radii fit them")
    if total is None:
        unchecked.append("that the log is complete: the number of images is not stated")
    return Report(
        file=str(path),
        facts=tuple(_log_facts(log.rows, claim, covered.stride)),
        checked=tuple(checked),
        unchecked=tuple(unchecked),
        findings=tuple(replace(f, file=path.name) for f in findings),
        notes=tuple(replace(f, file=path.name) for f in notes),
    )


def _log_facts(rows: Sequence[Row], claim: Claim | None, stride: int) -> Iterator[tuple[str, str]]:
    yield "kind", "plain log"
    if claim is not None:
        yield (
            "stated",
            (f"sigma {claim.sigma:g}, alpha {claim.alpha:g}, n0 {claim.n0:,}, n {claim.n:,}"),
        )
    yield "rows", f"{len(rows):,}, every {stride}." if stride > 1 else f"{len(rows):,}"
    if rows:
        yield "images", f"{min(r.index for r in rows)} ... {max(r.index for r in rows)}"
        yield (
            "right, abstained",
            (
                f"{sum(r.predicted == r.label for r in rows):,}, "
                f"{sum(r.predicted == ABSTAIN for r in rows):,}"
            ),
        )
    if claim is not None:
        yield "largest radius possible", f"{claim.largest:.4f}"
    if rows:
        yield "largest radius", max(rows, key=lambda r: r.radius).text
