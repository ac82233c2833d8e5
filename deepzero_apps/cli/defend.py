"""``deepzero-apps defend``: a denoiser trained in front of a classifier that is only asked.

The run's folder then holds ``denoiser.safetensors`` (plain weights), ``denoised.png`` and
``result.json`` besides settings, metrics and checkpoints. Every method but ``mse`` starts from a
denoiser trained by ``mse``: its own run in the subfolder ``start``, or the one that ``--start`` names.
"""

__all__ = [
    "DefenceSettings",
    "DefendSettings",
    "defend",
    "deployed",
    "planned_steps",
    "run",
    "scene",
]

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from deepzero_apps.cli.black_boxes import BlackBox, black_box
from deepzero_apps.cli.choices import Dataset, splits_for
from deepzero_apps.cli.defences import (
    TUNED,
    Defence,
    MethodName,
    Tuning,
    build,
    compressed,
    scores_of,
)
from deepzero_apps.cli.driving import drive, new_folder
from deepzero_apps.cli.settings import CommonSettings, Misuse
from deepzero_apps.runs import RunFolder
from deepzero_apps.runs.files import replace
from deepzero_apps.smoothing.blackbox import Defended
from deepzero_apps.smoothing.denoisers import dncnn, unet
from deepzero_apps.smoothing.report import plot_images
from deepzero_apps.smoothing.training import Recipe, clean_answers, defence_training, steps_within
from deepzero_apps.vision import Splits, load_weights
from deepzero_apps.zeroth_order.oracle import Meter, Oracle
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Training


class DefenceSettings(CommonSettings):
    """What is defended, and with what kind of denoiser."""

    dataset: Dataset = "digits"
    """digits is embedded; folder (one subfolder a class) and npz (uint8 arrays) are your own."""

    root: Path | None = None
    """Where the data set is (not for digits); cifar10 and stl10 look in ./data by default."""

    download: bool = False
    """Fetch cifar10 or stl10 into --root if it is not there."""

    classifier: str = "svc"
    """svc or forest (scikit-learn), cnn, resnet20 (with --weights), or your own module:object."""

    weights: Path | None = None
    """A safetensors file for cnn and resnetN."""

    denoiser: Literal["dncnn", "unet"] = "unet"
    """The denoiser's kind; unet sees further for less computation."""

    depth: int = Field(4, ge=2)
    """Convolutions of dncnn; 17 in the literature."""

    width: int = Field(8, ge=1)
    """Channels of the denoiser; 64 for dncnn in the literature."""

    latent: int = Field(16, ge=1)
    """Numbers in the code of zo-ae-ds; 192 for 32x32 and 576 for 96x96 images in the literature."""

    sigma: float = Field(0.5, gt=0, le=10)
    """Standard deviation of the noise, for pixels in [0, 1]."""

    objective: Literal["stability", "classification"] = "stability"
    """Wanted classes: the classifier's own clean answers (one query an image), or the labels."""

    batch: int = Field(64, ge=1)
    """Images a step."""

    checkpoint_every: float = Field(20.0, ge=0)
    """Seconds between checkpoints; 0 for one after every step."""

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result: how often it is stored does not."""
        return {k: v for k, v in super().record().items() if k != "checkpoint_every"}


class DefendSettings(DefenceSettings):
    """Trains a denoiser in front of a classifier, with queries alone.

    Methods: mse asks nothing; zo-ds perturbs the denoised image, zo-ae-ds an autoencoder's code,
    deepzero the denoiser's weights; zo-cv perturbs the image and subtracts what a surrogate,
    fitted to the paid answers, already knows; fo-ds backpropagates where that is possible.
    """

    out: Path | None = None
    """The run's folder, new or empty; runs/defend-TIME by default."""

    resume: bool = False
    """Continue the run in --out from its last checkpoint, to the same final weights."""

    method: MethodName = "zo-cv"
    """How the gradient comes about; see above."""

    budget: int = Field(1_000_000, ge=1)
    """The most queries (images shown to the classifier) that training may spend."""

    steps: int | None = Field(None, ge=1)
    """Steps of mse and fo-ds, which no budget limits, and of the mse start of the others."""

    lr: float | None = Field(None, gt=0, lt=float("inf"))
    """Adam's learning rate at the start; the method's tuned one by default."""

    mu: float | None = Field(None, gt=0, lt=float("inf"))
    """Finite-difference step: in pixels, code units (zo-ae-ds) or weight units (deepzero)."""

    q: int | None = Field(None, ge=1)
    """Directions an image (zo-ds, zo-cv), or weights moved a step (deepzero)."""

    start: Path | None = None
    """Start from these denoiser weights instead of training by mse first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "none":
            raise ValueError("--method must train something, got none; certify needs no defence")
        if self.method == "zo-ae-ds" and self.start is not None:
            raise ValueError("--start must be left out for zo-ae-ds, whose start has a code")
        return self

    def tuning(self) -> Tuning:
        """Returns the method's tuned settings with the flags that override them."""
        tuned = TUNED[self.method]
        return Tuning(
            lr=self.lr or tuned.lr,
            q=self.q or tuned.q,
            mu=self.mu or tuned.mu,
            steps=self.steps or tuned.steps,
        )


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
        )
    except (OSError, ValueError, TypeError) as error:
        raise Misuse(f"--classifier {settings.classifier}: {error}") from error
    if box.classifier.classes != len(splits.train.classes):
        raise Misuse(
            f"--classifier must know the {len(splits.train.classes)} classes of the data, "
            f"got {box.classifier.classes}"
        )
    return Scene(splits, box)


