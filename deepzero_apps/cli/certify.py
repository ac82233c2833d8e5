"""``deepzero-apps certify``: certificates for the images of a data set.

The folder then holds the journal (``certificates.jsonl``, and ``certificates.tsv`` in the field's
columns), ``certified_accuracy.png`` and ``result.json``. An interrupted run is continued with
``--resume`` and asks nothing twice.
"""

__all__ = ["CertifySettings", "Votes", "certify_into", "defended", "run", "title_of", "write_json"]

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.console import Console
from torch import nn

from deepzero_apps.cli.defend import DefenceSettings, DefendSettings, Scene, deployed, scene
from deepzero_apps.cli.driving import new_folder
from deepzero_apps.cli.progress import tracked
from deepzero_apps.cli.settings import Misuse
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

    rows: int = Field(1024, ge=1)
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

    run: Path | None = None
    """The folder of a finished defend run."""

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
    name, classifier, view, sigma, trained = _subject(settings)
    folder = settings.out or _default_folder(settings)
    certificates, seconds = certify_into(
        folder,
        classifier,
        view,
        settings.votes,
        sigma=sigma,
        seed=settings.seed,
        resume=settings.resume,
        title=f"certifying {name}",
    )
    row = summarize(
        name, certificates, radii=RADII, queries=trained.get("queries", 0), seconds=seconds
    )
    plot_certified_accuracy({name: certificates}, folder / "certified_accuracy.png")
    console = Console()
    console.print(table([row], title=title_of(view, sigma, settings.votes, len(certificates))))
    console.print(f"certificates and figure in {folder}", markup=False, soft_wrap=True)
    write_json(settings.json_file, settings.record(), [row])
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
    folder: Path,
    classifier: Classifier,
    view: Scene,
    votes: Votes,
    *,
    sigma: float,
    seed: int,
    resume: bool,
    title: str,
) -> tuple[list[Certificate], float]:
    """Certifies images into a folder, or continues there.

    Args:
        folder: Where the certificates go.
        classifier: What is certified.
        view: The data.
        votes: Votes and images.
        sigma: The noise's standard deviation.
        seed: The seed of the noise.
        resume: Whether the folder may hold certificates already.
        title: What the progress bar is called.

    Returns:
        The certificates by index, and the seconds they took.
    """
    settings = votes.settings(sigma, seed)
    images = votes.chosen(view)
    record = {
        "sigma": sigma,
        "seed": seed,
        "classifier": classifier.fingerprint,
        **votes.model_dump(mode="json", exclude={"rows"}),
    }
    started = time.perf_counter()
    with (
        RunFolder.create(folder, record, resume=resume) as run_folder,
        Journal(folder, settings, classifier=classifier.fingerprint) as journal,
    ):
        todo = [i for i in range(len(images)) if i not in journal.done]
        fresh = certify(
            classifier,
            images.pixels(),
            images.labels,
            settings,
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
) -> tuple[str, Classifier, Scene, float, dict[str, Any]]:
    if settings.run is None:
        view = scene(settings)
        bare = Defended(nn.Identity(), view.box.classifier)
        return "none", bare, view, settings.sigma, {}
    fields = RunFolder(settings.run).config
    try:
        trained = DefendSettings(**{**fields, "device": settings.device})
    except ValidationError as error:
        raise Misuse(f"--run must name a folder of defend, got {settings.run}") from error
    view = scene(trained)
    classifier = defended(trained, settings.run, view)
    return trained.method, classifier, view, trained.sigma, RunFolder(settings.run).result() or {}


def _default_folder(settings: CertifySettings) -> Path:
    return settings.run / "certificates" if settings.run else new_folder("certify")


def _note(certificate: Certificate) -> str:
    return f"image {certificate.index}: radius {certificate.radius:.3f}"


def title_of(view: Scene, sigma: float, votes: Votes, images: int) -> str:
    """Says what a table of certified accuracy is of."""
    return (
        f"certified accuracy (%) on {images} {votes.split} images of {view.splits.name}, "
        f"sigma {sigma:g}, N {votes.n:,}, alpha {votes.alpha:g}"
    )


def write_json(path: Path | None, settings: dict[str, Any], rows: list[Row]) -> None:
    """Writes settings and rows to a JSON file, if one is wanted."""
    if path is not None:
        document = {"settings": settings, "rows": rows}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
