"""The report of a run: one HTML page that needs no network, no script and nothing beside it.

Everything on it follows from the certificates. Numbers come first, then figures, images, the
checks of the black box and where it all comes from. It reads on a phone, in the dark, on paper,
and without color: right, wrong and abstained differ by mark and pattern too.
"""

__all__ = ["page", "write_page"]

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from deepzero_apps import __version__
from deepzero_apps.files import replace
from deepzero_apps.smoothing.certificates import (
    ABSTAIN,
    Certificate,
    average_certified_radius,
    bootstrap_interval,
    correct_radii,
    population_bound,
)
from deepzero_apps.smoothing.procedures import largest_radius
from deepzero_apps.smoothing.reporting.page_figures import (
    Histogram,
    accuracy_band,
    curve,
    histogram,
)

_RADII = (0.0, 0.25, 0.5, 0.75)
_PICTURES, _WRONG = 60, 12
_BYTES = 600_000
_MOST = 2**53
_SIDES = (96, 64, 48, 32, 24)
_STOPS = {
    "complete": "all votes were drawn that were meant to be",
    "decided": "every radius was certified or given up",
    "futile": "no hope was left to certify anything",
    "limit": "the largest number of votes was reached",
    "budget": "the budget ended; more votes may say more",
}


@dataclass(frozen=True)
class _Line:
    """A row of the table of certified accuracy; shares in percent."""

    radius: str
    share: str
    low: str
    high: str
    population: str


@dataclass(frozen=True)
class _Picture:
    """One image of the grid."""

    kind: str
    mark: str
    source: str
    side: int
    index: int
    label: str
    predicted: str
    radius: str


def page(
    certificates: Sequence[Certificate],
    *,
    title: str = "Certified robustness",
    images: Tensor | None = None,
    classes: Sequence[str] = (),
    price: float = 0.0,
    queries: int | None = None,
    radii: Sequence[float] | None = None,
    complete: bool = True,
) -> str:
    """Makes the report.

    Args:
        certificates: The certificates, of one setting, at least one.
        title: What stands above.
        images: The images that their indices mean, ``(n, channel, height, width)``, one or three
            channels, in [0, 1]; up to 60 are shown.
        classes: Names of the classes; their numbers stand for those that have none.
        price: What a query costs.
        queries: The queries spent in all, those for checks and retries included; by default the
            votes of the certificates.
        radii: The radii of the table, at least 0; those that were decided by default, and 0.
        complete: Whether the run is over. What it has of others is no random sample, since the
            images that are hard to decide come last: then nothing is said of the population.

    Returns:
        The page, below 1 MB.

    Raises:
        ValueError: If there is no certificate, they are of several settings, or an argument is
            out of range.
    """
    _refuse(certificates, images, price)
    settings = certificates[0].settings
    wanted = radii if radii is not None else (0.0, *settings.radii) if settings.radii else _RADII
    spent = sum(c.asked for c in certificates) if queries is None else queries
    kinds = Counter(map(_kind, certificates))
    environment = Environment(
        loader=PackageLoader("deepzero_apps.smoothing.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        settings=settings,
        reach=f"{largest_radius(settings):.4f}",
        count=len(certificates),
        kinds=kinds,
        numbers=tuple(_numbers(certificates, spent, price)),
        complete=complete,
        lines=[_line(certificates, float(r)) for r in wanted],
        expected=f"{settings.alpha * len(certificates):.2g}",
        curve=curve(certificates),
        shares=_shares(certificates),
        asked=_asked(certificates),
        stops=[(s, _STOPS[s], n) for s, n in Counter(c.stop for c in certificates).most_common()],
        lost=sum(c.lost for c in certificates),
        wrong_shown=_WRONG,
        pictures=_pictures(certificates, images, classes),
        findings=tuple(dict.fromkeys(words for c in certificates for words in c.findings)),
        provenance=tuple(_provenance(certificates)),
    )


def write_page(
    path: Path | str,
    certificates: Sequence[Certificate],
    *,
    title: str = "Certified robustness",
    images: Tensor | None = None,
    classes: Sequence[str] = (),
    price: float = 0.0,
    queries: int | None = None,
    radii: Sequence[float] | None = None,
    complete: bool = True,
) -> None:
    """Writes the report to a file; the arguments are those of `page`.

    Raises:
        ValueError: As of `page`.
        OSError: If it cannot be written.
    """
    text = page(
        certificates,
        title=title,
        images=images,
        classes=classes,
        price=price,
        queries=queries,
        radii=radii,
        complete=complete,
    )
    path = Path(path)
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe or a terminal cannot be replaced
    else:
        replace(path, text.encode())  # what a link of that name leads to stays as it is


def _refuse(certificates: Sequence[Certificate], images: Tensor | None, price: float) -> None:
    if not certificates:
        raise ValueError("certificates must hold at least one certificate, got none")
    if len({c.settings for c in certificates}) > 1:
        raise ValueError("certificates must be of one setting, got several; make a page for each")
    _refuse_unsound(certificates)
    if not 0 <= price < float("inf"):
        raise ValueError(f"price must be a finite number of at least 0, got {price}")
    if images is None:
        return
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be of shape (n, 1 or 3, height, width), got {tuple(images.shape)}"
        )
    last = max(c.index for c in certificates)
    if last >= len(images) or min(c.index for c in certificates) < 0:
        raise ValueError(f"images must hold image {last}, got {len(images)} images")


