"""``deepzero-apps compare defence``: all methods of the defence table at equal queries.

Every method is a ``defend`` run and a ``certify`` run of its own, in a subfolder named after it; two
run at a time, or ``--workers``. All start from the same ``mse`` denoiser (``zo-ae-ds`` from one with a code).
"""

__all__ = ["CompareDefenceSettings", "run"]

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Self

import joblib
import torch
import tyro
from pydantic import Field, model_validator
from rich.console import Console
from safetensors.torch import save
from torch import nn

from deepzero_apps.cli.certify import CertifySettings, certify_into, defended, show, title_of
from deepzero_apps.cli.defences import METHODS, MethodName
from deepzero_apps.cli.defend import DefendSettings, defend, planned_steps
from deepzero_apps.cli.driving import folder_for, opened, write_json
from deepzero_apps.cli.progress import lines, watched
from deepzero_apps.cli.scenes import DefenceSettings, Scene, as_answered, scene
from deepzero_apps.cli.settings import DrivenSettings, Misuse, WatchedSettings
from deepzero_apps.cli.spreading import SideBySideFlags, batch_of_runs
from deepzero_apps.cli.votes import RADII, Votes
from deepzero_apps.runs.files import replace
from deepzero_apps.smoothing.blackbox import Defended
from deepzero_apps.smoothing.certify import Certificate
from deepzero_apps.smoothing.reporting.tables import Row, plot_certified_accuracy, summarize

_Cell = tuple[MethodName, Row, list[Certificate]]


class CompareDefenceSettings(DefenceSettings, SideBySideFlags, DrivenSettings):
    """Compares certified defences of one classifier at equal queries.

    Methods: none is the bare classifier, mse a denoiser that never asked it; zo-ds, zo-ae-ds,
    deepzero and zo-cv spend --budget queries each; fo-ds backpropagates, where the classifier
    allows it, and is the ceiling.
    """

    out: Path | None = None
    """Where all runs go; runs/compare-defence-TIME by default."""

    resume: bool = False
    """Continue the comparison in --out."""

    methods: tuple[MethodName, ...] = METHODS
    """Which methods; fo-ds is left out for a classifier without gradients."""

    budget: int = Field(1_000_000, ge=1)
    """The queries that each zeroth-order method may spend on training."""

    steps: int | None = Field(None, ge=1)
    """Steps of mse and fo-ds, which no budget limits; the tuned ones by default."""

    votes: Annotated[Votes, tyro.conf.OmitArgPrefixes] = Votes(images=0)
    """Votes and images."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"--methods must name each method once, got {self.methods}")
        self.votes.settings(self.sigma, self.seed)
        return self

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result."""
        return {**super().record(), "votes": self.votes.record()}


def run(settings: CompareDefenceSettings) -> int:
    """Trains and certifies all methods, prints the table and writes the figure."""
    folder = folder_for("compare-defence", settings.out, resume=settings.resume).absolute()
    view = scene(settings)
    settings = as_answered(settings, view)
    steps = _planned(settings, view)  # refuses before anything is written
    with opened("compare defence", folder, settings, resume=settings.resume) as run_folder:
        cells = _cells(settings, folder, view, steps)
        rows = [row for _, row, _ in cells]
        curves: dict[str, list[Certificate]] = {name: own for name, _, own in cells}
        plot_certified_accuracy(curves, folder / "certified_accuracy.png")
        document = {"rows": [dict(row) for row in rows]}
        run_folder.finish(document)
    images = len(cells[0][2])
    show(rows, title_of(view, settings.sigma, settings.votes, images))
    console = Console(soft_wrap=True)
    console.print(_closed(rows), markup=False, highlight=False)
    console.print(f"runs and figure in {folder}", markup=False)
    write_json(settings.json_file, {"settings": settings.record(), "rows": rows})
    return 0


def _planned(settings: CompareDefenceSettings, view: Scene) -> dict[MethodName, int]:
    """The steps of every method that this classifier allows."""
    methods = [m for m in settings.methods if m != "fo-ds" or view.box.white_box is not None]
    if not methods:
        raise Misuse(
            "--methods must name one besides fo-ds for a classifier without gradients, got fo-ds"
        )
    return {
        m: 0 if m == "none" else planned_steps(_settings(settings, m, None), view) for m in methods
    }


