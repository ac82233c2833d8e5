"""``deepzero-apps defend``: a denoiser trained in front of a classifier that is only asked.

The run's folder then holds ``denoiser.safetensors`` (plain weights), ``denoised.png`` and
``result.json`` besides settings, metrics, checkpoints and ``clean_answers.safetensors``. Every method but ``mse`` starts from a
denoiser trained by ``mse``: its own run in the subfolder ``start``, or the one that ``--start`` names.
"""

__all__ = [
    "DefendSettings",
    "defend",
    "deployed",
    "planned_steps",
    "run",
]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn

from deepzero_apps.cli.defences import (
    Defence,
    MethodName,
    Tuning,
    build,
    compressed,
    least_mu,
    tuned,
)
from deepzero_apps.cli.driving import drive, folder_for, opened, write_json
from deepzero_apps.cli.scenes import Anywhere, DefenceSettings, Scene, as_answered, held, scene
from deepzero_apps.cli.settings import DrivenSettings, Misuse, overridden
from deepzero_apps.cli.spreading import WorkersFlags
from deepzero_apps.runs import files, load_file, save_file
from deepzero_apps.smoothing.adapters import Adapter
from deepzero_apps.smoothing.blackbox import Classifier, Defended, labels_of
from deepzero_apps.smoothing.denoisers import dncnn, unet
from deepzero_apps.smoothing.objectives import usable
from deepzero_apps.smoothing.reporting.tables import plot_images
from deepzero_apps.smoothing.training import Recipe, clean_answers, defence_training, steps_within
from deepzero_apps.vision import load_weights
from deepzero_apps.zeroth_order.oracle import Meter, Oracle
from deepzero_apps.zeroth_order.randomness import generator_for
from deepzero_apps.zeroth_order.training import Training


