"""``deepzero-apps verify``: recomputes certificates from their counts, and flags what is wrong.

Exit codes: 0 nothing is wrong, 1 something is, 2 there is nothing that could be verified.
"""

__all__ = ["VerifySettings", "run"]

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, model_validator
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepzero_apps.cli.driving import write_json
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.foreign import printable
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.verification.field_logs import Claim, LogError
from deepzero_apps.smoothing.verification.findings import Finding, Report
from deepzero_apps.smoothing.verification.journal_verification import Plan, Scene
from deepzero_apps.smoothing.verification.verify import verify

_SHARD = re.compile(r"[1-9]\d{0,5}/[1-9]\d{0,5}")


class VerifySettings(CommonSettings):
    """Recomputes certificates from their counts and flags what is wrong; asks no classifier.

    PATH is the folder of a certify run, a certificates.jsonl, or a plain log of the field (columns
    idx label predict radius correct time). Of a plain log state --sigma, --alpha and --n as its
    authors do.
    """

    path: Annotated[Path, tyro.conf.Positional]
    """What to verify."""

    data: bool = False
    """Also make data, denoiser and classifier of a certify run again and compare fingerprints; a
    classifier of your own is shown one image."""

    classifier: str = ""
    """For --data: the run's own classifier again, where it is a module:object or a service."""

    sigma: float | None = Field(None, gt=0, le=1e6)
    """Standard deviation of the noise of a plain log."""

    alpha: float | None = Field(None, gt=0, lt=1)
    """Risk of a false certificate that a plain log states."""

    n: int | None = Field(None, ge=1, le=10**12)
    """Votes that bound a probability, as a plain log states."""

    n0: int = Field(100, ge=1)
    """Votes that select the class, as a plain log states."""

    images: int | None = Field(None, ge=1)
    """How many images the data set of a plain log has, to see whether it was cut short."""

    show: int = Field(10, ge=1)
    """How many findings of a kind are printed; --json has all."""

    @model_validator(mode="after")
    def _whole_claim(self) -> Self:
        given = [value is not None for value in (self.sigma, self.alpha, self.n)]
        if any(given) and not all(given):
            raise ValueError("--sigma, --alpha and --n must be stated together")
        return self


def run(settings: VerifySettings) -> int:
    """Verifies and prints what was found."""
    try:
        report = verify(
            settings.path,
            claim=_claim(settings),
            total=settings.images,
            plan=_plan(settings.path),
            scene=_scene(settings) if settings.data else None,
        )
    except LogError as error:
        raise Misuse(f"PATH: {error}") from error
    except OSError as error:
        raise Misuse(f"PATH: cannot read {settings.path}: {error.strerror}") from error
    _show(report, settings.show)
    write_json(settings.json_file, asdict(report))
    return 1 if report.findings else 0


def _claim(settings: VerifySettings) -> Claim | None:
    if settings.sigma is None or settings.alpha is None or settings.n is None:
        return None
    return Claim(sigma=settings.sigma, alpha=settings.alpha, n=settings.n, n0=settings.n0)


def _plan(path: Path) -> Plan | None:
    """What the folder of a run says about its certificates."""
    folder = _folder(path)
    if folder is None:
        return None
    run_folder = RunFolder(folder)
    config, result = run_folder.config, run_folder.result() or {}
    votes = Path(str(config.get("run"))) if config.get("command") == "recertify" else None
    shard, wanted = str(config.get("shard", "")), result.get("wanted")
    settings = _planned_settings(config)
    if not isinstance(wanted, int) or not _SHARD.fullmatch(shard):
        return Plan(votes=votes, settings=settings)
    first, step = map(int, shard.split("/"))
    indices = range(first - 1, first - 1 + step * wanted, step)
    return Plan(
        indices=indices, finished=result.get("images") == wanted, votes=votes, settings=settings
    )


def _planned_settings(config: dict[str, Any]) -> Settings | None:
    """The settings of certificates that a run of certify names; None where it names none."""
    from deepzero_apps.cli.votes import Votes

    try:
        return Votes(**config["votes"]).settings(config["sigma"], config["seed"])
    except (KeyError, TypeError, ValueError, Misuse):
        return None


def _folder(path: Path) -> Path | None:
    """The folder of the run that certificates are of; None where there is none."""
    places = (path, path / "certificates") if path.is_dir() else (path.parent,)
    named = path.is_dir() or path.name in ("certificates.jsonl", "votes.jsonl")
    for place in places:
        if (
            named
            and (place / "certificates.jsonl").is_file()
            and (place / "config.json").is_file()
        ):
            return place
    return None


def _scene(settings: VerifySettings) -> Scene:
    """Makes data and classifier of a run again.

    Raises:
        Misuse: If there is no such run, or they cannot be had.
    """
    # what trains and fits is not needed otherwise
    from deepzero_apps.cli.made_again import certified_images, certifying, classifier_again

    folder = _folder(settings.path)
    if folder is None:
        raise Misuse(f"--data must come with the folder of a certify run, got {settings.path}")
    run_settings = certifying(folder, device=settings.device)
    images = certified_images(run_settings)
    classifier, suspect = classifier_again(run_settings, folder, settings.classifier)
    return Scene(
        images=images.pixels(), labels=images.labels, classifier=classifier, suspect=suspect
    )


def _show(report: Report, most: int) -> None:
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    facts = Table(
        title=escape(printable(report.file)), box=SIMPLE, show_header=False, pad_edge=False
    )
    for name, value in report.facts:
        facts.add_row(name, escape(printable(value)))
    facts.add_row("checked", "\n".join(report.checked))
    facts.add_row("not checked", "\n".join(report.unchecked))
    console.print(facts)
    for line in _lines(report.findings, most):
        console.print(f"FINDING {line}", markup=False)
    for line in _lines(report.notes, most):
        console.print(f"note    {line}", markup=False)
    count = len(report.findings)
    console.print(f"{count} finding{'s' if count != 1 else ''}" if count else "nothing is wrong")


def _lines(findings: Sequence[Finding], most: int) -> Iterator[str]:
    """Findings as lines, of each kind as many as are to be shown."""
    total = Counter(finding.kind for finding in findings)
    shown = Counter[str]()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= most:
            yield finding.text
        if shown[finding.kind] == total[finding.kind] > most:
            yield f"{finding.kind}: {total[finding.kind] - most} more; --show or --json has all"
