"""``deepzero-apps train``: a classifier from scratch, with or without backpropagation.

A run's folder then holds, besides what `deepzero_apps.runs` keeps, ``weights.safetensors`` (the
``state_dict`` after the last step, nothing else), ``result.json`` and ``training.png``. Validation
accuracy is measured once an epoch and never picks a checkpoint; the test images are
looked at once, after the last step.
"""

__all__ = ["TrainSettings", "run"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from rich.console import Console

from deepzero_apps.cli.choices import Dataset, Network, network_for, splits_for
from deepzero_apps.cli.settings import DrivenSettings, Misuse
from deepzero_apps.cli.spreading import WorkersFlags

if TYPE_CHECKING:
    from torch import nn

    from deepzero_apps.runs import RunFolder
    from deepzero_apps.vision import Splits
    from deepzero_apps.vision.training import Recipe
    from deepzero_apps.zeroth_order.gradients import WeightGradient
    from deepzero_apps.zeroth_order.training import Training

_INFINITY = float("inf")


class TrainSettings(WorkersFlags, DrivenSettings):
    """Trains a classifier from scratch: by backpropagation (fo), coordinates (cge), directions (rge)."""

    out: Path
    """The run's folder, new or empty: settings, metrics, checkpoints, weights, result, figure."""

    resume: bool = False
    """Continue the run in --out from its last checkpoint, to the same final weights."""

    dataset: Dataset = "digits"
    """digits is embedded; folder (one subfolder a class) and npz (uint8 arrays) are your own."""

    root: Path | None = None
    """Where the data set is (not for digits); cifar10 and stl10 look in ./data by default."""

    download: bool = False
    """Fetch cifar10 or stl10 into --root if it is not there."""

    network: Network = "adjustable-cnn"
    """adjustable-cnn is small enough for dense zeroth-order gradients; a ResNet wants --sparsity."""

    depth: int = Field(2, ge=1)
    """Blocks of the adjustable CNN (convolution, batch norm, ReLU, pool)."""

    width: int = Field(18, ge=1)
    """Channels of the adjustable CNN."""

    estimator: Literal["fo", "cge", "outputs", "rge"] = "cge"
    """fo: backpropagation. cge: one query a weight. outputs: a layer's outputs where fewer. rge: directions."""

    sparsity: float = Field(0.0, ge=0, lt=1)
    """Share of weights (outputs: of layer outputs) that a step does not move, in [0, 1); not for rge."""

    allocation: Literal["uniform", "energy", "zo-grasp", "grasp"] = "energy"
    """How layers share a sparse gradient: by size, measured slopes, ZO-GraSP, GraSP (autograd)."""

    interval: int = Field(1, ge=1)
    """A sparse gradient's weights are drawn anew after this many steps or epochs."""

    interval_unit: Literal["steps", "epochs"] = "steps"
    """The unit of --interval."""

    order: Literal["random", "cyclic"] = "cyclic"
    """cyclic: draws walk through all weights, so that none waits longer than a cycle. random: as drawn."""

    stale_decay: float = Field(0.0, ge=0, le=1)
    """Keep the last slopes of weights that a step leaves out, multiplied by this at each step."""

    reset_momentum: bool = False
    """Let the optimizer forget whenever the weights of a sparse gradient are drawn anew."""

    mu: float = Field(1e-3, gt=0, lt=_INFINITY)
    """Finite-difference step, in the units of the weights; for rge 1e-4 is a better start."""

    mu_outputs: float = Field(3e-3, gt=0, lt=_INFINITY)
    """Finite-difference step of layer outputs, in their units; for outputs only."""

    q: int | None = Field(None, ge=1)
    """Directions a step of rge; as many as the network has weights by default."""

    central: bool = False
    """Take differences on both sides: twice the queries, the error falls with mu squared."""

    directions: Literal["gaussian", "sphere", "rademacher"] = "gaussian"
    """The law of rge's directions."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the convolutions of cge and outputs; bfloat16 is several times faster where built in."""

    hold_unselected: bool = False
    """Keep weights outside of a sparse gradient where they are (wants a rate about 10 times larger)."""

    epochs: int = Field(10, ge=1)
    """Passes over the training images; an epoch drops its last, incomplete batch."""

    batch: int = Field(32, ge=2)
    """Images a step."""

    optimizer: Literal["sgd", "adam"] = "adam"
    """What uses the gradient; the learning rate falls to zero along a half cosine."""

    lr: float = Field(0.03, gt=0, lt=_INFINITY)
    """Peak learning rate."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""

    weight_decay: float = Field(0.0, ge=0, lt=_INFINITY)
    """Pull of the weights to zero, added to the gradient."""

    warmup: int = Field(0, ge=0)
    """Steps in which the learning rate rises; fewer than the run has."""

    clip: float | None = Field(None, gt=0)
    """Largest gradient norm; larger gradients are scaled down."""

    augment: bool = False
    """Shift images by up to 4 pixels and mirror them: for photographs of 32x32, not for digits."""

    budget: int | None = Field(None, ge=1)
    """The most queries (network evaluations on a batch); the run ends cleanly before exceeding it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sparsity and self.estimator == "rge":
            raise ValueError("--sparsity must be 0 for rge, which moves all weights at once")
        if self.central and self.estimator == "outputs":
            raise ValueError("--central must be left out for outputs, which moves to one side")
        if not self.sparsity or self.estimator == "outputs":
            self._refuse_options_of_sparse_weights()
        if self.precision != "float32" and self.estimator not in ("cge", "outputs"):
            raise ValueError(f"--precision must be float32 for {self.estimator}, got bfloat16")
        if self.q is not None and self.estimator != "rge":
            raise ValueError(f"--q must be left out for {self.estimator}, got {self.q}")
        if self.spreads and self.estimator in ("fo", "outputs"):
            raise ValueError(
                f"--workers must be left out for {self.estimator}, got {self.workers}; cge and rge "
                "come in pieces that workers can measure"
            )
        return self

    def _refuse_options_of_sparse_weights(self) -> None:
        for name in ("stale_decay", "reset_momentum"):
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} must be left out unless weights are moved at --sparsity above 0, "
                    f"got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class _Task:
    """A run that is ready to start."""

    training: "Training"
    splits: "Splits"
    steps: int
    epoch: int
    parameters: int


