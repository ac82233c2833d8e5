"""Our own certificates, verified: every number of a journal, and what lies beside it.

Each certificate is computed again from its counts (``certificate_checks``). Across certificates,
images must be there once and of one kind. The log of votes, where there is one, must have the
counts (``vote_checks``), the table the same rows, and data and classifier, where they are at hand,
the same fingerprints.
"""

__all__ = ["Plan", "Scene", "verify_journal"]

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import ABSTAIN, Certificate
from deepzero_apps.smoothing.fingerprint import fingerprint
from deepzero_apps.smoothing.procedures import largest_radius
from deepzero_apps.smoothing.verification.certificate_checks import check, check_settings
from deepzero_apps.smoothing.verification.field_logs import LogError, Row, read_log
from deepzero_apps.smoothing.verification.findings import (
    Finding,
    Report,
    coverage,
    gaps,
    repetitions,
)
from deepzero_apps.smoothing.verification.vote_checks import against_votes
from deepzero_apps.smoothing.vote_log import VoteLogError, Votes, read_votes

_JSONL, _TSV, _VOTES = "certificates.jsonl", "certificates.tsv", "votes.jsonl"
_CERTIFICATE = TypeAdapter(Certificate)
_MOST = 10**9

_Placed = tuple[int, Certificate]
"""A certificate and its line."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the folder of a run says about its certificates.

    Args:
        indices: The images that were to be certified; those behind the last one, on its stride,
            may be there too. None if it does not say.
        finished: Whether all of them were, so that none may be missing.
        votes: The folder of the votes that they were made from, if it is another one.
        settings: The settings that they were to have, if it says.
    """

    indices: range | None = None
    finished: bool = True
    votes: Path | None = None
    settings: Settings | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Data and classifier, made again.

    Args:
        images: The images, ``(n, channel, height, width)``, floating.
        labels: Their classes, ``(n,)``.
        classifier: Fingerprint of what is certified.
        suspect: What has changed if the fingerprint has.
    """

    images: Tensor
    labels: Tensor
    classifier: str
    suspect: str = "classifier or denoiser"


def verify_journal(
    file: Path, folder: Path | None, *, plan: Plan | None = None, scene: Scene | None = None
) -> Report:
    """Verifies the certificates of a journal.

    Args:
        file: The journal's file.
        folder: Where its log of votes and its table are; None if it stands alone.
        plan: Which images were to be certified.
        scene: Data and classifier, made again.

    Returns:
        What was found.

    Raises:
        OSError: If a file cannot be read.
    """
    placed, damaged, notes = _read(file.read_bytes(), file.name)
    certificates = [c for _, c in placed]
    plan = plan or Plan()
    findings = list(damaged)
    votes = _log_of(plan.votes or folder, findings, notes)
    findings += _single(placed, file.name, None if votes is None else votes.settings)
    findings += _together(placed, file.name)
    findings += _as_planned(certificates, plan, file.name)
    (findings if plan.finished else notes).extend(_missing(certificates, plan, file.name))
    notes += _remarks(certificates)
    checked = ["bound, class, radius, rounding and flag of each certificate, from its counts"]
    checked.append("duplicates, missing images, settings and sources across certificates")
    unchecked = ["that the classifier gave these votes: that would cost every query again"]
    if votes is None:
        unchecked.append(f"that the counts are those of votes: no readable {_VOTES} beside them")
    else:
        findings += _located(against_votes(certificates, votes), placed, file.name)
        notes += _unfinished(certificates, votes)
        checked.append(f"counts, images and labels against the votes in {_VOTES}")
    if folder is not None and (folder / _TSV).is_file():
        findings += _table(certificates, (folder / _TSV).read_bytes())
        checked.append(f"{_TSV} against {file.name}")
    if scene is None:
        unchecked.append("that images, classifier and denoiser are the same: no data at hand")
    else:
        findings += _located(_against_scene(certificates, scene), placed, file.name)
        checked.append("fingerprints of images, classifier and denoiser against the data")
    facts = (*_facts(certificates), *_cost(certificates, votes))
    return Report(
        file=str(file),
        facts=facts,
        checked=tuple(checked),
        unchecked=tuple(unchecked),
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _read(content: bytes, file: str) -> tuple[list[_Placed], list[Finding], list[Finding]]:
    """Certificates with their lines, damaged lines, and a torn last line."""
    whole = content.rfind(b"\n") + 1
    placed, damaged, notes = [], [], []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            certificate = _CERTIFICATE.validate_json(line, strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in fault["loc"]) or "JSON"
            kind = "settings" if fault["loc"] == ("settings",) else "damaged line"
            found = f"{place}: {fault['msg']}"
        except (ArithmeticError, RecursionError, TypeError):  # of scipy, for integers of any size
            kind, found = "damaged line", "settings: numbers out of all proportion"
        else:
            absurd = _absurd(certificate)
            if absurd is None:
                placed.append((number, certificate))
                continue
            kind, found = "damaged line", f"{absurd}: a number out of all proportion"
        damaged.append(Finding(kind=kind, found=found, file=file, line=number))
    if whole < len(content):
        found = f"{len(content) - whole} bytes without an end; resuming the run cuts them off"
        last = content[:whole].count(b"\n") + 1
        notes.append(Finding(kind="torn last line", found=found, file=file, line=last))
    return placed, damaged, notes


def _absurd(c: Certificate) -> str | None:
    """The name of a number that no run can have had, and no arithmetic would survive."""
    numbers = {
        **{name: getattr(c, name) for name in ("index", "votes", "other_votes", "asked", "lost")},
        "n0": c.settings.n0,
        "n": c.settings.n,
        "sigma": c.settings.sigma,
        "selection_counts": max(map(abs, c.selection_counts), default=0),
        "label": c.label,
        "predicted": c.predicted,
        "selected": c.selected,
    }
    return next((name for name, value in numbers.items() if not abs(value) <= _MOST), None)


def _single(placed: Sequence[_Placed], file: str, drawn: Settings | None) -> Iterator[Finding]:
    for line, certificate in placed:
        for finding in check(certificate, drawn):
            yield replace(finding, file=file, line=line)


def _together(placed: Sequence[_Placed], file: str) -> Iterator[Finding]:
    """What shows only across certificates."""
    if not placed:
        yield Finding(kind="no certificate", found="there is none", file=file)
        return
    found = [*repetitions((line, c.index) for line, c in placed)]
    settings = Counter(c.settings for _, c in placed).most_common(1)[0][0]
    found += check_settings(settings)
    yield from (replace(finding, file=file) for finding in found)
    yield from _mixed(placed, file)


def _as_planned(certificates: Sequence[Certificate], plan: Plan, file: str) -> Iterator[Finding]:
    """Settings of certificates that are not those of the run's config.json."""
    if plan.settings is None:
        return
    wanted = asdict(plan.settings)
    found = {
        (name, value)
        for settings in {c.settings for c in certificates}
        for name, value in asdict(settings).items()
        if value != wanted[name]
    }
    for name, value in sorted(found, key=repr):
        yield Finding(
            kind="settings", found=f"{name} {value!r}", expected=repr(wanted[name]), file=file
        )


