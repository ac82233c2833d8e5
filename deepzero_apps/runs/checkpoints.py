"""A folder of numbered checkpoints, of which the newest few are kept.

Two are kept because one may be damaged: by a failing disk, or a copy cut short. Reading then
falls back to the one before and says so; the damaged file stays until newer ones push it out.
"""

__all__ = ["KEPT", "load_latest", "save"]

import re
import warnings
from pathlib import Path

from deepzero_apps.runs.files import RunFolderError, explained
from deepzero_apps.runs.tensorfile import load_file, save_file
from deepzero_apps.runs.trees import Tree

KEPT = 2
"""The number of checkpoints that a folder keeps."""

_NAME = re.compile(r"step-(\d+)\.safetensors")


def save(folder: Path, step: int, state: Tree) -> None:
    """Writes a checkpoint, then removes all but it and the one before it.

    Checkpoints of *later* steps go too: they are damaged ones, or those of a course that the
    caller has abandoned by going back.

    Args:
        folder: The folder of checkpoints.
        step: The number of the checkpoint, not negative.
        state: The tree to store.

    Raises:
        TypeError: If ``step`` is no integer, or the tree holds what cannot be stored.
        ValueError: If ``step`` is negative or the tree too deep.
        RunFolderError: If it cannot be written; the earlier checkpoints are then intact.
    """
    if type(step) is not int:
        raise TypeError(f"step must be an int, got {step!r} of type {type(step).__name__}")
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")

    save_file(folder / f"step-{step:012d}.safetensors", state)
    found = _found(folder)
    earlier = sorted((number for number in found if number < step), reverse=True)
    kept = {step, *earlier[: KEPT - 1]}
    with explained("tidied", folder):
        for number, path in found.items():
            if number not in kept:
                path.unlink()


def load_latest(folder: Path) -> tuple[int, Tree] | None:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: The folder of checkpoints; it may be absent.

    Returns:
        Its step and its tree; ``None`` if there is no checkpoint at all.

    Raises:
        RunFolderError: If there are checkpoints and none can be read.

    Warns:
        UserWarning: If the newest is damaged and an earlier one was read.
    """
    failures: list[str] = []
    for step, path in sorted(_found(folder).items(), reverse=True):
        try:
            state = load_file(path)
        except RunFolderError as error:
            failures.append(str(error))
            continue
        if failures:
            text = f"fell back to the checkpoint of step {step}: {'; '.join(failures)}"
            warnings.warn(text, UserWarning, stacklevel=3)
        return step, state
    if failures:
        raise RunFolderError(f"no checkpoint can be read: {'; '.join(failures)}")
    return None


def _found(folder: Path) -> dict[int, Path]:
    with explained("read", folder):
        paths = list(folder.iterdir()) if folder.exists() else []
    names = ((_NAME.fullmatch(path.name), path) for path in paths)
    return {int(match[1]): path for match, path in names if match}
