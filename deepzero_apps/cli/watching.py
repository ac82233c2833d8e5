"""Watches the black box of a run with canaries, whose first answers are kept in the run's folder."""

__all__ = ["Watch"]

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from deepzero_apps.runs import RunFolderError
from deepzero_apps.runs.files import replace
from deepzero_apps.smoothing.blackbox import Classifier
from deepzero_apps.smoothing.bounds import Settings
from deepzero_apps.smoothing.checks import Canaries, canaries, changes, drift, repeats
from deepzero_apps.smoothing.vote_log import VoteLog, read_votes
from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter

_FIRST, _AGAIN = 3, 1  # queries a canary


class Watch:
    """Canaries at the start and at the end of a run, and at each resumption of it.

    Args:
        folder: The run's folder.
        classifier: The black box.
        images: The clean images that canaries are made of; none for no watching.
        settings: The noise.
    """

    def __init__(
        self, folder: Path, classifier: Classifier, images: Tensor, settings: Settings
    ) -> None:
        self._path = folder / "canaries.json"
        self._classifier = classifier
        self._images = canaries(images, settings, len(images)) if len(images) else images
        self._known: Canaries | None = None
        self._found: list[str] = []

    @property
    def findings(self) -> tuple[str, ...]:
        """What was found, each once, those of earlier processes first."""
        return tuple(dict.fromkeys(self._found))

    def begin(self, meter: Meter, log: VoteLog) -> None:
        """Asks the canaries, or asks them again where the folder knows their answers.

        Nothing is asked that the budget does not cover.
        """
        if self._path.exists():
            self._recall()
            self._ask_again(meter, log)
        elif self._affordable(meter, _FIRST):
            with self._paying(_FIRST, meter, log):
                self._known, self._found = repeats(self._classifier, self._images)
                self._keep()

    @contextmanager
    def holding_back(self, meter: Meter) -> Iterator[None]:
        """Keeps back what the last look at the canaries will cost, if the budget covers it."""
        back = _AGAIN * len(self._images) if self._known is not None else 0
        if meter.budget is None or back > meter.remaining:
            yield
            return
        meter.budget -= back
        try:
            yield
        finally:
            meter.budget += back

    def end(self, meter: Meter, log: VoteLog) -> tuple[str, ...]:
        """Asks the canaries a last time and looks for drift; returns the findings."""
        self._ask_again(meter, log)
        self._found += drift(read_votes(log.path))
        if self._known is not None:
            self._keep()
        return self.findings

    def _ask_again(self, meter: Meter, log: VoteLog) -> None:
        if self._known is not None and self._affordable(meter, _AGAIN):
            with self._paying(_AGAIN, meter, log):
                found = changes(self._classifier, self._known)
                # who draws lots answers in another way each time: that has been said
                self._found += [] if any(f.startswith("repeats") for f in self._found) else found

    @contextmanager
    def _paying(self, queries: int, meter: Meter, log: VoteLog) -> Iterator[None]:
        """Charges queries before they are asked; a look that retries end is no look."""
        before = meter.spent
        meter.charge(queries * len(self._images))
        with suppress(BudgetExhausted):
            yield
            log.append([], spent=meter.spent - before)

    def _affordable(self, meter: Meter, queries: int) -> bool:
        return 0 < queries * len(self._images) <= meter.remaining

    def _keep(self) -> None:
        assert self._known is not None
        answer = self._known.answer.cpu()
        rows = answer.tolist()
        if answer.ndim == 2:  # JSON has no NaN, which stands for a lost answer
            rows = [[None if math.isnan(v) else v for v in row] for row in rows]
        document = {"answer": rows, "findings": list(self.findings)}
        replace(self._path, json.dumps(document).encode() + b"\n")

    def _recall(self) -> None:
        try:
            document = json.loads(self._path.read_bytes())
            self._found = [str(finding) for finding in document["findings"]]
            rows = document["answer"]
            answer = torch.tensor(
                [[math.nan if v is None else v for v in row] for row in rows]
                if isinstance(rows[0], list)
                else rows
            )
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise RunFolderError(f"{self._path} is damaged: {error}; remove it") from error
        if len(answer) == len(self._images):
            self._known = Canaries(self._images, answer.to(self._images.device))
