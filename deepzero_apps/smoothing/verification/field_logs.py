r"""The field's plain logs: ``idx label predict radius correct time``, abstention -1.

They store neither counts nor settings, which their authors state elsewhere. Of :math:`N` votes
:math:`k` are for the class, so that a radius takes one of :math:`N + 1` values

.. math::
    R_k = \sigma \Phi^{-1}(B^{-1}(\alpha; k, N - k + 1)), \qquad
    R_N = \sigma \Phi^{-1}(\alpha^{1/N})                                        \tag{1}

A radius above :math:`R_N` contradicts what is stated; the least risk that allows a largest radius
:math:`R` is :math:`\Phi(R / \sigma)^N`. A radius between two values, by more than its last digit,
contradicts it too; one that can only come from a value below it was rounded up.

References:
    | Log format of Certified Adversarial Robustness via Randomized Smoothing
    | https://github.com/locuslab/smoothing
"""

__all__ = ["Claim", "FieldLog", "LogError", "Row", "check_radii", "check_rows", "read_log"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

import numpy as np
from scipy.stats import beta, norm

from deepzero_apps.smoothing.verification.findings import Finding

ABSTAIN = -1
_COLUMNS = ("idx", "label", "predict", "radius", "correct")
_NAMES = {
    **{name: "idx" for name in ("idx", "index", "id", "i")},
    **{name: "label" for name in ("label", "target", "y", "true")},
    **{name: "predict" for name in ("predict", "prediction", "predicted", "pred")},
    **{name: "radius" for name in ("radius", "r", "certified_radius")},
    **{name: "correct" for name in ("correct", "acc")},
}
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_CUSTOMARY = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4, 1e-5)
# Radii printed in full differ by the error of others' special functions; in units of sigma.
_TOLERANCE = 1e-7
_SHOWN = 60


