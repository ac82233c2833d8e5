"""What a user names as ``module:object``: imported from the working directory, its errors told."""

__all__ = ["importing", "named"]

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from deepzero_apps.cli.settings import Misuse


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