def run(settings: TrainSettings) -> int:
    """Trains, or continues, one run.

    Args:
        settings: What to train, how and where.

    Returns:
        The exit code.
    """
    from deepzero_apps.cli.driving import opened

    with (
        _prepared(settings) as task,
        opened("train", settings.out, settings, resume=settings.resume) as folder,
    ):
        result = folder.result()
        if result is None:
            _train(task, settings, folder)
            result = _result(task, settings)
            _write(task, settings, folder, result)
    _report(result, settings)
    return 0


@contextmanager
def _prepared(settings: TrainSettings) -> Iterator[_Task]:
    """Loads data and builds network and estimate; refuses what cannot work before any file."""
    from deepzero_apps.cli.training_gradient import gradient_for
    from deepzero_apps.vision import Splits
    from deepzero_apps.vision.training import classifier_training
    from deepzero_apps.zeroth_order.oracle import BudgetExhausted, Meter
    from deepzero_apps.zeroth_order.randomness import generator_for
    from deepzero_apps.zeroth_order.state import Weights

    found = splits_for(
        settings.dataset, root=settings.root, download=settings.download, seed=settings.seed
    )
    splits = Splits(
        found.train.to(settings.device),
        found.validation.to(settings.device),
        found.test.to(settings.device),
        found.name,
    )
    network = network_for(
        settings.network,
        splits,
        depth=settings.depth,
        width=settings.width,
        generator=generator_for(settings.seed, "initial weights"),
    ).to(settings.device)
    if settings.batch > len(splits.train):
        raise Misuse(
            f"--batch must be at most the {len(splits.train)} training images, "
            f"got {settings.batch}"
        )
    epoch = len(splits.train) // settings.batch
    recipe = _recipe(settings, epoch * settings.epochs)
    meter = Meter(settings.budget)
    try:
        gradient = gradient_for(settings, network, splits, recipe, meter=meter, epoch=epoch)
    except BudgetExhausted as error:
        raise Misuse(f"--budget must cover the scores of --allocation: {error}") from error
    with _spread(gradient, network, splits, recipe, settings=settings) as gradient:
        training = classifier_training(network, splits.train, gradient, recipe, meter=meter)
        yield _Task(training, splits, recipe.steps, epoch, Weights(network).total)