def _cells(
    settings: CompareDefenceSettings, folder: Path, view: Scene, steps: dict[MethodName, int]
) -> list[_Cell]:
    methods = list(steps)
    weights = settings.weights or _stored_classifier(view, folder)
    shared = settings.model_copy(update={"weights": weights})
    start = None
    if set(methods) - {"none", "zo-ae-ds"}:
        defend(_settings(shared, "mse", None), folder / "mse", view)
        start = folder / "mse" / "denoiser.safetensors"
    total = sum(steps.values()) + len(methods) * len(settings.votes.chosen(view))
    title = f"comparing {len(methods)} methods"
    with (
        batch_of_runs(settings) as at_a_time,
        watched(lambda: _lines(folder, methods), title, total=total),
    ):
        work = at_a_time(
            joblib.delayed(_cell)(shared, method, folder, start) for method in methods
        )
    return list(work)


def _lines(folder: Path, methods: Sequence[MethodName]) -> int:
    """Counts the training steps and certificates that are on disk: one line each."""
    files = [folder / m / "metrics.jsonl" for m in methods]
    files += [folder / m / "certificates" / "certificates.jsonl" for m in methods]
    return lines(files)


def _stored_classifier(view: Scene, folder: Path) -> Path | None:
    """Stores the fitted network, so that every process meets the same one without fitting."""
    network = view.box.white_box
    if network is None:
        return None
    path = folder / "classifier.safetensors"
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    replace(path, save(state))
    return path


def _cell(
    settings: CompareDefenceSettings, method: MethodName, folder: Path, start: Path | None
) -> _Cell:
    """Trains and certifies one method; runs in a process of its own, without bars."""
    torch.set_num_threads(settings.threads)
    with redirect_stderr(StringIO()):
        classifier, view, result = _trained(settings, method, folder / method, start)
        certificates, _ = certify_into(
            folder / method / "certificates",
            classifier,
            view,
            _certifying(settings, method, folder / method),
            title=method,
        )
    row = summarize(
        method,
        certificates,
        radii=RADII,
        queries=result["queries"],
        seconds=result["seconds"],
    )
    return method, row, certificates


def _trained(
    settings: CompareDefenceSettings, method: MethodName, folder: Path, start: Path | None
) -> tuple[Defended, Scene, dict[str, Any]]:
    view = scene(settings)
    if method == "none":
        return Defended(nn.Identity(), view.box.classifier), view, {"queries": 0, "seconds": 0.0}
    wanted = _settings(settings, method, start)
    result = defend(wanted, folder, view)
    return defended(wanted, folder, view), view, result


def _settings(
    settings: CompareDefenceSettings, method: MethodName, start: Path | None
) -> DefendSettings:
    own_start = method in ("mse", "zo-ae-ds")
    return DefendSettings(
        **settings.fields_of(DefenceSettings, DrivenSettings),
        method=method,
        budget=settings.budget,
        steps=settings.steps,
        start=None if own_start else start,
        resume=True,
    )


def _certifying(
    settings: CompareDefenceSettings, method: MethodName, folder: Path
) -> CertifySettings:
    return CertifySettings(
        **settings.fields_of(DefenceSettings, WatchedSettings),
        run=None if method == "none" else folder,
        votes=settings.votes,
        resume=True,
    )


def _closed(rows: Sequence[Row]) -> str:
    """Says how much of the gap from mse to fo-ds each method closes."""
    acr = {row["method"]: row["acr"] for row in rows}
    if not {"mse", "fo-ds"} <= acr.keys() or acr["fo-ds"] <= acr["mse"]:
        return ""
    gap = acr["fo-ds"] - acr["mse"]
    shares = [
        f"{name} {100 * (value - acr['mse']) / gap:.0f} %"
        for name, value in acr.items()
        if name not in ("none", "mse", "fo-ds")
    ]
    return f"share of the gap in ACR from mse to fo-ds that is closed: {', '.join(shares)}"