def _refuse_unsound(certificates: Sequence[Certificate]) -> None:
    """Refuses what no run writes and no arithmetic here survives."""
    for c in certificates:
        if max(abs(c.index), abs(c.asked), abs(c.votes), abs(c.other_votes)) >= _MOST:
            raise ValueError(f"certificates must be of a run, got numbers beyond {_MOST:.0e}")
        if not 0 <= c.selected < len(c.selection_counts):
            raise ValueError(
                f"certificates must select a class that has votes, got {c.selected} for image "
                f"{c.index}; deepzero-apps verify says what else is wrong"
            )


def _kind(certificate: Certificate) -> str:
    if certificate.predicted == ABSTAIN:
        return "abstained"
    return "right" if certificate.correct else "wrong"


def _numbers(
    certificates: Sequence[Certificate], spent: int, price: float
) -> Iterator[tuple[str, str, str]]:
    """The key numbers: name, value, and what stands below it."""
    m = len(certificates)
    share, low, high = accuracy_band(certificates, 0.0)
    yield (
        "certified right",
        f"{100 * share:.1f} %",
        f"95 %: {100 * low:.1f} to {100 * high:.1f}",
    )
    acr = average_certified_radius(certificates)
    low, high = bootstrap_interval(np.maximum(correct_radii(certificates), 0))
    yield "average radius", f"{acr:.3f}", f"95 %: {low:.3f} to {high:.3f}"
    abstained = sum(c.predicted == ABSTAIN for c in certificates)
    yield "abstained", f"{abstained:,}", f"of {m:,} images"
    yield "queries", f"{spent:,}", f"{spent / m:,.0f} an image"
    if price:
        yield "cost", f"{spent * price:,.2f}", f"at {price:g} a query"
    seconds = sum(c.seconds for c in certificates)
    yield "time", _duration(seconds), f"{seconds / m:.2g} s an image"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _line(certificates: Sequence[Certificate], r: float) -> _Line:
    share, low, high = accuracy_band(certificates, r)
    population = population_bound(certificates, r)
    values = [f"{100 * value:.1f}" for value in (share, low, high, population)]
    return _Line(f"{r:g}", *values)


def _shares(certificates: Sequence[Certificate]) -> Histogram:
    """The share of votes for the selected class, by what became of the image."""
    found: dict[str, list[float]] = {"right": [], "wrong": [], "abstained": []}
    for c in certificates:
        n = c.votes + c.other_votes
        selection = c.selection_counts[c.selected] / c.settings.n0
        found[_kind(c)].append(c.votes / n if n else selection)
    return histogram(found, 0.0, 1.0, unit="of the votes")


def _asked(certificates: Sequence[Certificate]) -> Histogram | int:
    """Queries an image; one number where it is the same for all."""
    asked = [c.asked for c in certificates]
    if min(asked) == max(asked):
        return asked[0]
    return histogram({"images": asked}, 0.0, float(max(asked)), unit="queries")


def _pictures(
    certificates: Sequence[Certificate], images: Tensor | None, classes: Sequence[str]
) -> list[_Picture]:
    """The wrong ones first, then what abstained, then the right ones by radius."""
    if images is None:
        return []
    chosen = _chosen(certificates)
    for largest in _SIDES:
        sources = [_source(images[c.index], largest) for c in chosen]
        if sum(len(source) for source in sources) <= _BYTES:
            break
    return [
        _Picture(
            kind=_kind(c),
            mark={"right": "✓", "wrong": "✗", "abstained": "–"}[_kind(c)],
            source=source,
            side=max(images.shape[2:]),
            index=c.index,
            label=_name(c.label, classes),
            predicted=_name(c.predicted, classes),
            radius=f"{c.radius:.4f}",
        )
        for c, source in zip(chosen, sources, strict=True)
    ]


def _chosen(certificates: Sequence[Certificate]) -> list[Certificate]:
    """A few of the wrong ones, and others at even distances through the run."""
    wrong = [c for c in certificates if _kind(c) == "wrong"][:_WRONG]
    others = [c for c in certificates if _kind(c) != "wrong"]
    places = np.linspace(0, len(others) - 1, min(_PICTURES - len(wrong), len(others))).round()
    chosen = wrong + [others[int(place)] for place in places]
    order = ("wrong", "abstained", "right")
    return sorted(chosen, key=lambda c: (order.index(_kind(c)), -c.radius, c.index))


def _source(image: Tensor, largest: int) -> str:
    """An image as the address of a PNG inside of the page."""
    pixels = image.detach().float().nan_to_num(0).clamp(0, 1).mul(255).round().byte().cpu()
    array = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((largest, largest))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)


def _provenance(certificates: Sequence[Certificate]) -> Iterator[tuple[str, str]]:
    settings = certificates[0].settings
    yield "seed", str(settings.seed)
    yield "noise", settings.noise
    for name, words in (
        ("classifier", "classifier and denoiser, sha256"),
        ("dtype", "noisy images formed in"),
        ("device", "noise drawn on"),
        ("package_version", "deepzero-apps"),
        ("torch_version", "torch"),
    ):
        yield words, ", ".join(sorted({str(getattr(c.source, name)) for c in certificates}))
