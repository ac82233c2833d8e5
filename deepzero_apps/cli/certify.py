"""``deepzero-apps certify``: certificates for the images of a data set.

The folder then holds the votes (``votes.jsonl``, written before they count), the certificates
(``certificates.jsonl``, and ``certificates.tsv`` in the field's columns), ``certified_accuracy.png``,
``report.html`` and ``result.json``. An interrupted run is continued with ``--resume`` and asks
nothing twice that was answered; one that a budget ended is continued with a larger ``--budget``.
With ``--workers`` other processes form noisy copies, ask and count; the folder, its budget and its
log stay with this one, so that a run may be continued with another number of them, or none.
"""

__all__ = [
    "CertifySettings",
    "certify_into",
    "defended",
    "run",
    "show",
    "subject_of",
    "title_of",
]

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, ValidationError, model_validator
from rich.console import Console
from torch import nn

from deepzero_apps.cli.defend import DefendSettings, deployed
from deepzero_apps.cli.driving import folder_for, opened, write_json
from deepzero_apps.cli.imported import refuse_unnamed
from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.report import title_of_page
from deepzero_apps.cli.scenes import Anywhere, DefenceSettings, Scene, held, scene
from deepzero_apps.cli.settings import CommonSettings, Misuse, WatchedSettings
from deepzero_apps.cli.spreading import WorkersFlags
from deepzero_apps.cli.votes import RADII, Votes
from deepzero_apps.cli.watching import Watch
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.adapters import charge_retries, largest_call
from deepzero_apps.smoothing.blackbox import Classifier, Defended
from deepzero_apps.smoothing.certify import Certificate, certify, source_of
from deepzero_apps.smoothing.journal import Journal
from deepzero_apps.smoothing.reporting.page import write_page
from deepzero_apps.smoothing.reporting.tables import (
    Row,
    plot_certified_accuracy,
    statement,
    summarize,
    table,
)
from deepzero_apps.smoothing.vote_log import NAME as VOTES
from deepzero_apps.smoothing.vote_log import Ledger, VoteLog, read_votes
from deepzero_apps.zeroth_order.oracle import Meter

_LOGGER = logging.getLogger(__name__)


class CertifySettings(DefenceSettings, WorkersFlags, WatchedSettings):
    """Certifies a classifier, defended or not, by randomized smoothing (Cohen et al. 2019).

    With --run FOLDER, data, classifier, denoiser and sigma are those of that ``defend`` run; without,
    the bare classifier is certified as the flags describe it.
    """

    run: Anywhere | None = None
    """The folder of a finished defend run; flags that contradict its settings are refused. One whose
    classifier is a module:object or a service needs --classifier again."""

    out: Path | None = None
    """Where certificates go; RUN/certificates or runs/certify-TIME by default."""

    resume: bool = False
    """Continue the certificates in --out."""

    budget: int | None = Field(None, ge=1)
    """The most queries that may ever be spent in --out, to the query: votes, retries, canaries,
    and the image that a classifier of your own is shown to open it."""

    shard: str = Field("1/1", pattern=r"^\d{1,6}/\d{1,6}$")
    """Certify every K-th image, from the I-th on: I/K; join the parts by ``merge``."""

    canaries: int = Field(8, ge=0, le=1000)
    """Noisy images that watch the black box, at 4 queries each; 0 for none."""

    price: float = Field(0.0, ge=0, le=1e6)
    """What a query costs, for the report."""

    votes: Annotated[Votes, tyro.conf.OmitArgPrefixes] = Votes()
    """Votes and images."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.votes.settings(self.sigma, self.seed)
        first, step = self._parts()
        if not 1 <= first <= step:
            raise ValueError(f"--shard must be I/K with I in 1 ... K, got {self.shard}")
        return self

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result: money and watching do not."""
        fields = {**super().record(), "votes": self.votes.record()}
        return {k: v for k, v in fields.items() if k not in ("budget", "canaries", "price")}

    def indices(self, images: int) -> range:
        """Returns the places of the images that this shard certifies."""
        first, step = self._parts()
        return range(first - 1, images, step)

    def _parts(self) -> tuple[int, int]:
        first, step = self.shard.split("/")
        return int(first), int(step)