class LogError(ValueError):
    """A file is no log of certificates, or what is stated of one is out of range."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the authors of a log state about it.

    Args:
        sigma: Standard deviation of the noise, positive, in the radii's units.
        alpha: Risk of a false certificate, in (0, 1).
        n: Votes that bound a probability, at least 1.
        n0: Votes that select the class, at least 1; they only count as queries.

    Raises:
        LogError: If one is out of range.
    """

    sigma: float
    alpha: float
    n: int
    n0: int = 100

    def __post_init__(self) -> None:
        for name, good in (
            ("sigma", 0 < self.sigma < math.inf),
            ("alpha", 0 < self.alpha < 1),
            ("n", 1 <= self.n < 2**53),
            ("n0", self.n0 >= 1),
        ):
            if not good:
                raise LogError(
                    f"{name} must be what certificates can have, got {vars(self)[name]}"
                )

    @property
    def largest(self) -> float:
        """The largest radius, eq. (1), not rounded; 0 where there is none."""
        return max(0.0, float(self.sigma * norm.ppf(self.alpha ** (1 / self.n))))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a log.

    Args:
        line: Its number, from 1.
        index: The image.
        label: Its class.
        predicted: The certified class; -1 for abstention.
        radius: The radius; any number, NaN included.
        text: The radius as it is printed.
        correct: The flag; None where there is none.
    """

    line: int
    index: int
    label: int
    predicted: int
    radius: float
    text: str
    correct: bool | None


@dataclass(frozen=True)
class FieldLog:
    """What a log holds.

    Args:
        rows: The lines that could be read.
        findings: The lines that could not.
        notes: How the file was understood, where that is not plain.
    """

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def read_log(content: bytes, file: str) -> FieldLog:
    """Reads a log; columns by name, divided by tabs, commas or blanks.

    Args:
        content: The file's bytes.
        file: Its name, for messages.

    Returns:
        Its rows, and what could not be read.

    Raises:
        LogError: If it is empty, no text, or has not the columns of a log of certificates.
    """
    if b"\0" in content:
        raise LogError(f"{file} is no text file")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    lines = [(n, line.rstrip("\r")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise LogError(f"{file} is empty: there is nothing to verify")
    mark = _separator(lines[0][1])
    columns, notes = _columns(_fields(lines[0][1], mark), file)
    rows, findings = [], []
    for number, line in lines if notes else lines[1:]:
        fields = _fields(line, mark)
        row = _row(number, fields, columns)
        torn = number == lines[-1][0] and not text.endswith("\n")
        if row is None or (torn and len(fields) < len(_fields(lines[0][1], mark))):
            kind = "torn last line" if torn else "damaged line"
            shown = repr(line[:_SHOWN]) + ("..." if len(line) > _SHOWN else "")
            findings.append(
                Finding(kind=kind, found=shown, expected=" ".join(columns), file=file, line=number)
            )
        else:
            rows.append(row)
    return FieldLog(tuple(rows), tuple(findings), notes)


def check_rows(rows: Sequence[Row]) -> Iterator[Finding]:
    """Checks what needs no settings: flags, radii and abstention.

    Args:
        rows: The rows.

    Yields:
        A finding for each fault; without file.
    """
    for row in rows:
        if row.predicted < ABSTAIN:
            yield _finding(row, "class", f"predicted {row.predicted}", "a class, or -1")
        if not 0 <= row.radius < math.inf:
            yield _finding(row, "radius", f"radius {row.text}", "a number of at least 0")
        elif row.predicted == ABSTAIN and row.radius != 0:
            yield _finding(row, "radius", f"radius {row.text} at abstention", "0")
        right = row.predicted == row.label
        if row.correct is not None and row.correct is not right:
            yield _finding(
                row,
                "correct flag",
                f"{int(row.correct)} for label {row.label} and predicted {row.predicted}",
                f"{int(right)}",
            )


def check_radii(rows: Sequence[Row], claim: Claim) -> tuple[list[Finding], list[Finding]]:
    """Checks radii against what is stated, eq. (1).

    Args:
        rows: The rows.
        claim: What is stated of the log.

    Returns:
        Findings and notes, without file.
    """
    told = [row for row in rows if 0 < row.radius < math.inf]
    if not told:
        return [], []
    units = _units(told)
    radii = np.array([row.radius for row in told])
    excess = radii - units / 2 - _TOLERANCE * claim.sigma > claim.largest
    findings = [
        _finding(
            row,
            "radius impossible",
            f"radius {row.text}",
            f"at most {claim.largest:.6g} at sigma {claim.sigma:g}, alpha {claim.alpha:g}, "
            f"n {claim.n}",
        )
        for row, above in zip(told, excess, strict=True)
        if above
    ]
    within = [row for row, above in zip(told, excess, strict=True) if not above]
    findings += _between(within, radii[~excess], units[~excess], claim)
    unexplained = any(finding.kind != "rounding" for finding in findings)
    return findings, [_remedy(radii, units, claim)] if unexplained else []


def _between(
    rows: Sequence[Row], radii: np.ndarray, units: np.ndarray, claim: Claim
) -> Iterator[Finding]:
    """Radii that none of the values gives, and those that only a smaller value gives."""
    value, down = _sources(radii, units, claim)
    for row, fits in zip(rows, value < math.inf, strict=True):
        if not fits:
            yield _finding(
                row,
                "radius between values",
                f"radius {row.text}",
                f"one of the {claim.n + 1} that n {claim.n} and alpha {claim.alpha:g} allow",
            )
    up = (value < math.inf) & ~down
    if up.any():
        first = rows[int(np.flatnonzero(up)[0])]
        yield Finding(
            kind="rounding",
            found=f"{int(up.sum())} radii, the first {first.text} in line {first.line}, are "
            f"above the only value that they can come from, by up to {(radii - value)[up].max():.2g}",
            expected="radii rounded down",
        )


def _sources(radii: np.ndarray, units: np.ndarray, claim: Claim) -> tuple[np.ndarray, np.ndarray]:
    """The least value that gives each radius, rounded in whatever way, infinity where none does.

    Second: whether one of them gives it by rounding down.
    """
    slack = _TOLERANCE * claim.sigma
    coarse = np.where(units > 2 * slack, units, 0.0)
    nearest, above = (_next(low - slack, claim) for low in (radii - coarse / 2, radii))
    ends = radii + coarse + slack
    return np.where(nearest < ends, nearest, math.inf), above < ends


def _next(low: np.ndarray, claim: Claim) -> np.ndarray:
    """The smallest of the values (1) that is at least ``low``; infinity where there is none."""
    few, many = np.zeros(low.shape, dtype=np.int64), np.full(low.shape, claim.n + 1)
    while (many - few > 1).any():
        middle = np.clip((few + many) // 2, 1, claim.n)
        enough = _value(middle, claim) >= low
        wide = many - few > 1
        many, few = np.where(wide & enough, middle, many), np.where(wide & ~enough, middle, few)
    values = _value(np.minimum(many, claim.n), claim)
    return np.where(many > claim.n, math.inf, values)


def _value(votes: np.ndarray, claim: Claim) -> np.ndarray:
    p_lower = beta.ppf(claim.alpha, votes, claim.n - votes + 1)
    values: np.ndarray = claim.sigma * norm.ppf(p_lower)
    return values


def _remedy(radii: np.ndarray, units: np.ndarray, claim: Claim) -> Finding:
    """Says which risk, or which number of votes, would allow the largest radius."""
    top = int((radii - units / 2).argmax())
    log_p = float(norm.logcdf((radii[top] - units[top] / 2) / claim.sigma))
    alpha = math.exp(claim.n * log_p)
    votes = math.ceil(math.log(claim.alpha) / log_p) if log_p else math.inf
    said = f"the largest radius, {radii[top]:g}, is possible at alpha {claim.alpha:g}"
    if alpha > claim.alpha:
        said = (
            f"the largest radius, {radii[top]:g}, needs an alpha of at least {alpha:.3g} at "
            f"n {claim.n}, or n of at least {votes} at alpha {claim.alpha:g}"
        )
    fitting = [
        f"{a:g}"
        for a in _CUSTOMARY
        if a >= alpha and np.isfinite(_sources(radii, units, replace(claim, alpha=a))[0]).all()
    ]
    if fitting:
        said += f"; alpha {' or '.join(fitting)} explains all {len(radii)} radii above 0"
    return Finding(kind="alpha", found=said)


def _units(rows: Sequence[Row]) -> np.ndarray:
    """The worth of the last digit of each radius.

    Printing may strip zeros at the end, so that the number of decimals, or of significant digits,
    is the largest in the log; of the two the coarser one holds.
    """
    parts = [Decimal(row.text).as_tuple() for row in rows]
    smallest = min(int(part.exponent) for part in parts)
    significant = max(len(part.digits) for part in parts)
    return np.array(
        [
            10.0 ** max(smallest, int(part.exponent) + len(part.digits) - significant)
            for part in parts
        ]
    )


def _separator(line: str) -> str | None:
    return "\t" if "\t" in line else "," if "," in line else None


def _fields(line: str, mark: str | None) -> list[str]:
    return [field.strip() for field in line.strip("\n").split(mark)]


def _columns(head: Sequence[str], file: str) -> tuple[dict[str, int], tuple[Finding, ...]]:
    """Places of the columns; without a header they are taken in the usual order."""
    named = {_NAMES.get(name.lower(), name.lower()): place for place, name in enumerate(head)}
    columns = {name: named[name] for name in _COLUMNS if name in named}
    if set(_COLUMNS) - {"correct"} <= columns.keys():
        return columns, ()
    usual = {name: place for place, name in enumerate(_COLUMNS)}
    if 4 <= len(head) <= 6 and _row(1, head, dict(list(usual.items())[: len(head)])) is not None:
        taken = dict(list(usual.items())[: len(head)])
        note = Finding(
            kind="no header", found=f"columns are taken as {' '.join(taken)}", file=file
        )
        return taken, (note,)
    missing = [name for name in _COLUMNS[:4] if name not in columns]
    shown = " ".join(head)[:_SHOWN]
    hint = " (a log of predictions certifies nothing)" if missing == ["radius"] else ""
    raise LogError(
        f"{file} must start with the columns {' '.join(_COLUMNS)} of a log of certificates, "
        f"got {shown!r} without {' and '.join(missing)}{hint}"
    )


def _row(number: int, fields: Sequence[str], columns: dict[str, int]) -> Row | None:
    try:
        cells = {name: fields[place] for name, place in columns.items()}
        Decimal(cells["radius"])
        flag = cells.get("correct")
        return Row(
            line=number,
            index=int(cells["idx"]),
            label=int(cells["label"]),
            predicted=int(cells["predict"]),
            radius=float(cells["radius"]),
            text=cells["radius"],
            correct=None if flag is None else _FLAGS[flag.lower()],
        )
    except (IndexError, KeyError, ValueError, InvalidOperation):
        return None


def _finding(row: Row, kind: str, found: str, expected: str) -> Finding:
    return Finding(kind=kind, found=found, expected=expected, line=row.line, index=row.index)
