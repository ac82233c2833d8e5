"""``deepzero-apps report``: the certificates of a run as one HTML page."""

__all__ = ["ReportSettings", "run"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console

from deepzero_apps.cli.driving import write_json
from deepzero_apps.cli.logs import console
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.runs import RunFolder, RunFolderError
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.journal import read
from deepzero_apps.smoothing.reporting.page import write_page

if TYPE_CHECKING:
    from deepzero_apps.vision import Images


class ReportSettings(CommonSettings):
    """Writes the certificates of a run as one HTML page, which needs nothing beside it.

    RUN is the folder of a certify run, of the defend run around it, or a certificates.jsonl.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Where the certificates are."""

    out: Path | None = None
    """The page; report.html beside the certificates by default."""

    title: str = Field("", max_length=200)
    """What stands above; the data and the classifier by default."""

    price: float = Field(0.0, ge=0, le=1e6)
    """What a query costs."""

    radii: tuple[float, ...] = ()
    """Radii of the table; those that were decided, else 0 .25 .5 .75, by default."""


def run(settings: ReportSettings) -> int:
    """Writes the page."""
    file = _file(settings.path)
    certificates = sorted(read(file), key=lambda c: c.index)
    if not certificates:
        raise Misuse(f"RUN must hold certificates, got none in {file}")
    folder = file.parent if (file.parent / "config.json").is_file() else None
    images = None if folder is None else _images(folder, certificates)
    out = settings.out or file.with_name("report.html")
    config = {} if folder is None else RunFolder(folder).config
    result = {} if folder is None else RunFolder(folder).result() or {}
    queries = result.get("queries")
    write_page(
        out,
        certificates,
        title=settings.title or title_of_page(config),
        images=None if images is None else images.pixels(),
        classes=() if images is None else images.classes,
        price=settings.price,
        queries=queries if isinstance(queries, int) and 0 <= queries < 2**53 else None,
        radii=settings.radii or None,
        complete=folder is None or bool(result),
    )
    Console(soft_wrap=True).print(f"report in {out}", markup=False, highlight=False)
    document = {"report": str(out), "certificates": len(certificates)}
    write_json(settings.json_file, document)
    return 0


def title_of_page(config: dict[str, Any]) -> str:
    """Names a page after the settings of a run, as far as they say what was certified.

    Args:
        config: The fields of the run's ``config.json``; may lack any.

    Returns:
        The title.
    """
    if not {"classifier", "dataset"} <= config.keys():
        return "Certified robustness"
    behind = " behind a trained denoiser" if config.get("run") else ""
    return f"Certified robustness of {config['classifier']}{behind} on {config['dataset']}"


def _file(path: Path) -> Path:
    """The journal that a path means.

    Raises:
        Misuse: If there is none.
    """
    places = [path / "certificates.jsonl", path / "certificates" / "certificates.jsonl", path]
    for place in places:
        if place.is_file():
            return place
    raise Misuse(f"RUN must hold certificates.jsonl, got {path}")


def _images(folder: Path, certificates: list[Certificate]) -> "Images | None":
    """The images of a run; None, with a word of why, where they cannot be had."""
    # what trains and fits is not needed otherwise
    from deepzero_apps.cli.made_again import certified_images, certifying

    try:
        images = certified_images(certifying(folder, device="cpu"))
    except (Misuse, RunFolderError, OSError) as error:
        reason = str(error)
    else:
        if max(c.index for c in certificates) < len(images):
            return images
        reason = f"the data holds {len(images)} images"
    console().print(f"warning: a page without images: {reason}", markup=False, highlight=False)
    return None