def run(settings: CertifySettings) -> int:
    """Certifies and prints the table."""
    folder = _folder(settings)
    _refuse_spent(settings, folder)
    name, classifier, view, resolved, trained = subject_of(settings)
    certificates, _ = certify_into(folder, classifier, view, resolved, title=f"certifying {name}")
    if not certificates:
        raise Misuse(
            f"--budget must pay for the votes of one image at least, got {settings.budget}; "
            f"votes are kept in {folder}: continue with --resume and a larger one"
        )
    row = summarize(
        name,
        certificates,
        radii=RADII,
        queries=trained.get("queries", 0),
        seconds=trained.get("seconds", 0.0),
    )
    show([row], title_of(view, resolved.sigma, resolved.votes, len(certificates)))
    _tell(folder, certificates)
    plot_certified_accuracy({name: certificates}, folder / "certified_accuracy.png")
    images = resolved.votes.chosen(view)
    write_page(
        folder / "report.html",
        certificates,
        title=title_of_page(resolved.record()),
        images=images.pixels(),
        classes=images.classes,
        price=settings.price,
        queries=(RunFolder(folder).result() or {}).get("queries"),
    )
    Console(soft_wrap=True, highlight=False).print(
        f"certificates in {folder}, report in {folder / 'report.html'}\n"
        f"next: deepzero-apps verify {folder}",
        markup=False,
    )
    write_json(settings.json_file, {"settings": resolved.record(), "rows": [row]})
    return 0


def _refuse_spent(settings: CertifySettings, folder: Path) -> None:
    """Refuses a budget that is spent, before the classifier is shown an image to open it."""
    if settings.budget is None or not (folder / VOTES).is_file():
        return
    spent = read_votes(folder).spent
    result = RunFolder(folder).result() or {"images": 0, "wanted": 1}
    if spent >= settings.budget and result["images"] < result["wanted"]:
        raise Misuse(
            f"--budget must be above the {spent:,} queries spent, got {settings.budget:,}"
        )


def _tell(folder: Path, certificates: list[Certificate]) -> None:
    """Prints what stands below the table."""
    console = Console(soft_wrap=True, highlight=False)
    result = RunFolder(folder).result() or {}
    queries, wanted = result.get("queries", 0), result.get("wanted", len(certificates))
    console.print(statement(certificates, RADII), markup=False)
    console.print(
        f"{queries:,} queries, {queries / len(certificates):,.0f} an image", markup=False
    )
    lost, asked = sum(c.lost for c in certificates), sum(c.asked for c in certificates)
    if lost:
        console.print(
            f"{lost:,} of {asked:,} votes had no answer; they count against every class",
            markup=False,
        )
    if len(certificates) < wanted:
        console.print(
            f"the budget ended after {len(certificates)} of {wanted} images; continue with "
            "--resume and a larger --budget",
            markup=False,
        )
    for finding in certificates[0].findings:
        console.print(f"FINDING {finding}", markup=False, style="bold red")


def defended(settings: DefendSettings, folder: Path, view: Scene) -> Defended:
    """Puts the denoiser of a finished run before its classifier.

    Raises:
        Misuse: If the classifier at hand is not the one that the denoiser was trained with.
    """
    result = RunFolder(folder).result()
    if result is None:
        raise Misuse(f"--run must name a finished run, got {folder}; finish it with --resume")
    here = view.box.classifier.fingerprint
    known = str(result.get("classifier"))
    if known != here:
        raise Misuse(
            f"--run must meet the classifier that it was trained with, fingerprint "
            f"{known[:12]}, got {here[:12]}"
        )
    return Defended(deployed(settings, folder, view), view.box.classifier)


