"""``deepzero-apps recertify``: certificates made again from the votes of a run; nothing is asked."""

__all__ = ["RecertifySettings", "conclude", "refuse_taken", "run"]

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console

from deepzero_apps.cli.certify import show
from deepzero_apps.cli.driving import folder_for, opened, write_json
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.cli.votes import RADII
from deepzero_apps.smoothing.bounds import WITH_RADII, Procedure, Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.journal import Journal
from deepzero_apps.smoothing.recertify import recertify
from deepzero_apps.smoothing.reporting.tables import (
    Row,
    plot_certified_accuracy,
    statement,
    summarize,
)
from deepzero_apps.smoothing.vote_log import read_votes


class RecertifySettings(CommonSettings):
    """Makes certificates again from the votes of a run, at another alpha or for other radii.

    Sound changes are made, others are refused with the reason: votes that were looked at while they
    came in (procedures decide and anytime) do not allow the bound of a fixed number.
    """

    run: Anywhere
    """The folder of a certification, with its votes.jsonl."""

    alpha: float | None = Field(None, gt=0, lt=0.5)
    """Probability that a certificate is false; that of the run by default."""

    procedure: Procedure | None = None
    """That of the run by default; anytime is sound for the votes of any."""

    radii: tuple[float, ...] = ()
    """Other radii, for the votes of decide."""

    out: Path | None = None
    """The new folder; runs/recertify-TIME by default."""

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result."""
        return {**super().record(), "command": "recertify"}


def run(settings: RecertifySettings) -> int:
    """Recertifies and prints the table."""
    votes = read_votes(settings.run)
    try:
        wanted = _wanted(settings, votes.settings)
        certificates = recertify(votes, wanted)
    except ValueError as error:
        raise Misuse(f"--run, --alpha, --procedure, --radii: {error}") from error
    folder = folder_for("recertify", settings.out, resume=False)
    refuse_taken(folder)
    with opened("recertify", folder, settings, resume=False) as run_folder:
        row = conclude(folder, certificates, title=f"from the votes of {settings.run.name}")
        run_folder.finish({"images": len(certificates), "queries": 0})
    write_json(settings.json_file, {"settings": settings.record(), "rows": [row]})
    return 0


def refuse_taken(folder: Path) -> None:
    """Refuses a folder that holds anything: what is made of votes is made anew, not continued.

    Raises:
        Misuse: If it is neither absent nor empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Misuse(f"--out must be a new or an empty folder, got {folder}")


def conclude(folder: Path, certificates: list[Certificate], *, title: str) -> Row:
    """Writes certificates that were made from votes, their figure and table.

    Args:
        folder: Where to; an open run's folder.
        certificates: The certificates.
        title: What the table is called.

    Returns:
        The table's row.

    Raises:
        Misuse: If there is no certificate.
    """
    if not certificates:
        raise Misuse("the votes must suffice for one image at least, got none that is complete")
    one = certificates[0]
    with Journal(folder, one.settings, classifier=one.source.classifier) as journal:
        for certificate in certificates:
            if certificate.index not in journal.done:
                journal.append(certificate)
    plot_certified_accuracy({title: certificates}, folder / "certified_accuracy.png")
    seconds = sum(c.seconds for c in certificates)
    row = summarize(title, certificates, radii=RADII, queries=0, seconds=seconds)
    show(
        [row], f"certified accuracy (%), {len(certificates)} images, alpha {one.settings.alpha:g}"
    )
    console = Console(soft_wrap=True, highlight=False)
    console.print(statement(certificates, RADII), markup=False)
    console.print(f"certificates and figure in {folder}", markup=False)
    return row


def _wanted(settings: RecertifySettings, drawn: Settings) -> Settings:
    procedure = settings.procedure or drawn.procedure
    decides = procedure in WITH_RADII
    return replace(
        drawn,
        alpha=settings.alpha or drawn.alpha,
        procedure=procedure,
        radii=(settings.radii or drawn.radii) if decides else settings.radii,
    )
