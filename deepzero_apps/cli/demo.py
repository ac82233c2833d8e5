"""``deepzero-apps demo``: both applications at a small size, in a few minutes.

Defence: a support vector machine on handwritten digits has no gradients. A denoiser is trained in front of
it with queries alone, both are certified, and the curve is drawn.

Correction: a coarse simulator of the flow behind a disc loses its eddies. A network that
corrects each of its steps is trained with calls to it alone, and the flows are drawn.
"""

__all__ = ["DemoSettings", "run"]

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from deepzero_apps.cli import compare_correction, compare_defence
from deepzero_apps.cli.compare_correction import CompareCorrectionSettings
from deepzero_apps.cli.compare_defence import CompareDefenceSettings
from deepzero_apps.cli.driving import folder_for, write_json
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.cli.votes import Votes
from deepzero_apps.runs import RunFolder

Part = Literal["defence", "correction"]

_TRAJECTORIES = "trajectories"


class DemoSettings(CommonSettings):
    """Defends and certifies a classifier, and corrects a simulator, that have no gradients."""

    out: Path | None = None
    """Where runs and figures go; runs/demo-TIME by default."""

    resume: bool = False
    """Continue the demo in --out."""

    only: Part | None = None
    """Show this application alone."""

    classifier: Literal["svc", "forest"] = "svc"
    """A support vector machine or a random forest, of scikit-learn."""

    budget: int = Field(240_000, ge=1)
    """Queries for training the denoiser."""

    images: int = Field(200, ge=0)
    """Test images to certify."""

    steps: int = Field(64_800, ge=1)
    """Simulator steps for training the corrector."""


def run(settings: DemoSettings) -> int:
    """Runs a small comparison of each application."""
    folder = folder_for("demo", settings.out, resume=settings.resume)
    _refuse_foreign(folder, resume=settings.resume)
    if settings.only != "defence":
        _refuse_early(settings, folder)
    parts: dict[Part, Callable[[DemoSettings, Path], None]] = {
        "defence": _defence,
        "correction": _correction,
    }
    document: dict[str, Any] = {"settings": settings.record()}
    for name, show in parts.items():
        if settings.only in (None, name):
            show(settings, folder / name)
            document[name] = (RunFolder(folder / name).result() or {})["rows"]
    write_json(settings.json_file, document)
    return 0


def _defence(settings: DemoSettings, folder: Path) -> None:
    _say(
        f"A {settings.classifier} classifies 8x8 digits. It has no gradients, and noise of sigma 0.5\n"
        f"ruins it. A denoiser is trained before it with {settings.budget:,} queries (zo-cv), from\n"
        "one that never asked it (mse). Then all are certified: no change of the image below the\n"
        "radius r, in l2 norm, changes the answer, with confidence 99.9 %."
    )
    compare_defence.run(
        CompareDefenceSettings(
            seed=settings.seed,
            device=settings.device,
            threads=settings.threads,
            classifier=settings.classifier,
            methods=("none", "mse", "zo-cv"),
            budget=settings.budget,
            votes=Votes(images=settings.images, n=1_000),
            out=folder,
            resume=settings.resume,
        )
    )
    _say(
        f"Look at {folder / 'certified_accuracy.png'} and {folder / 'zo-cv' / 'denoised.png'}.\n"
        "Next: deepzero-apps compare defence --classifier cnn, or defend --classifier module:object "
        "for one of your own.\n"
    )


def _correction(settings: DemoSettings, folder: Path) -> None:
    _say(
        "A simulator of the flow behind a disc, on 20x40 cells, is fast and wrong: its eddies fade.\n"
        "One on 80x160 cells says what they should do. A network of 2,417 weights pushes the coarse\n"
        f"one from inside of its step. It is trained with {settings.steps:,} steps of that simulator\n"
        "and none of its gradients, and sees only where four steps end (zo-field). Then it runs for\n"
        "100 steps at Reynolds numbers that it has not seen, from frames of the reference."
    )
    compare_correction.run(_comparison(settings, folder))
    _say(
        f"Look at {folder / 'rollout.gif'}: above the reference, below it the coarse simulator, whose\n"
        "eddies fade, and at the bottom the corrected one, which keeps them. "
        f"{folder / 'fields.png'} shows\nfour moments, {folder / 'errors.png'} the error against "
        "time.\n"
        "Next: deepzero-apps compare correction, or correct --problem module:function for a simulator "
        "of your own."
    )


def _comparison(settings: DemoSettings, folder: Path) -> CompareCorrectionSettings:
    return CompareCorrectionSettings(
        seed=settings.seed,
        threads=settings.threads,
        methods=("src", "zo-field"),
        seeds=1,
        loss="terminal",
        inside=True,
        budget=settings.steps,
        data=folder.with_name(_TRAJECTORIES),
        out=folder,
        resume=settings.resume,
    )


def _refuse_early(settings: DemoSettings, folder: Path) -> None:
    """Refuses what the second part could not do before minutes are spent on the first."""
    try:
        compare_correction.possible(_comparison(settings, folder / "correction"))
    except Misuse as error:
        raise Misuse(str(error).replace("--budget", "--steps")) from error


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _refuse_foreign(folder: Path, *, resume: bool) -> None:
    """Refuses a folder of something else, or of a demo that is not to be continued."""
    own = {"defence", "correction", _TRAJECTORIES}
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in found if name not in own]
    if folder.is_file() or foreign:
        raise Misuse(
            f"--out must be empty or hold a demo, got {(foreign or [folder.name])[0]!r}; "
            "choose another"
        )
    if found and not resume:
        raise Misuse(f"--out holds a demo already, got {folder}; pass --resume to continue it")