def certify_into(
    folder: Path, classifier: Classifier, view: Scene, settings: CertifySettings, *, title: str
) -> tuple[list[Certificate], float]:
    """Certifies images into a folder, or continues there.

    Args:
        folder: Where the certificates go.
        classifier: What is certified.
        view: The data.
        settings: Votes, images, sigma, seed, and whether the folder may hold certificates.
        title: What the progress bar is called.

    Returns:
        The certificates by index, and the seconds they took.
    """
    votes = settings.votes
    bounds = votes.settings(settings.sigma, settings.seed)
    images = votes.chosen(view)
    chosen = settings.indices(len(images))
    if not chosen:
        raise Misuse(f"--shard must hold an image, got {settings.shard} of {len(images)} images")
    source = source_of(classifier, images.labels.device)
    with (
        held(settings, classifier) as asked,
        opened("certify", folder, settings, resume=settings.resume) as run_folder,
        Journal(folder, bounds, classifier=source.classifier) as journal,
        VoteLog(folder, bounds, source) as log,
    ):
        todo = [i for i in chosen if i not in journal.done]
        meter = Ledger(log, settings.budget)
        unfinished = bool(todo) or run_folder.result() is None
        if unfinished:
            watch = Watch(folder, classifier, images.pixels(slice(0, settings.canaries)), bounds)
            charge_retries(classifier, meter)
            meter.charge(int(min(view.box.asked, meter.remaining)))  # to open it
            log.append([], spent=meter.spent - log.votes.spent)
            watch.begin(meter, log)
            fresh = certify(
                asked,
                images.pixels(),
                images.labels,
                bounds,
                indices=todo,
                rows=min(votes.rows, largest_call(classifier)),
                device=images.labels.device,
                meter=meter,
                log=log,
            )
            done = len(chosen) - len(todo)
            _LOGGER.info("%s has certificates of %d of %d images", folder, done, len(chosen))
            noted = partial(_note, meter)
            with watch.holding_back(meter):
                for found in tracked(fresh, title, total=len(chosen), done=done, note=noted):
                    journal.append(found)
            journal.conclude(watch.end(meter, log))
        certificates = sorted(journal.certificates, key=lambda c: c.index)
        seconds = sum(c.seconds for c in certificates)
        if unfinished:
            run_folder.finish(
                {
                    "images": len(certificates),
                    "wanted": len(chosen),
                    "seconds": seconds,
                    "queries": meter.spent,
                }
            )
    return certificates, seconds


def subject_of(
    settings: CertifySettings,
) -> tuple[str, Classifier, Scene, CertifySettings, dict[str, Any]]:
    """Finds what is to be certified.

    Returns:
        Its name, itself, its data, the resolved settings, and the result of its training.

    Raises:
        Misuse: If the run is none of ``defend``, or flags contradict it.
    """
    if settings.run is None:
        view = scene(settings)
        return "none", Defended(nn.Identity(), view.box.classifier), view, settings, {}
    fields = RunFolder(settings.run).config
    try:
        trained = DefendSettings(**{**fields, "device": settings.device})
    except ValidationError as error:
        raise Misuse(f"--run must name a folder of defend, got {settings.run}") from error
    resolved = _as_trained(settings, trained)
    refuse_unnamed("--classifier", trained.classifier, settings.classifier, settings.run)
    # a run, perhaps a stranger's, neither imports, nor sends, nor downloads by itself
    view = scene(trained.model_copy(update={"download": settings.download}))
    classifier = defended(trained, settings.run, view)
    return trained.method, classifier, view, resolved, RunFolder(settings.run).result() or {}


def _as_trained(settings: CertifySettings, trained: DefendSettings) -> CertifySettings:
    """Takes what describes data, classifier and noise from the run; refuses other wishes."""
    described = DefenceSettings.model_fields.keys() - CommonSettings.model_fields.keys()
    return settings.model_copy(update=settings.agreed(trained, described))


def _folder(settings: CertifySettings) -> Path:
    if settings.run is not None and settings.out is None:
        return settings.run / "certificates"
    return folder_for("certify", settings.out, resume=settings.resume)


def _note(meter: Meter, certificate: Certificate) -> str:
    radius, spent = certificate.radius, meter.spent
    return f"image {certificate.index}: radius {radius:.3f}; {spent:,} queries"


def title_of(view: Scene, sigma: float, votes: Votes, images: int) -> str:
    """Says what a table of certified accuracy is of."""
    looked = votes.procedure != "fixed"
    drawn = f"{votes.procedure}, N at most {votes.most:,}" if looked else f"N {votes.most:,}"
    return (
        f"certified accuracy (%) on {images} {votes.split} images of {view.splits.name}, "
        f"sigma {sigma:g}, {drawn}, alpha {votes.alpha:g}"
    )


def show(rows: list[Row], title: str) -> None:
    """Prints the table at its own width: a narrow terminal wraps lines, but no number is cut."""
    laid_out = table(rows, title=title)
    width = Console(width=1_000).measure(laid_out).maximum
    Console(width=max(Console().width, width)).print(laid_out)