def _missing(certificates: Sequence[Certificate], plan: Plan, file: str) -> Iterator[Finding]:
    indices = [c.index for c in certificates]
    wanted = plan.indices
    if wanted is not None and indices:
        wanted = range(wanted.start, max(wanted.stop, *(i + 1 for i in indices)), wanted.step)
    return (replace(finding, file=file) for finding in gaps(coverage(indices, wanted=wanted)))


def _mixed(placed: Sequence[_Placed], file: str) -> Iterator[Finding]:
    """Certificates whose settings or classifier are not those of most."""
    usual = Counter(c.settings for _, c in placed).most_common(1)[0][0]
    classifier = Counter(c.source.classifier for _, c in placed).most_common(1)[0][0]
    for line, c in placed:
        has, should = asdict(c.settings), asdict(usual)
        for name in (name for name in should if has[name] != should[name]):
            yield Finding(
                kind="mixed settings",
                found=f"{name} {has[name]!r}",
                expected=f"{should[name]!r}, as in most lines",
                file=file,
                line=line,
                index=c.index,
            )
        if c.source.classifier != classifier:
            yield Finding(
                kind="changed classifier or denoiser",
                found=f"fingerprint {c.source.classifier[:12]}",
                expected=f"{classifier[:12]}, as in most lines",
                file=file,
                line=line,
                index=c.index,
            )


def _remarks(certificates: Sequence[Certificate]) -> Iterator[Finding]:
    """What is worth knowing of sound certificates."""
    for name in ("package_version", "torch_version", "dtype", "device"):
        values = sorted({getattr(c.source, name) for c in certificates})
        if len(values) > 1:
            yield Finding(kind="mixed sources", found=f"{name}: {', '.join(values)}")
    told = Counter(words for c in certificates for words in c.findings)
    for words, count in told.items():
        yield Finding(kind="check of the black box", found=f"{words} (in {count} certificates)")
    ended = sum(c.stop == "budget" for c in certificates)
    if ended:
        yield Finding(
            kind="budget", found=f"it ended {ended} certificates; more votes may say more"
        )
    lost = sum(c.lost for c in certificates)
    if lost:
        yield Finding(kind="lost votes", found=f"{lost} queries had no answer and count against")