def denoiser(settings: DefenceSettings, shape: tuple[int, int, int], *, code: bool) -> nn.Module:
    """Builds the untrained denoiser, with an autoencoder behind it if ``code``.

    Raises:
        Misuse: If the images do not fit it.
    """
    channels, *sides = shape
    generator = generator_for(settings.seed, "denoiser")
    if settings.denoiser == "dncnn":
        network = dncnn(
            channels=channels,
            depth=settings.depth,
            width=settings.width,
            batch_norm=settings.depth > 4,
            generator=generator,
        )
    elif any(side % 2 for side in sides):
        raise Misuse(f"--denoiser unet must have images of even sides, got {sides}; use dncnn")
    else:
        network = unet(channels=channels, width=settings.width, generator=generator)
    if code:
        try:
            network = compressed(network, shape, latent=settings.latent, seed=settings.seed)
        except ValueError as error:
            raise Misuse(f"--latent: {error}") from error
    return network.to(settings.device)


def deployed(settings: DefendSettings, folder: Path, view: Scene) -> nn.Module:
    """Loads the denoiser of a finished run.

    Raises:
        ValueError: If the weights do not fit.
    """
    shape = view.splits.train.shape
    network = denoiser(settings, shape, code=settings.method == "zo-ae-ds")
    load_weights(network, folder / "denoiser.safetensors")
    return network.eval()


def defend(settings: DefendSettings, folder: Path, view: Scene) -> dict[str, Any]:
    """Trains, or continues, one defence in a folder.

    Args:
        settings: What to train and how.
        folder: The run's folder.
        view: Data and classifier.

    Returns:
        The result: ``method``, ``queries``, ``seconds``, ``steps``, ``fingerprint``.
    """
    meter = Meter(settings.budget)
    oracle = _oracle(view, meter)
    defence = _defence(settings, view, oracle)  # refuses before anything is written
    steps = _steps(settings, defence, view)
    with RunFolder.create(folder, settings.record(), resume=settings.resume) as run_folder:
        done = run_folder.result()
        if done is not None:
            return done
        begun = _start(settings, folder, view, defence.network)
        training = _training(settings, view, defence, steps, oracle=oracle)
        title = f"{settings.method}: {steps:,} steps"
        drive(training, run_folder, steps, title=title, checkpoint_every=settings.checkpoint_every)
        _write(settings, folder, view, defence.network)
        result = {
            "method": settings.method,
            "classifier": view.box.classifier.fingerprint,
            "queries": meter.spent,
            "steps": training.step,
            "seconds": training.seconds + begun,
        }
        run_folder.finish(result)
        return result


def planned_steps(settings: DefendSettings, view: Scene) -> int:
    """Returns how many steps a defence will make.

    Raises:
        Misuse: If the settings cannot be carried out.
    """
    return _steps(settings, _defence(settings, view, _oracle(view, Meter(0))), view)