@contextmanager
def _spread(
    gradient: "WeightGradient",
    network: "nn.Module",
    splits: "Splits",
    recipe: "Recipe",
    *,
    settings: TrainSettings,
) -> Iterator["WeightGradient"]:
    """The same gradient, measured by workers if there are to be any."""
    from deepzero_apps.vision.training import labelled_batch
    from deepzero_apps.workers import Sharded
    from deepzero_apps.workers.sharded import Measurer
    from deepzero_apps.zeroth_order.pieces import Divisible
    from deepzero_apps.zeroth_order.stale import Remembered

    plain = gradient.plain if isinstance(gradient, Remembered) else gradient
    if not isinstance(plain, Divisible):
        yield gradient
        return
    batches = partial(labelled_batch, splits.train, recipe)
    with settings.pool(partial(Measurer, network, plain, batches)) as pool:
        if pool is None:
            yield gradient
            return
        spread = Sharded(plain, pool)
        yield Remembered(spread, gradient.decay) if isinstance(gradient, Remembered) else spread


def _recipe(settings: TrainSettings, steps: int) -> "Recipe":
    from deepzero_apps.vision.training import Recipe

    if settings.warmup >= steps:
        raise Misuse(f"--warmup must be fewer than the run's {steps} steps, got {settings.warmup}")
    return Recipe(
        steps=steps,
        batch=settings.batch,
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
        clip=settings.clip,
        augment=settings.augment,
        hold_unselected=settings.hold_unselected,
        forget_at_redraw=settings.reset_momentum,
        seed=settings.seed,
    )


def _train(task: _Task, settings: TrainSettings, folder: "RunFolder") -> None:
    from deepzero_apps.cli.driving import drive
    from deepzero_apps.vision.training import accuracy

    def observe(row: dict[str, float]) -> dict[str, float]:
        if row["step"] % task.epoch:
            return row
        validated = accuracy(task.training.network, task.splits.validation)
        return {**row, "epoch": row["step"] // task.epoch, "validation_accuracy": validated}

    drive(
        task.training,
        folder,
        task.steps,
        title=f"training {task.parameters:,} weights ({settings.estimator})",
        checkpoint_every=settings.checkpoint_every,
        observe=observe,
    )


def _result(task: _Task, settings: TrainSettings) -> dict[str, Any]:
    from deepzero_apps.vision.training import accuracy

    training = task.training
    return {
        "dataset": task.splits.name,
        "network": settings.network,
        "parameters": task.parameters,
        "estimator": settings.estimator,
        "steps": training.step,
        "steps_asked_for": task.steps,
        "queries": training.meter.spent,
        "seconds": training.seconds,
        "validation_accuracy": accuracy(training.network, task.splits.validation),
        "test_accuracy": accuracy(training.network, task.splits.test),
    }


def _write(
    task: _Task, settings: TrainSettings, folder: "RunFolder", result: dict[str, Any]
) -> None:
    import safetensors.torch

    from deepzero_apps.cli.training_figures import training_curves
    from deepzero_apps.runs.files import replace

    state = {
        name: value.detach().cpu().contiguous()
        for name, value in task.training.network.state_dict().items()
    }
    replace(folder.path / "weights.safetensors", safetensors.torch.save(state))
    training_curves(
        folder.metrics(),
        folder.path / "training.png",
        title=f"{settings.network}, {task.parameters:,} weights, {settings.estimator}",
    )
    folder.finish(result)


def _report(result: dict[str, Any], settings: TrainSettings) -> None:
    from deepzero_apps.cli.driving import write_json

    console = Console(soft_wrap=True)
    if result["steps"] < result["steps_asked_for"]:
        console.print(
            f"stopped by the budget after {result['steps']} of {result['steps_asked_for']} steps"
        )
    console.print(
        f"test accuracy {result['test_accuracy']:.2f} % after {result['queries']:,} queries and "
        f"{result['seconds']:.1f} s; see {settings.out}",
        markup=False,
        highlight=False,
    )
    write_json(settings.json_file, {"settings": settings.record(), "result": result})
