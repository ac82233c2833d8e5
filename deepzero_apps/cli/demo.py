"""``deepzero-apps demo``: the main job on embedded data, in a few minutes.

A support vector machine on handwritten digits has no gradients. A denoiser is trained in front of
it with queries alone, both are certified, and the curve is drawn.
"""

__all__ = ["DemoSettings", "run"]

from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.console import Console

from deepzero_apps.cli import compare_defence
from deepzero_apps.cli.certify import Votes
from deepzero_apps.cli.compare_defence import CompareDefenceSettings
from deepzero_apps.cli.driving import folder_for
from deepzero_apps.cli.settings import CommonSettings


class DemoSettings(CommonSettings):
    """Defends and certifies a digit classifier that has no gradients, from scratch."""

    out: Path | None = None
    """Where runs and figures go; runs/demo-TIME by default."""

    resume: bool = False
    """Continue the demo in --out."""

    classifier: Literal["svc", "forest"] = "svc"
    """A support vector machine or a random forest, of scikit-learn."""

    budget: int = Field(240_000, ge=1)
    """Queries for training the denoiser."""

    images: int = Field(200, ge=0)
    """Test images to certify."""


def run(settings: DemoSettings) -> int:
    """Runs the comparison of none, mse and zo-cv at a small size."""
    console = Console(soft_wrap=True)
    folder = folder_for("demo", settings.out, resume=settings.resume)
    console.print(
        f"A {settings.classifier} classifies 8x8 digits. It has no gradients, and noise of sigma 0.5\n"
        f"ruins it. A denoiser is trained before it with {settings.budget:,} queries (zo-cv), from\n"
        "one that never asked it (mse). Then all are certified: no change of the image below the\n"
        "radius r, in l2 norm, changes the answer, with confidence 99.9 %.",
        markup=False,
        highlight=False,
    )
    code = compare_defence.run(
        CompareDefenceSettings(
            seed=settings.seed,
            device=settings.device,
            threads=settings.threads,
            json_file=settings.json_file,
            classifier=settings.classifier,
            methods=("none", "mse", "zo-cv"),
            budget=settings.budget,
            votes=Votes(images=settings.images, n=1_000),
            out=folder,
            resume=settings.resume,
        )
    )
    console.print(
        f"Look at {folder / 'certified_accuracy.png'} and {folder / 'zo-cv' / 'denoised.png'}.\n"
        "Next: deepzero-apps compare defence --classifier cnn, or defend --classifier module:object "
        "for one of your own.",
        markup=False,
        highlight=False,
    )
    return code
