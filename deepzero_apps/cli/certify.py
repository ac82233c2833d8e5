"""``deepzero-apps certify``: certificates for the images of a data set.

The folder then holds the journal (``certificates.jsonl``, and ``certificates.tsv`` in the field's
columns), ``certified_accuracy.png`` and ``result.json``. An interrupted run is continued with
``--resume`` and asks nothing twice.
"""

__all__ = [
    "RADII",
    "CertifySettings",
    "Votes",
    "certify_into",
    "defended",
    "run",
    "show",
    "title_of",
]

import time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from torch import nn

from deepzero_apps.cli.defend import DefendSettings, deployed
from deepzero_apps.cli.driving import folder_for, write_json
from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.scenes import Anywhere, DefenceSettings, Scene, scene
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.smoothing.blackbox import Classifier, Defended
from deepzero_apps.smoothing.certify import Certificate, Settings, certify
from deepzero_apps.smoothing.journal import Journal
from deepzero_apps.smoothing.report import Row, plot_certified_accuracy, summarize, table
from deepzero_apps.vision import Images

RADII = (0.0, 0.25, 0.5, 0.75)


class Votes(BaseModel):
    """How many votes are asked for, and how sure a certificate is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    images: int = Field(200, ge=0)
    """How many images of the split, from its start; 0 for all."""

    split: Literal["test", "validation"] = "test"
    """Which images: test for results, validation for choices."""

    n0: int = Field(100, ge=1)
    """Votes that select the class, an image."""

    n: int = Field(2_000, ge=1)
    """Further votes that bound its probability, an image; 10^5 in the literature."""

    alpha: float = Field(0.001, gt=0, lt=0.5)
    """Probability that a certificate is false."""

    rows: int = Field(1024, ge=1, exclude=True)  # decides nothing but the speed
    """Images shown to the classifier in one call."""

    def settings(self, sigma: float, seed: int) -> Settings:
        """Returns the certification settings.

        Raises:
            Misuse: If they could never certify anything.
        """
        try:
            return Settings(sigma=sigma, n0=self.n0, n=self.n, alpha=self.alpha, seed=seed)
        except (ValidationError, ValueError) as error:
            raise Misuse(f"--n, --n0, --alpha: {error}") from error

    def chosen(self, view: Scene) -> Images:
        """Returns the images to certify."""
        every = view.splits.test if self.split == "test" else view.splits.validation
        return every.subset(slice(0, self.images or len(every)))


class CertifySettings(DefenceSettings):
    """Certifies a classifier, defended or not, by randomized smoothing (Cohen et al. 2019).

    With --run FOLDER, data, classifier, denoiser and sigma are those of that ``defend`` run; without,
    the bare classifier is certified as the flags describe it.
    """

    run: Anywhere | None = None
    """The folder of a finished defend run; flags that contradict its settings are refused."""

    out: Path | None = None
    """Where certificates go; RUN/certificates or runs/certify-TIME by default."""

    resume: bool = False
    """Continue the certificates in --out."""

    votes: Annotated[Votes, tyro.conf.OmitArgPrefixes] = Votes()
    """Votes and images."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.votes.settings(self.sigma, self.seed)
        return self


def run(settings: CertifySettings) -> int:
    """Certifies and prints the table."""
    name, classifier, view, resolved, trained = _subject(settings)
    folder = _folder(settings)
    certificates, _ = certify_into(folder, classifier, view, resolved, title=f"certifying {name}")
    row = summarize(
        name,
        certificates,
        radii=RADII,
        queries=trained.get("queries", 0),
        seconds=trained.get("seconds", 0.0),
    )
    plot_certified_accuracy({name: certificates}, folder / "certified_accuracy.png")
    show([row], title_of(view, resolved.sigma, resolved.votes, len(certificates)))
    Console(soft_wrap=True).print(f"certificates and figure in {folder}", markup=False)
    write_json(settings.json_file, {"settings": resolved.record(), "rows": [row]})
    return 0


