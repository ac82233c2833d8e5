"""What a verification says: findings, one line each, and which images a file covers.

A *finding* is wrong; a *note* is worth knowing. What could not be checked is told as well: a file
without findings is as good as what it allows to check.
"""

__all__ = ["Coverage", "Finding", "Report", "coverage", "gaps", "repetitions"]

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepzero_apps.foreign import printable


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found.

    Args:
        kind: A short name, the same for all findings of a kind, such as ``rounding``.
        found: What stands there, in words.
        expected: What should; empty where there is no such thing.
        file: The file's name.
        line: The line, from 1.
        index: The image.
    """

    kind: str
    found: str
    expected: str = ""
    file: str = ""
    line: int | None = None
    index: int | None = None

    @property
    def text(self) -> str:
        """The finding in one line, whatever stands in the file."""
        place = [self.file] if self.file else []
        place += [f"line {self.line}"] if self.line is not None else []
        place += [f"image {self.index}"] if self.index is not None else []
        expected = f", expected {self.expected}" if self.expected else ""
        line = f"{', '.join(place) or 'file'}: {self.kind}: {self.found}{expected}"
        return printable(line).replace("\n", "\\n")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification came to.

    Args:
        file: What was verified.
        facts: What it is: names and values, in words.
        checked: What was checked.
        unchecked: What cannot be checked from what is at hand, and why.
        findings: What is wrong.
        notes: What is worth knowing.
    """

    file: str
    facts: tuple[tuple[str, str], ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """Which images of a data set a file has: from a first one on, each so many-th.

    Args:
        stride: The distance of neighbors, at least 1.
        missing: Runs of images that lack, as first, last and count.
        strays: Images that are not on the stride, or were not asked for.
    """

    stride: int
    missing: tuple[tuple[int, int, int], ...]
    strays: tuple[int, ...]

    def described(self) -> list[str]:
        """Gives a phrase for each run of missing images."""
        return [
            f"no row for image {first}"
            if count == 1
            else f"no rows for {count} images, {first} ... {last}"
            for first, last, count in self.missing
        ]


def coverage(
    indices: Iterable[int], total: int | None = None, *, wanted: range | None = None
) -> Coverage:
    """Finds the stride of images and what is missing from it.

    Args:
        indices: Places in a data set; repetitions do not matter.
        total: How many images the data set has; up to the last one found by default.
        wanted: Which images there should be, ascending; else the stride is the most frequent
            distance of neighbors, so that a missing row or a foreign one does not change it.

    Returns:
        The coverage.

    Example:
        >>> coverage([0, 20, 40, 80, 81])
        Coverage(stride=20, missing=((60, 60, 1),), strays=(81,))
        >>> coverage([0, 1], total=4).described()
        ['no rows for 2 images, 2 ... 3']
    """
    places = sorted({index for index in indices if index >= 0})
    wanted = _likely(places, total) if wanted is None else wanted
    on = [place for place in places if place in wanted]
    strays = tuple(place for place in places if place not in wanted)
    return Coverage(wanted.step, tuple(_holes(on, wanted)), strays)


def _likely(places: Sequence[int], total: int | None) -> range:
    """Which images a file seems to be about."""
    if not places:
        return range(total or 0)
    distances = Counter(b - a for a, b in pairwise(places))
    stride = max(distances, key=lambda d: (distances[d], -d)) if distances else 1
    start = Counter(place % stride for place in places).most_common(1)[0][0]
    return range(start, max(places[-1] + 1, total or 0), stride)


def _holes(on: Sequence[int], wanted: range) -> Iterable[tuple[int, int, int]]:
    """Runs of wanted places that are not there: first, last, count."""
    step = wanted.step
    count = max(0, -((wanted.start - wanted.stop) // step))  # len overflows for huge ranges
    for a, b in pairwise([wanted.start - step, *on, wanted.start + step * count]):
        if b - a > step:
            yield a + step, b - step, (b - a) // step - 1


def gaps(covered: Coverage) -> Iterator[Finding]:
    """Puts a coverage in words.

    Args:
        covered: The coverage.

    Yields:
        A finding for each run of missing images and each stray; without file.
    """
    for words in covered.described():
        yield Finding(kind="missing", found=words)
    for index in covered.strays:
        expected = f"every {covered.stride}. image" if covered.stride > 1 else "an image asked for"
        yield Finding(kind="stray", found=f"image {index}", expected=expected, index=index)


def repetitions(rows: Iterable[tuple[int, int]]) -> Iterator[Finding]:
    """Finds images that are there twice, and places that no image can have.

    Args:
        rows: Lines and images.

    Yields:
        A finding for each such row; without file.
    """
    lines: dict[int, int] = {}
    for line, index in rows:
        if index < 0:
            yield Finding(kind="index", found=f"{index}", expected="at least 0", line=line)
        elif index in lines:
            expected = f"once, as in line {lines[index]}"
            found = f"image {index} again"
            yield Finding(kind="duplicate", found=found, expected=expected, line=line, index=index)
        lines.setdefault(index, line)
