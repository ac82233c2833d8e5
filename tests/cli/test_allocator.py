"""The allocator's settings."""

import ctypes
import platform

import pytest

from deepzero_apps.cli.allocator import keep_freed_memory


def test_glibc_takes_it_up() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not keep_freed_memory()
