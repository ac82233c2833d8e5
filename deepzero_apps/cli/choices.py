"""What subcommands choose by name: data sets and networks, refused with the flag to change."""

__all__ = ["Dataset", "Network", "network_for", "splits_for"]

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepzero_apps.cli.settings import Misuse

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deepzero_apps.vision import Splits

_LOGGER = logging.getLogger(__name__)

Dataset = Literal["digits", "cifar10", "stl10", "folder", "npz"]

Network = Literal[
    "adjustable-cnn", "resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"
]

_RESNET_SMALLEST = 8
"""The side in pixels below which a ResNet's last stage has less than two pixels a side."""


def splits_for(dataset: Dataset, *, root: Path | None, download: bool, seed: int) -> "Splits":
    """Loads a data set.

    Args:
        dataset: Its name.
        root: Where it is; must be left out for digits.
        download: Whether it may be fetched.
        seed: The seed of the division.

    Returns:
        The splits.

    Raises:
        Misuse: If the data is absent, unfit, or the flags do not fit each other.
    """
    from deepzero_apps.vision import load

    try:
        found = load(dataset, root=root, download=download, seed=seed)
    except (OSError, ValueError, TypeError) as error:
        flag = "--root" if str(error).startswith("root") else f"--dataset {dataset}, --root"
        raise Misuse(f"{flag}: {error}") from error
    sizes = (len(found.train), len(found.validation), len(found.test))
    _LOGGER.info("%s has %d training, %d validation and %d test images", found.name, *sizes)
    return found


def network_for(
    network: Network,
    splits: "Splits",
    *,
    depth: int,
    width: int,
    generator: "torch.Generator",
) -> "nn.Module":
    """Builds a classifier for the images of a data set.

    Args:
        network: Its name.
        splits: The images; they decide channels and classes.
        depth: Blocks of the adjustable CNN.
        width: Channels of the adjustable CNN.
        generator: The source of the starting weights.

    Returns:
        The network, on the CPU.

    Raises:
        Misuse: If the images are too small for it.
    """
    from deepzero_apps.vision import adjustable_cnn, resnet

    channels, *sides = splits.train.shape
    classes = len(splits.train.classes)
    if network == "adjustable-cnn":
        most = (max(sides) - 1).bit_length()
        if depth > max(most, 1):
            raise Misuse(
                f"--depth must be at most {most} for images of {sides[0]}x{sides[1]}, which can "
                f"be halved as often, got {depth}"
            )
        return adjustable_cnn(
            depth, width=width, channels=channels, classes=classes, generator=generator
        )
    if min(sides) < _RESNET_SMALLEST:
        raise Misuse(
            f"--network must be adjustable-cnn for images of {sides[0]}x{sides[1]}, got "
            f"{network}, which needs {_RESNET_SMALLEST}x{_RESNET_SMALLEST}"
        )
    layers = int(network.removeprefix("resnet"))
    return resnet(layers, channels=channels, classes=classes, generator=generator)