def defended(settings: DefendSettings, folder: Path, view: Scene) -> Defended:
    """Puts the denoiser of a finished run before its classifier.

    Raises:
        Misuse: If the classifier at hand is not the one that the denoiser was trained with.
    """
    result = RunFolder(folder).result()
    if result is None:
        raise Misuse(f"--run must name a finished run, got {folder}; finish it with --resume")
    here = view.box.classifier.fingerprint
    if result["classifier"] != here:
        raise Misuse(
            f"--run must meet the classifier that it was trained with, fingerprint "
            f"{result['classifier'][:12]}, got {here[:12]}"
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
    started = time.perf_counter()
    with (
        RunFolder.create(folder, settings.record(), resume=settings.resume) as run_folder,
        Journal(folder, bounds, classifier=classifier.fingerprint) as journal,
    ):
        todo = [i for i in range(len(images)) if i not in journal.done]
        fresh = certify(
            classifier,
            images.pixels(),
            images.labels,
            bounds,
            indices=todo,
            rows=votes.rows,
            device=images.labels.device,
        )
        done = len(images) - len(todo)
        for certificate in tracked(
            fresh if todo else [], title, total=len(images), done=done, note=_note
        ):
            journal.append(certificate)
        certificates = sorted(journal.certificates, key=lambda c: c.index)
        seconds = sum(c.seconds for c in certificates) if done else time.perf_counter() - started
        run_folder.finish({"images": len(certificates), "seconds": seconds})
    return certificates, seconds


def _subject(
    settings: CertifySettings,
) -> tuple[str, Classifier, Scene, CertifySettings, dict[str, Any]]:
    """What is certified: its name, itself, its data, the resolved settings, the run's result."""
    if settings.run is None:
        view = scene(settings)
        return "none", Defended(nn.Identity(), view.box.classifier), view, settings, {}
    fields = RunFolder(settings.run).config
    try:
        trained = DefendSettings(**{**fields, "device": settings.device})
    except ValidationError as error:
        raise Misuse(f"--run must name a folder of defend, got {settings.run}") from error
    resolved = _as_trained(settings, trained)
    view = scene(trained)
    classifier = defended(trained, settings.run, view)
    return trained.method, classifier, view, resolved, RunFolder(settings.run).result() or {}


def _as_trained(settings: CertifySettings, trained: DefendSettings) -> CertifySettings:
    """Takes what describes data, classifier and noise from the run; refuses other wishes."""
    update = {}
    for name in DefenceSettings.model_fields.keys() - CommonSettings.model_fields.keys():
        default = DefenceSettings.model_fields[name].default
        asked, found = getattr(settings, name), getattr(trained, name)
        if asked not in (default, found):
            flag = name.replace("_", "-")
            raise Misuse(f"--{flag} must be that of --run, {found}, or left out, got {asked}")
        update[name] = found
    return settings.model_copy(update=update)


def _folder(settings: CertifySettings) -> Path:
    if settings.run is not None and settings.out is None:
        return settings.run / "certificates"
    return folder_for("certify", settings.out, resume=settings.resume)


def _note(certificate: Certificate) -> str:
    return f"image {certificate.index}: radius {certificate.radius:.3f}"


def title_of(view: Scene, sigma: float, votes: Votes, images: int) -> str:
    """Says what a table of certified accuracy is of."""
    return (
        f"certified accuracy (%) on {images} {votes.split} images of {view.splits.name}, "
        f"sigma {sigma:g}, N {votes.n:,}, alpha {votes.alpha:g}"
    )


def show(rows: list[Row], title: str) -> None:
    """Prints the table at its own width: a narrow terminal wraps lines, but no number is cut."""
    laid_out = table(rows, title=title)
    width = Console(width=1_000).measure(laid_out).maximum
    Console(width=max(Console().width, width)).print(laid_out)
