"""Every reader on broken files: each is read, or refused with an error that the reader documents.

`corpus` has an input for each fault that was ever found. ``benchmarks/fuzz.py`` runs many more.
"""

import warnings
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.readers import READERS, Reader

CORPUS = Path(__file__).parent / "corpus"
QUICK = ("service answers", "requests to serve", "run folders", "checkpoints", "image archives")
STARTS = ("torch.export programs", "answers of programs")
"""Readers that take long to begin with, or start a process."""


def slug(name: str) -> str:
    return name.replace(" ", "-")


def cases() -> list[tuple[str, Path]]:
    found = [(name, path) for name in READERS for path in sorted((CORPUS / slug(name)).glob("*"))]
    assert len(found) == sum(path.is_file() for path in CORPUS.rglob("*")), "a stray folder"
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def tried(reader: Reader, content: bytes, folder: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reader.accepts(content, folder)


@pytest.mark.parametrize(
    ("name", "path"), cases(), ids=lambda each: str(getattr(each, "name", each))
)
def test_what_once_broke_a_reader_does_not_break_it(name: str, path: Path, folder: Path) -> None:
    assert tried(READERS[name], path.read_bytes(), folder) in (True, False)


@pytest.mark.parametrize("name", READERS)
def test_broken_files_are_refused_or_read(name: str, folder: Path) -> None:
    count = 200 if name in QUICK else 4 if name in STARTS or "runs" in name else 30
    reader = READERS[name]
    for number in range(count):
        content = reader.broken(Random(f"{name}/ci/{number}"))
        assert tried(reader, content, folder) in (True, False)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 100, b"\n\n\n", b"{}", b"[]", b"null"])
def test_what_is_hardly_a_file_is_refused_or_read(name: str, content: bytes, folder: Path) -> None:
    if name not in STARTS:
        assert tried(READERS[name], content, folder) in (True, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", QUICK)
@settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.binary(max_size=300) | JSON.map(lambda value: repr(value).encode(errors="replace"))
)
def test_anything_at_all_is_refused_or_read(name: str, content: bytes, folder: Path) -> None:
    assert tried(READERS[name], content, folder) in (True, False)


def test_a_reader_accepts_what_is_valid(folder: Path) -> None:
    ours = [reader for reader in READERS.values() if reader.share > 4]
    assert len(ours) > 15
    for reader in ours:
        for content in reader.seeds():
            assert tried(reader, content, folder), reader.name
