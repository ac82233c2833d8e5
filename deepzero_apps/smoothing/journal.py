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

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import TypeAdapter, ValidationError

from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.certificates import Certificate

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
        content = file.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read {file}: {error.strerror}") from error
    return _parse(content, file)[0]


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
        self._jsonl: IO[bytes] | None = None
        self._tsv: IO[bytes] | None = None

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
                file.write(text)
                file.flush()
            except OSError as error:
                self._close()  # the line may be torn: nothing must follow it
                raise JournalError(
                    f"cannot write {file.name}: {error.strerror}; what was written before "
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
            self._rewrite(told)
        except OSError as error:
            self._close()
            raise JournalError(f"cannot write {self.folder / _JSONL}: {error}") from error
        self._certificates = told

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _JSONL).exists() and (self.folder / _TSV).exists():
                raise JournalError(f"{self.folder} holds {_TSV} without {_JSONL}; not ours")
            self._jsonl = (self.folder / _JSONL).open("ab+")
            self._continue(self._jsonl)
            self._tsv = self._open_tsv()
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

    def _continue(self, file: IO[bytes]) -> None:
        """Locks the file, takes in its certificates and cuts off a torn line."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(f"{file.name} is in use by another process") from error
        file.seek(0)
        certificates, whole = _parse(file.read(), Path(file.name))
        self._certificates, self._done = [], set()
        for certificate in certificates:
            self._admit(certificate, f"journal in {self.folder}")
            self._certificates.append(certificate)
            self._done.add(certificate.index)
        file.truncate(whole)
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        final = [c for c in self._certificates if c.stop != "budget"]
        if len(final) < len(self._certificates):
            self._rewrite(final)
            self._certificates, self._done = final, {c.index for c in final}

    def _admit(self, certificate: Certificate, what: str) -> None:
        expected = {**asdict(self._settings), "classifier": self._classifier}
        found = {**asdict(certificate.settings), "classifier": certificate.source.classifier}
        for name, value in expected.items():
            if found[name] != value:
                raise JournalError(
                    f"{what} has {name} {found[name]!r}, this run {value!r}; choose another folder"
                )
        if certificate.index in self._done:
            raise JournalError(f"{what} has image {certificate.index} a second time")

    def _rewrite(self, certificates: Sequence[Certificate]) -> None:
        """Replaces the file as a whole; the new one is locked before it takes the old one's name."""
        path = self.folder / _JSONL
        fresh = path.with_suffix(".jsonl.new")
        file = fresh.open("wb+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(b"".join(_line(c) for c in certificates))
            file.flush()
            os.fsync(file.fileno())
            fresh.replace(path)
        except OSError:
            file.close()
            raise
        old, self._jsonl = self._jsonl, file
        if old is not None:
            old.close()

    def _open_tsv(self) -> IO[bytes]:
        """Opens the table, made anew where it lacks rows or has a torn one."""
        path = self.folder / _TSV
        content = _COLUMNS.encode() + b"".join(_tsv_row(c).encode() for c in self._certificates)
        if not path.exists() or path.read_bytes() != content:
            fresh = path.with_suffix(".tsv.new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return path.open("ab")

    def _close(self) -> OSError | None:
        fault = None
        files, self._jsonl, self._tsv = (self._jsonl, self._tsv), None, None
        for file in files:
            try:
                if file is not None:
                    with file:
                        os.fsync(file.fileno())
            except OSError as error:
                fault = error
        return fault


def _parse(content: bytes, file: Path) -> tuple[list[Certificate], int]:
    """Gives the certificates and the number of bytes that they take, a torn line not counted."""
    whole = content.rfind(b"\n") + 1
    certificates = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            certificates.append(_CERTIFICATE.validate_json(line, strict=True))
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"]) or "JSON"
            raise JournalError(
                f"{file}, line {number} is no certificate: {place}: {fault['msg']}"
            ) from error
        except (OverflowError, TypeError) as error:  # of a number that no settings can have
            raise JournalError(f"{file}, line {number} is no certificate: {error}") from error
    return certificates, whole


def _line(certificate: Certificate) -> bytes:
    return json.dumps(asdict(certificate), allow_nan=False).encode() + b"\n"


def _tsv_row(certificate: Certificate) -> str:
    c = certificate
    elapsed = timedelta(seconds=c.seconds)
    return f"{c.index}\t{c.label}\t{c.predicted}\t{c.radius:.4f}\t{int(c.correct)}\t{elapsed}\n"