def _log_of(folder: Path | None, findings: list[Finding], notes: list[Finding]) -> Votes | None:
    """The log of votes in a folder; a damaged one becomes a finding, a torn line a note."""
    if folder is None or not (folder / _VOTES).is_file():
        return None
    try:
        votes = read_votes(folder)
    except VoteLogError as error:
        findings.append(Finding(kind="damaged votes", found=str(error), file=_VOTES))
        return None
    if not (folder / _VOTES).read_bytes().endswith(b"\n"):
        notes.append(Finding(kind="torn last line", found="left out", file=_VOTES))
    return votes


def _unfinished(certificates: Sequence[Certificate], votes: Votes) -> Iterator[Finding]:
    open_ = sorted(votes.images.keys() - {c.index for c in certificates})
    if open_:
        found = f"{len(open_)} images have votes and no certificate, the first is {open_[0]}"
        yield Finding(kind="unfinished", found=found, file=_VOTES)


def _located(
    findings: Iterable[Finding], placed: Sequence[_Placed], file: str
) -> Iterator[Finding]:
    """Adds the lines of images to findings."""
    lines = {c.index: line for line, c in reversed(placed)}
    for finding in findings:
        line = None if finding.index is None else lines.get(finding.index)
        yield replace(finding, file=file, line=line)


def _against_scene(certificates: Sequence[Certificate], scene: Scene) -> Iterator[Finding]:
    found = Counter(c.source.classifier for c in certificates)
    for value, count in found.items():
        if value != scene.classifier:
            yield Finding(
                kind=f"changed {scene.suspect}",
                found=f"fingerprint {value[:12]} in {count} certificates",
                expected=f"{scene.classifier[:12]}, of the classifier at hand",
            )
    for c in certificates:
        if not 0 <= c.index < len(scene.images):
            expected = f"one of the {len(scene.images)} at hand"
            yield Finding(kind="image", found=f"image {c.index}", expected=expected, index=c.index)
            continue
        here = fingerprint(scene.images[c.index].float())
        if c.image != here:
            yield Finding(
                kind="image changed",
                found=f"fingerprint {c.image[:12]}",
                expected=f"{here[:12]}, of the image at hand",
                index=c.index,
            )
        label = int(scene.labels[c.index])
        if c.label != label:
            yield Finding(
                kind="label", found=f"class {c.label}", expected=f"{label}", index=c.index
            )


def _table(certificates: Sequence[Certificate], content: bytes) -> Iterator[Finding]:
    """The journal's table against the journal: it follows from it."""
    try:
        log = read_log(content, _TSV)
    except LogError as error:
        yield Finding(kind="damaged table", found=str(error), file=_TSV)
        return
    yield from log.findings
    twice = repetitions((row.line, row.index) for row in log.rows)
    yield from (replace(finding, file=_TSV) for finding in twice)
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in log.rows:
        rows[row.index].append(row)
    for c in certificates:
        own = rows.pop(c.index, [])
        said = (c.label, c.predicted, f"{c.radius:.4f}", c.correct)
        told = [(row.label, row.predicted, row.text, row.correct) for row in own]
        if said not in told:
            found = f"{told[0]}" if told else "no row"
            yield Finding(kind="table", found=found, expected=f"{said}", file=_TSV, index=c.index)
    for index in sorted(rows):
        yield Finding(
            kind="table", found="a row", expected=f"none: not in {_JSONL}", file=_TSV, index=index
        )


def _facts(certificates: Sequence[Certificate]) -> Iterator[tuple[str, str]]:
    if not certificates:
        return
    settings = Counter(c.settings for c in certificates).most_common(1)[0][0]
    yield "kind", "certificates"
    yield "procedure", settings.procedure
    yield "sigma", f"{settings.sigma:g}"
    yield "alpha", f"{settings.alpha:g}"
    yield "n0", f"{settings.n0:,}"
    yield "n", f"{settings.n:,}"
    if settings.radii:
        yield "radii", ", ".join(f"{r:g}" for r in settings.radii)
    yield "noise", f"{settings.noise}, seed {settings.seed}"
    yield "certificates", f"{len(certificates):,}"
    yield (
        "right, abstained",
        (
            f"{sum(c.correct for c in certificates):,}, "
            f"{sum(c.predicted == ABSTAIN for c in certificates):,}"
        ),
    )
    yield "largest radius possible", f"{largest_radius(settings):.4f}"
    yield "largest radius", f"{max(c.radius for c in certificates):.4f}"


def _cost(certificates: Sequence[Certificate], votes: Votes | None) -> Iterator[tuple[str, str]]:
    if certificates:
        yield "queries", f"{sum(c.asked for c in certificates):,}"
    if votes is not None:
        yield "queries in the log", f"{votes.spent:,}, {votes.unanswered:,} of them not written"
