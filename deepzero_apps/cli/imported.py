"""What a user names as ``module:object``: imported from the working directory, its errors told.

Importing runs code, and a service is sent images and credentials. So what names either must be the
user's own word. The settings of a run, which may be a stranger's, are none: with ``--run`` the
flag is given again.
"""

__all__ = ["importing", "named", "refuse_unnamed"]

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from deepzero_apps.cli.settings import Misuse

SERVICES = (".yaml", ".yml", ".json")
"""Endings of the files that describe a service."""


@contextmanager
def importing(flag: str, kind: str, name: str) -> Iterator[None]:
    """Runs a user's module, found from the working directory.

    Args:
        flag: The flag that names it, such as ``--problem``.
        kind: What the flag wants, such as ``module:function``.
        name: What it got.

    Raises:
        Misuse: If anything is raised inside the block.
    """
    sys.path.insert(0, "")
    try:
        yield
    except Exception as error:  # whatever the user's module raises while it is run
        raise Misuse(
            f"{flag} must name an importable {kind}, got {name}: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove("")


def named(name: str) -> object:
    """Returns the object that ``module:object`` names."""
    module, _, attribute = name.partition(":")
    found: object = getattr(import_module(module), attribute)
    return found


def refuse_unnamed(flag: str, recorded: str, asked: str | None, run: Path) -> None:
    """Refuses to import or to ask what only the settings of a run name.

    Args:
        flag: The flag, such as ``--classifier``.
        recorded: What the run's settings have for it.
        asked: What the user gave for it.
        run: The run's folder.

    Raises:
        Misuse: If ``recorded`` is a ``module:object`` or a service, and not what the user gave.
    """
    service = Path(recorded).suffix.lower() in SERVICES
    if (":" in recorded or service) and asked != recorded:
        does = "is sent images and credentials" if service else "runs code"
        raise Misuse(
            f"{flag} must be given again where it {does}, since the settings in {run} may be a "
            f"stranger's; if you trust them, add: {flag} {shlex.quote(recorded)}"
        )
