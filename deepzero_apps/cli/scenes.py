"""What is defended or certified: the settings that describe it, its data and its classifier."""

__all__ = ["Anywhere", "DefenceSettings", "Scene", "as_answered", "held", "scene"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from deepzero_apps.cli.black_boxes import BlackBox, black_box
from deepzero_apps.cli.choices import Dataset, splits_for
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.cli.spreading import WorkersFlags
from deepzero_apps.smoothing.blackbox import Classifier
from deepzero_apps.smoothing.booth import Booth
from deepzero_apps.smoothing.labels import LabelsOnly
from deepzero_apps.smoothing.spread import Spread
from deepzero_apps.vision import Splits

Anywhere = Annotated[Path, AfterValidator(Path.absolute)]
"""A path that a run's settings name, found again from any working directory."""


class DefenceSettings(CommonSettings):
    """What is defended, and with what kind of denoiser."""

    dataset: Dataset = "digits"
    """digits is embedded; folder (one subfolder a class) and npz (uint8 arrays) are your own."""

    root: Anywhere | None = None
    """Where the data set is (not for digits); cifar10 and stl10 look in ./data by default."""

    download: bool = False
    """Fetch cifar10 or stl10 into --root if it is not there."""

    classifier: str = "svc"
    """svc or forest (scikit-learn), cnn, resnet20 (with --weights); your own module:object, model in
    a file (.onnx, .pt2, .pt, .ts), or service described by a .yaml or .json file."""

    weights: Anywhere | None = None
    """A safetensors file for cnn and resnetN."""

    answers: Literal["scores", "labels"] = "scores"
    """labels reduces a classifier of scores to its labels; one that has no scores needs no flag."""

    quantize: int | None = Field(None, ge=1, le=16)
    """Bits of a pixel that the classifier sees, 8 for most services; no rounding by default."""

    denoiser: Literal["dncnn", "unet"] = "unet"
    """The denoiser's kind; unet sees further for less computation."""

    depth: int = Field(4, ge=2, le=100)
    """Convolutions of dncnn; 17 in the literature."""

    width: int = Field(8, ge=1, le=1024)
    """Channels of the denoiser; 64 for dncnn in the literature."""

    latent: int = Field(16, ge=1)
    """Numbers in the code of zo-ae-ds; 192 for 32x32 and 576 for 96x96 images in the literature."""

    sigma: float = Field(0.5, gt=0, le=10)
    """Standard deviation of the noise, for pixels in [0, 1]."""

    objective: Literal["stability", "classification"] = "stability"
    """Wanted classes: the classifier's own clean answers (one query an image), or the labels."""


Described = TypeVar("Described", bound=DefenceSettings)


@dataclass(frozen=True)
class Scene:
    """Data and classifier, as several commands need them."""

    splits: Splits
    box: BlackBox


def scene(settings: DefenceSettings) -> Scene:
    """Loads the data and fits or imports the classifier.

    Raises:
        Misuse: If one of them cannot be had.
    """
    found = splits_for(
        settings.dataset, root=settings.root, download=settings.download, seed=settings.seed
    )
    splits = found.to(settings.device)
    try:
        box = black_box(
            settings.classifier,
            found,
            weights=settings.weights,
            seed=settings.seed,
            device=settings.device,
            bits=settings.quantize,
        )
    except (OSError, ValueError, TypeError) as error:
        raise Misuse(f"--classifier {settings.classifier}: {error}") from error
    if box.classifier.classes != len(splits.train.classes):
        raise Misuse(
            f"--classifier must know the {len(splits.train.classes)} classes of the data, "
            f"got {box.classifier.classes}"
        )
    if settings.answers == "labels" and box.scores:
        box = replace(box, classifier=LabelsOnly(box.classifier), scores=False)
    return Scene(splits, box)


@contextmanager
def held(settings: WorkersFlags, classifier: Classifier) -> Iterator[Classifier]:
    """Has a classifier held by workers for the time of a block, where there are to be any.

    Args:
        settings: How many workers, and where.
        classifier: The black box.

    Yields:
        What asks the workers, a `Spread`; the classifier itself where there are none.

    Raises:
        Misuse: If there can be no workers.
    """
    with settings.pool(partial(Booth, str(Path.cwd()))) as pool:
        if pool is None:
            yield classifier
        else:
            yield Spread(classifier, pool, device=settings.device)


def as_answered(settings: Described, view: Scene) -> Described:
    """Returns the settings with ``answers`` as the classifier gives them."""
    return settings.model_copy(update={"answers": "scores" if view.box.scores else "labels"})
