"""A folder of numbered checkpoints: the newest few, and a copy of the best.

    | ``step-000000000012.safetensors``   | the state after step 12
    | ``best.safetensors``                | the state with the highest score, its step, its score

More than one is kept because one may be damaged: by a failing disk, or a copy cut short. Reading
then falls back to the one before and says so; the damaged file stays until newer ones push it out.

The copy of the best is replaced by a better one alone, as a whole, and *before* the numbered
checkpoint of its step appears. So a process that is killed between the two goes on from an earlier
step, meets the same score again, and loses nothing; the other way round it would go on after that
step and never come back to it.
"""

__all__ = ["Best", "Checkpoints"]

import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from deepzero_apps.runs.files import RunFolderError, explained
from deepzero_apps.runs.tensorfile import load_file, save_file
from deepzero_apps.runs.trees import Tree

_BEST = "best.safetensors"
_NAME = re.compile(r"step-(\d+)\.safetensors")


class Best(NamedTuple):
    """The checkpoint with the highest score so far; of equal ones, the first."""

    step: int
    """The number of steps done."""
    score: float
    """Its score: the higher, the better."""
    state: Tree
    """Its state."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The folder of checkpoints; for reading, it may be absent.
        keep: How many of the newest are kept, at least 1.

    Raises:
        TypeError: If ``keep`` is no int.
        ValueError: If ``keep`` is not positive.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        _check_integer(keep, "keep", least=1)
        self._folder, self._keep = folder, keep
        self._highest: float | None = None

    def save(self, step: int, state: Tree, *, score: float | None = None) -> None:
        """Writes a checkpoint, then removes all but it and those just before it.

        Checkpoints of *later* steps go too: they are damaged ones, or those of a course that the
        caller has abandoned by going back. The copy of the best stays until a better one comes.

        Args:
            step: The number of the checkpoint, not negative.
            state: The tree to store.
            score: How good the state is, on validation data; the higher, the better. NaN is
                never the best. Without a score the copy of the best is left as it is.

        Raises:
            TypeError: If ``step`` is no integer, ``score`` no number, or the tree holds what
                cannot be stored.
            ValueError: If ``step`` is negative or the tree too deep.
            RunFolderError: If it cannot be written; the earlier checkpoints are then intact.

        Warns:
            UserWarning: If the copy of the best is damaged, so that this one takes its place.
        """
        _check_integer(step, "step", least=0)
        if score is not None and self._is_better(_checked(score)):
            best = {"step": step, "score": float(score), "state": state}
            save_file(self._folder / _BEST, best)
            self._highest = float(score)
        save_file(self._folder / f"step-{step:012d}.safetensors", state)
        self._tidy(step)

    def load_latest(self) -> tuple[int, Tree] | None:
        """Reads the newest checkpoint that is whole; where none is, the copy of the best.

        Returns:
            Its step and its tree; ``None`` if there is no checkpoint at all.

        Raises:
            RunFolderError: If there are checkpoints and none can be read.

        Warns:
            UserWarning: If the newest is damaged and an earlier one was read.
        """
        failures: list[str] = []
        for step, path in self._candidates():
            try:
                found = self.load_best() if step is None else (step, load_file(path))
            except RunFolderError as error:
                failures.append(str(error))
                continue
            if found is not None:
                return _told((found[0], found[-1]), failures)
        if failures:
            raise RunFolderError(f"no checkpoint can be read: {'; '.join(failures)}")
        return None

    def load_best(self) -> Best | None:
        """Reads the copy of the best.

        Returns:
            The best of all that were saved with a score; ``None`` if there is none.

        Raises:
            RunFolderError: If it is damaged.
        """
        path = self._folder / _BEST
        with explained("read", path):
            if not path.exists():
                return None
        return _best(load_file(path), path)

    def _is_better(self, score: float) -> bool:
        if self._highest is None:
            self._highest = self._highest_on_disk()
        return not math.isnan(score) and (self._highest is None or score > self._highest)

    def _highest_on_disk(self) -> float | None:
        try:
            best = self.load_best()
        except RunFolderError as error:
            text = f"the best checkpoint is lost, and the next one counts as the best: {error}"
            warnings.warn(text, UserWarning, stacklevel=5)
            return None
        return None if best is None else best.score

    def _candidates(self) -> Iterable[tuple[int | None, Path]]:
        yield from sorted(self._found().items(), reverse=True)
        yield None, self._folder / _BEST

    def _tidy(self, step: int) -> None:
        found = self._found()
        earlier = sorted((number for number in found if number < step), reverse=True)
        kept = {step, *earlier[: self._keep - 1]}
        with explained("tidied", self._folder):
            for number, path in found.items():
                if number not in kept:
                    path.unlink()

    def _found(self) -> dict[int, Path]:
        with explained("read", self._folder):
            paths = list(self._folder.iterdir()) if self._folder.exists() else []
        names = ((_NAME.fullmatch(path.name), path) for path in paths)
        return {int(match[1]): path for match, path in names if match}


def _best(found: Tree, path: Path) -> Best:
    whole = isinstance(found, dict) and set(found) == set(Best._fields)
    if not whole or (type(found["step"]), type(found["score"])) != (int, float):
        raise RunFolderError(
            f"{path} must hold {', '.join(Best._fields)}, got something else; remove it"
        )
    return Best(**found)


def _told(found: tuple[int, Tree], failures: list[str]) -> tuple[int, Tree]:
    if failures:
        text = f"fell back to the checkpoint of step {found[0]}: {'; '.join(failures)}"
        warnings.warn(text, UserWarning, stacklevel=4)
    return found


def _check_integer(value: int, name: str, *, least: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < least:
        bound = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"{name} must {bound}, got {value}")


def _checked(score: float) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise TypeError(f"score must be a number, got {score!r} of type {type(score).__name__}")
    return score