class DefendSettings(DefenceSettings, WorkersFlags, DrivenSettings):
    """Trains a denoiser in front of a classifier, with queries alone.

    Methods: mse asks nothing; zo-ds perturbs the denoised image, zo-ae-ds an autoencoder's code,
    deepzero the denoiser's weights; zo-cv perturbs the image and subtracts what a surrogate,
    fitted to the paid answers, already knows; fo-ds backpropagates where that is possible. A
    classifier may answer scores, or labels alone: then its errors are counted.
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

    batch: int | None = Field(None, ge=1)
    """Images a step; the method's tuned number by default."""

    start: Anywhere | None = None
    """Start from these denoiser weights instead of training by mse first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "none":
            raise ValueError("--method must train something, got none; certify needs no defence")
        if self.method in ("mse", "zo-ae-ds") and self.start is not None:
            raise ValueError(f"--start must be left out for {self.method}, which makes its own")
        if self.spreads and self.method in ("mse", "fo-ds"):
            raise ValueError(
                f"--workers and --cluster must be left out for {self.method}, which asks nothing"
            )
        least = least_mu(self.method, self.quantize)
        if self.mu is not None and self.mu < least:
            raise ValueError(
                f"--mu must be at least {least:.4g}, two levels of --quantize {self.quantize}, "
                f"for {self.method}, got {self.mu:g}"
            )
        return self

    def record(self) -> dict[str, Any]:
        """Returns the fields that define the result, the tuned ones as numbers."""
        numbers = {name: value or None for name, value in asdict(self.tuning()).items()}
        return {**super().record(), **numbers}

    def tuning(self) -> Tuning:
        """Returns the method's tuned settings with the flags that override them."""
        labels = self.answers == "labels"
        return overridden(tuned(self.method, labels=labels, bits=self.quantize), self)


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
        The result: ``method``, ``queries``, ``seconds``, ``steps``, ``classifier``
            (its fingerprint).
    """
    settings = as_answered(settings, view)
    meter = Meter(settings.budget)
    oracle = _oracle(view, meter)
    defence = _defence(settings, view, oracle)  # refuses before anything is written
    steps = _steps(settings, defence, view)
    with (
        opened("defend", folder, settings, resume=settings.resume) as run_folder,
        _metered(view.box.classifier, meter),
    ):
        done = run_folder.result()
        if done is not None:
            return done
        targets = _targets(settings, folder, view, defence, meter=meter)
        begun = _start(settings, folder, view, defence.network)
        training = _training(settings, view, defence, steps, targets=targets, meter=meter)
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
    settings = as_answered(settings, view)
    return _steps(settings, _defence(settings, view, _oracle(view, Meter(0))), view)


def run(settings: DefendSettings) -> int:
    """Trains one defence and says where it is."""
    folder = folder_for("defend", settings.out, resume=settings.resume)
    view = scene(settings)
    with held(settings, view.box.classifier) as classifier:
        asked = replace(view, box=replace(view.box, classifier=classifier))
        result = defend(settings, folder, asked)
    console = Console(soft_wrap=True)
    console.print(
        f"{result['method']}: {result['steps']:,} steps, {result['queries']:,} queries, "
        f"{result['seconds']:.0f} s\n"
        f"denoiser in {folder / 'denoiser.safetensors'}, images in {folder / 'denoised.png'}\n"
        f"next: deepzero-apps certify --run {folder}",
        markup=False,
        highlight=False,
    )
    write_json(settings.json_file, {"settings": settings.record(), "result": result})
    return 0


def _oracle(view: Scene, meter: Meter) -> Oracle:
    return Oracle(
        lambda images: usable(view.box.classifier(images)), meter=meter, name="the classifier"
    )


@contextmanager
def _metered(classifier: Classifier, meter: Meter) -> Iterator[None]:
    """Charges what a service repeats to training, while it lasts."""
    if not isinstance(classifier, Adapter):
        yield
        return
    before = classifier.meter
    try:
        classifier.meter = meter
        yield
    finally:
        classifier.meter = before


def _defence(settings: DefendSettings, view: Scene, oracle: Oracle) -> Defence:
    network = denoiser(settings, view.splits.train.shape, code=settings.method == "zo-ae-ds")
    if settings.start is not None and settings.method != "mse":
        try:
            load_weights(network, settings.start)
        except (OSError, ValueError) as error:
            raise Misuse(f"--start: {error}") from error
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
    batch = settings.tuning().batch
    if batch > len(view.splits.train):
        raise Misuse(
            f"--batch must be at most the {len(view.splits.train)} training images, got {batch}"
        )
    if not defence.queries:
        return settings.tuning().steps
    answers = len(view.splits.train) if settings.objective == "stability" else 0
    step = batch * defence.queries
    if settings.budget < answers + step:
        raise Misuse(
            f"--budget must cover one step of {batch} images with {defence.queries} "
            f"queries each and {answers:,} clean answers (--objective {settings.objective}), "
            f"{answers + step:,} in all, got {settings.budget:,}"
        )
    return steps_within(settings.budget - answers, batch=batch, queries=defence.queries)


def _start(settings: DefendSettings, folder: Path, view: Scene, network: nn.Module) -> float:
    """Gives the network its starting weights; returns the seconds that took."""
    if settings.method == "mse" or settings.start is not None:  # `_defence` has loaded it
        return 0.0
    code = settings.method == "zo-ae-ds"
    own = folder / "start"
    plain = settings.model_copy(
        update={
            "method": "mse",
            "lr": None,
            "mu": None,
            "q": None,
            "batch": None,
            "resume": True,
            "track": (),
        }
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
    record = {**plain.record(), "code": code}
    with opened("defend", own, plain, resume=True, record=record) as run_folder:
        labels = view.splits.train.labels
        training = _training(plain, view, defence, steps, targets=labels, meter=Meter(0))
        drive(
            training,
            run_folder,
            steps,
            title=f"start by mse: {steps:,} steps",
            checkpoint_every=settings.checkpoint_every,
        )
        run_folder.finish({"method": "mse", "steps": steps, "seconds": training.seconds})
    network.load_state_dict(start.state_dict())
    return training.seconds


def _training(
    settings: DefendSettings,
    view: Scene,
    defence: Defence,
    steps: int,
    *,
    targets: Tensor,
    meter: Meter,
) -> Training:
    return defence_training(
        defence.network,
        defence.method,
        view.splits.train.pixels(),
        targets,
        recipe=Recipe(
            sigma=settings.sigma,
            steps=steps,
            batch=settings.tuning().batch,
            lr=settings.tuning().lr,
            seed=settings.seed,
        ),
        meter=meter,
        companion=defence.companion,
    )


def _targets(
    settings: DefendSettings, folder: Path, view: Scene, defence: Defence, *, meter: Meter
) -> Tensor:
    """The classes wanted; clean answers are paid for once and kept, and free for fo-ds."""
    train = view.splits.train
    if settings.method == "mse" or settings.objective == "classification":
        return train.labels
    if not defence.queries:
        return labels_of(view.box.classifier(train.pixels()))
    path = folder / "clean_answers.safetensors"
    if not path.exists():
        # labels, because the oracle of training has made scores of what was lost
        asked = Oracle(lambda images: labels_of(view.box.classifier(images)), meter=meter)
        save_file(path, clean_answers(asked, train.pixels()))
    else:
        meter.charge(len(train))
    kept: Tensor = load_file(path)
    return kept.to(settings.device)


def _write(settings: DefendSettings, folder: Path, view: Scene, network: nn.Module) -> None:
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    files.replace(folder / "denoiser.safetensors", save(state))
    clean = view.splits.validation.pixels(slice(0, 8))
    generator = generator_for(settings.seed, "figure", device=settings.device)
    noise = torch.empty_like(clean).normal_(generator=generator)
    noisy = clean + settings.sigma * noise
    denoised = Defended(network, view.box.classifier).denoise(noisy)
    rows = {"clean": clean, "noisy": noisy.clamp(0, 1), "denoised": denoised}
    plot_images({name: images.cpu() for name, images in rows.items()}, folder / "denoised.png")
