"""Certificates on disk: one line each, safe against interruption, resumable.

A journal is a folder with two files. ``certificates.jsonl`` is the truth: every field of a
`Certificate`, one JSON object a line. ``certificates.tsv`` has the columns of the field's logs
(``idx label predict radius correct time``, abstention -1) and follows from the other.

Each certificate is appended and flushed at once. A process that is killed can leave one torn
line at the end, which readers ignore and the next `Journal` cuts off; that image is certified
again, from the votes in its log (``vote_log``). Certificates that a budget ended are left out by
the next `Journal`: more votes may say more. A journal of other settings or another classifier is
refused and left as it is.

References:
    | Log format of Certified Adversarial Robustness via Randomized Smoothing
    | https://github.com/locuslab/smoothing
"""

__all__ = ["Journal", "JournalError", "read"]

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter

from deepzero_apps import files
from deepzero_apps.files import InUse, LineFile, lines_of
from deepzero_apps.files.opening import read_plain
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate, difference

_JSONL = "certificates.jsonl"
_TSV = "certificates.tsv"
_COLUMNS = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
_CERTIFICATE = TypeAdapter(Certificate)


class JournalError(Exception):
    """A journal cannot be read, written or continued."""


def read(path: Path | str) -> list[Certificate]:
    """Reads the certificates of a journal; a torn last line is left out.

    Args:
        path: The journal's folder, or its JSONL file.

    Returns:
        The certificates, in the order in which they were written.

    Raises:
        JournalError: If there is no journal, or a whole line is no certificate.
    """
    path = Path(path)
    file = path / _JSONL if path.is_dir() else path
    try:
        content = read_plain(file)
    except OSError as error:
        raise JournalError(f"cannot read {file}: {error.strerror}") from error
    return _parse(content, file)


class Journal:
    """A journal that certificates are appended to; a context manager.

    Opening makes the folder or continues the journal in it; it holds a lock until it is
    closed, so that two processes never write one journal.

    Args:
        folder: The folder.
        settings: The settings of every certificate in it.
        classifier: Fingerprint of the classifier of every certificate in it.

    Raises:
        JournalError: On entry, if the folder holds certificates of other settings or of
            another classifier, is damaged, in use or cannot be written.

    Example:
        >>> import tempfile
        >>> with Journal(tempfile.mkdtemp(), Settings(sigma=0.5), classifier="f00") as journal:
        ...     sorted(journal.done)
        []
    """

    def __init__(self, folder: Path | str, settings: Settings, *, classifier: str) -> None:
        self.folder = Path(folder)
        self._settings, self._classifier = settings, classifier
        self._certificates: list[Certificate] = []
        self._done: set[int] = set()
        self._jsonl: LineFile | None = None
        self._tsv: LineFile | None = None

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All certificates in the journal, those of earlier processes first."""
        return tuple(self._certificates)

    @property
    def done(self) -> frozenset[int]:
        """The indices of the images that have a certificate."""
        return frozenset(self._done)

    def append(self, certificate: Certificate) -> None:
        """Writes a certificate and flushes it to the operating system.

        Args:
            certificate: Of an image not done yet, by this journal's settings and classifier.

        Raises:
            JournalError: If the journal is not open, the certificate does not belong in it,
                or it cannot be written.
        """
        if self._jsonl is None or self._tsv is None:
            raise JournalError("journal must be open; use `with Journal(...) as journal:`")
        self._admit(certificate, "certificate")
        rows = (_line(certificate), _tsv_row(certificate).encode())
        for file, text in zip((self._jsonl, self._tsv), rows, strict=True):
            try:
                file.append(text)
            except OSError as error:
                self._close()
                raise JournalError(
                    f"cannot write {file.path}: {error.strerror}; what was written before "
                    "stays, and a later run continues from it"
                ) from error
        self._certificates.append(certificate)
        self._done.add(certificate.index)

    def conclude(self, findings: Sequence[str]) -> None:
        """Writes what checks of the black box found into every certificate, all at once.

        Args:
            findings: The findings, in words.

        Raises:
            JournalError: If the journal is not open or cannot be written.
        """
        if self._jsonl is None:
            raise JournalError("journal must be open; use `with Journal(...) as journal:`")
        told = [replace(c, findings=tuple(findings)) for c in self._certificates]
        if told == self._certificates:
            return
        try:
            self._jsonl.rewrite(b"".join(map(_line, told)))
        except OSError as error:
            self._close()
            raise JournalError(f"cannot write {self.folder / _JSONL}: {error}") from error
        self._certificates = told

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _JSONL).exists() and (self.folder / _TSV).exists():
                raise JournalError(f"{self.folder} holds {_TSV} without {_JSONL}; not ours")
            self._jsonl = LineFile(self.folder / _JSONL)
            self._continue(self._jsonl)
            self._tsv = self._open_tsv()
        except InUse as error:
            self._close()
            raise JournalError(f"{error}; wait for it or choose another folder") from error
        except OSError as error:
            self._close()
            raise JournalError(f"cannot open a journal in {self.folder}: {error}") from error
        except JournalError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        fault = self._close()
        if fault is not None and error is None:
            raise JournalError(f"cannot write the journal in {self.folder}: {fault}") from fault

    def _continue(self, file: LineFile) -> None:
        """Takes in the file's certificates; cuts off a torn line, drops what is not final."""
        self._certificates, self._done = [], set()
        for certificate in _parse(file.read(), file.path):
            self._admit(certificate, f"journal in {self.folder}")
            self._certificates.append(certificate)
            self._done.add(certificate.index)
        file.cut()
        final = [c for c in self._certificates if c.stop != "budget"]
        if len(final) < len(self._certificates):
            file.rewrite(b"".join(map(_line, final)))
            self._certificates, self._done = final, {c.index for c in final}

    def _admit(self, certificate: Certificate, what: str) -> None:
        found = certificate.settings, certificate.source.classifier
        unequal = difference(found, (self._settings, self._classifier))
        if unequal:
            name, has, wanted = unequal
            raise JournalError(
                f"{what} has {name} {has!r}, this run {wanted!r}; choose another folder"
            )
        if certificate.index in self._done:
            raise JournalError(f"{what} has image {certificate.index} a second time")

    def _open_tsv(self) -> LineFile:
        """Opens the table, made anew where it lacks rows or has a torn one."""
        path = self.folder / _TSV
        content = _COLUMNS.encode() + b"".join(_tsv_row(c).encode() for c in self._certificates)
        if not path.exists() or path.read_bytes() != content:
            files.replace(path, content)
        files.remove_temporary(self.folder, _TSV)
        return LineFile(path)

    def _close(self) -> OSError | None:
        fault = None
        opened, self._jsonl, self._tsv = (self._jsonl, self._tsv), None, None
        for file in opened:
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                fault = error
        return fault


def _parse(content: bytes, file: Path) -> list[Certificate]:
    return list(lines_of(content, _CERTIFICATE, what="certificate", file=file, kind=JournalError))


def _line(certificate: Certificate) -> bytes:
    return json.dumps(asdict(certificate), allow_nan=False).encode() + b"\n"


def _tsv_row(certificate: Certificate) -> str:
    c = certificate
    elapsed = timedelta(seconds=c.seconds)
    return f"{c.index}\t{c.label}\t{c.predicted}\t{c.radius:.4f}\t{int(c.correct)}\t{elapsed}\n"
