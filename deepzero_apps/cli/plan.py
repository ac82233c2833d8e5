"""``deepzero-apps plan``: what a certification will cost and reach, before it is paid for."""

__all__ = ["PlanSettings", "run"]

from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
import tyro
from pydantic import Field, model_validator
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from deepzero_apps.cli.driving import write_json
from deepzero_apps.cli.scenes import Anywhere
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.cli.votes import RADII, Votes
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate
from deepzero_apps.smoothing.journal import read
from deepzero_apps.smoothing.planning import USUAL, Forecast, forecast
from deepzero_apps.smoothing.procedures import largest_radius

_EXAMPLES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


class PlanSettings(CommonSettings):
    """Says what a certification will cost and which radii it can reach, without asking anything.

    Queries depend on how sure the classifier is under noise: --pilot RUN takes that from a small
    certification (30 images by --procedure anytime will do); without it, twenty typical images stand in.
    """

    sigma: float = Field(0.5, gt=0, le=10)
    """Standard deviation of the noise, for pixels in [0, 1]."""

    pilot: Anywhere | None = None
    """The folder of an earlier certification, whose probabilities are taken."""

    price: float = Field(0.0, ge=0, le=1e6)
    """What a query costs."""

    rate: float = Field(0.0, ge=0, le=1e12)
    """Queries a second that the service or the machine answers."""

    budget: int | None = Field(None, ge=0)
    """The most queries that may be spent: how many images are they for?"""

    votes: Annotated[Votes, tyro.conf.OmitArgPrefixes] = Votes(procedure="decide")
    """Votes and images."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.votes.settings(self.sigma, self.seed)
        if self.votes.images == 0:
            raise ValueError("--images must be at least 1 for a plan, got 0")
        return self


def run(settings: PlanSettings) -> int:
    """Forecasts and prints."""
    bounds = _shared(settings, settings.votes.settings(settings.sigma, settings.seed))
    radii = bounds.radii or RADII[1:]
    generator = np.random.default_rng(settings.seed)
    examples = forecast(bounds, np.array(_EXAMPLES), radii=radii, generator=generator)
    p = _probabilities(settings)
    images = forecast(bounds, p, radii=radii, runs=max(1, 20_000 // len(p)), generator=generator)
    totals = _totals(settings, images, radii)
    console = Console(soft_wrap=True, highlight=False)
    console.print(_head(bounds), markup=False)
    console.print(_table(examples, radii))
    source = (
        f"the {len(p)} images of {settings.pilot}"
        if settings.pilot
        else f"{len(p)} typical images"
    )
    console.print(f"With the probabilities of {source}:", markup=False)
    for name, value in _lines(totals):
        console.print(f"  {name:28}{value}", markup=False)
    write_json(settings.json_file, {"settings": settings.record(), "forecast": totals})
    return 0


def _shared(settings: PlanSettings, bounds: Settings) -> Settings:
    """What a budget leaves to each image, where it goes on until the budget ends.

    Raises:
        Misuse: If that is too little to certify anything.
    """
    if bounds.procedure != "anytime" or settings.budget is None:
        return bounds
    each = settings.budget // settings.votes.images - bounds.n0
    try:
        return replace(bounds, n=min(bounds.n, max(1, each)))
    except ValueError as error:
        raise Misuse(f"--budget, --images: {error}") from error


def _probabilities(settings: PlanSettings) -> np.ndarray:
    if settings.pilot is None:
        return np.array(USUAL)
    certificates = read(settings.pilot)
    if not certificates:
        raise Misuse(f"--pilot must hold certificates, got none in {settings.pilot}")
    drawn = sorted({c.settings.sigma for c in certificates})
    if drawn != [settings.sigma]:
        raise Misuse(
            f"--sigma must be that of --pilot, {', '.join(map(str, drawn))}: probabilities under "
            f"other noise say nothing of it, got {settings.sigma}"
        )
    return np.array([_share(c) for c in certificates])


def _share(certificate: Certificate) -> float:
    """The share of votes for the selected class; of the selection's where it was given up then."""
    n = certificate.votes + certificate.other_votes
    if n:
        return certificate.votes / n
    return max(certificate.selection_counts) / certificate.settings.n0


def _totals(settings: PlanSettings, images: Forecast, radii: tuple[float, ...]) -> dict[str, Any]:
    count = settings.votes.images
    mean = float(images.queries.mean())
    return {
        "images": count,
        "queries_an_image": mean,
        "queries": mean * count,
        "seconds": mean * count / settings.rate if settings.rate else None,
        "money": mean * count * settings.price if settings.price else None,
        "images_within_budget": settings.budget // mean if settings.budget is not None else None,
        "certified": {
            f"{r:g}": float(s) for r, s in zip(radii, images.certified.mean(0), strict=True)
        },
        "fixed_queries_an_image": settings.votes.n0 + 100_000,
    }


def _head(bounds: Settings) -> str:
    return (
        f"procedure {bounds.procedure}, sigma {bounds.sigma:g}, alpha {bounds.alpha:g}, "
        f"{bounds.n0:,} selection votes and at most {bounds.n:,} more\n"
        f"largest radius within reach: {largest_radius(bounds):g}, where all votes agree"
    )


def _table(examples: Forecast, radii: tuple[float, ...]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, title="an image by the probability of its class")
    for name in ("probability", "true radius", "queries", *(f"certified at {r:g}" for r in radii)):
        table.add_column(name, justify="right")
    for p, true, queries, shares in zip(
        examples.p, examples.radius, examples.queries, examples.certified, strict=True
    ):
        certain = [f"{100 * share:.0f} %" for share in shares]
        table.add_row(f"{p:g}", f"{true:.3f}", f"{queries:,.0f}", *certain)
    return table


def _lines(totals: dict[str, Any]) -> list[tuple[str, str]]:
    images, reference = totals["images"], totals["fixed_queries_an_image"]
    share = totals["queries_an_image"] / reference
    lines = [
        (
            "queries an image",
            f"{totals['queries_an_image']:,.0f}  ({100 * share:.1f} % of {reference:,})",
        ),
        (f"queries, {images:,} images", f"{totals['queries']:,.0f}"),
    ]
    if totals["seconds"] is not None:
        lines.append(("time", _duration(totals["seconds"])))
    if totals["money"] is not None:
        lines.append(("money", f"{totals['money']:,.2f}"))
    if totals["images_within_budget"] is not None:
        lines.append(("images within the budget", f"{totals['images_within_budget']:,.0f}"))
    certified = ", ".join(f"{100 * s:.0f} % at {r}" for r, s in totals["certified"].items())
    return [*lines, ("certified, right or wrong", certified)]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