def run(settings: DefendSettings) -> int:
    """Trains one defence and says where it is."""
    folder = settings.out or new_folder("defend")
    result = defend(settings, folder, scene(settings))
    console = Console(soft_wrap=True)
    console.print(
        f"{result['method']}: {result['steps']:,} steps, {result['queries']:,} queries, "
        f"{result['seconds']:.0f} s\n"
        f"denoiser in {folder / 'denoiser.safetensors'}, images in {folder / 'denoised.png'}\n"
        f"next: deepzero-apps certify --run {folder}",
        markup=False,
        highlight=False,
    )
    if settings.json_file is not None:
        document = {"settings": settings.record(), "result": result}
        settings.json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def _oracle(view: Scene, meter: Meter) -> Oracle:
    return Oracle(
        lambda images: scores_of(view.box.classifier(images)), meter=meter, name="the classifier"
    )


def _defence(settings: DefendSettings, view: Scene, oracle: Oracle) -> Defence:
    network = denoiser(settings, view.splits.train.shape, code=settings.method == "zo-ae-ds")
    return build(
        settings.method,
        network,
        oracle=oracle,
        white_box=view.box.white_box,
        tuning=settings.tuning(),
        image_shape=view.splits.train.shape,
        classes=view.box.classifier.classes,
        seed=settings.seed,
    )


def _steps(settings: DefendSettings, defence: Defence, view: Scene) -> int:
    if settings.batch > len(view.splits.train):
        raise Misuse(
            f"--batch must be at most the {len(view.splits.train)} training images, "
            f"got {settings.batch}"
        )
    if not defence.queries:
        return settings.tuning().steps
    answers = len(view.splits.train) if settings.objective == "stability" else 0
    try:
        return steps_within(
            settings.budget - answers, batch=settings.batch, queries=defence.queries
        )
    except ValueError as error:
        raise Misuse(f"--{error}") from error


def _start(settings: DefendSettings, folder: Path, view: Scene, network: nn.Module) -> float:
    """Gives the network its starting weights; returns the seconds that took."""
    if settings.method == "mse":
        return 0.0
    if settings.start is not None:
        load_weights(network, settings.start)
        return 0.0
    code = settings.method == "zo-ae-ds"
    own = folder / "start"
    plain = settings.model_copy(
        update={"method": "mse", "lr": None, "mu": None, "q": None, "resume": True}
    )
    steps = plain.tuning().steps
    start = denoiser(plain, view.splits.train.shape, code=code)
    defence = build(
        "mse",
        start,
        oracle=_oracle(view, Meter(0)),
        white_box=None,
        tuning=plain.tuning(),
        image_shape=view.splits.train.shape,
        classes=view.box.classifier.classes,
        seed=settings.seed,
    )
    with RunFolder.create(own, {**plain.record(), "code": code}, resume=True) as run_folder:
        training = _training(plain, view, defence, steps, oracle=_oracle(view, Meter(0)))
        drive(
            training,
            run_folder,
            steps,
            title=f"start by mse: {steps:,} steps",
            checkpoint_every=settings.checkpoint_every,
        )
    network.load_state_dict(start.state_dict())
    return training.seconds


def _training(
    settings: DefendSettings, view: Scene, defence: Defence, steps: int, *, oracle: Oracle
) -> Training:
    train = view.splits.train
    pixels = train.pixels()
    targets = train.labels
    if settings.method != "mse" and settings.objective == "stability":
        targets = _answers(view, pixels, oracle, defence)
    return defence_training(
        defence.network,
        defence.method,
        pixels,
        targets,
        recipe=Recipe(
            sigma=settings.sigma,
            steps=steps,
            batch=settings.batch,
            lr=settings.tuning().lr,
            seed=settings.seed,
        ),
        meter=oracle.meter,
        companion=defence.surrogate,
    )


def _answers(view: Scene, pixels: Tensor, oracle: Oracle, defence: Defence) -> Tensor:
    """Clean answers; free for fo-ds, which owns the classifier."""
    if not defence.queries:
        return view.box.classifier(pixels).argmax(1)
    return clean_answers(oracle, pixels)


def _write(settings: DefendSettings, folder: Path, view: Scene, network: nn.Module) -> None:
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    replace(folder / "denoiser.safetensors", save(state))
    clean = view.splits.validation.pixels(slice(0, 8))
    generator = generator_for(settings.seed, "figure", device=settings.device)
    noise = torch.empty_like(clean).normal_(generator=generator)
    noisy = clean + settings.sigma * noise
    denoised = Defended(network, view.box.classifier).denoise(noisy)
    rows = {"clean": clean, "noisy": noisy.clamp(0, 1), "denoised": denoised}
    plot_images({name: images.cpu() for name, images in rows.items()}, folder / "denoised.png")
