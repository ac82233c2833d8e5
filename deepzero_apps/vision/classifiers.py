r"""Image classifiers small enough to train with values alone, and their weights on disk.

Two families map images of shape ``(n, channels, h, w)`` to logits ``(n, classes)``:

- **ResNet** of :math:`6k + 2` layers: a 3x3 stem of 16 channels, three stages of :math:`k` basic
  blocks with 16, 32 and 64 channels, global average pool, linear. A stage that halves the image
  has shortcuts of option A, which own no weights: every second pixel is kept and zero channels are
  added, half of them on either side. Depth 20 has 269,722 weights.
- **Adjustable CNN** of :math:`L` blocks (3x3 convolution, batch norm, ReLU, 2x2 max pool) of one
  width :math:`w`, global average pool, linear. With :math:`c` channels and :math:`m` classes it has

.. math::
    (9 c w + 3 w) + (L - 1) (9 w^2 + 3 w) + (w + 1) m \tag{1}

  weights; at :math:`w = 18, c = 3, m = 10` these are 730, 3,700, 6,670, 9,640 and 12,610.

Weights start as in He et al. (2015): normal with variance 2 / fan-in, biases at zero. Both
families can be traced by torch.fx.

References:
    | Deep Residual Learning for Image Recognition (He et al., 2016), Sec. 4.2
    | https://arxiv.org/abs/1512.03385

    | Delving Deep into Rectifiers (He et al., 2015), Sec. 2.2
    | https://arxiv.org/abs/1502.01852

    | DeepZero: Scaling up Zeroth-Order Optimization (Chen et al., 2024), Sec. 3
    | https://arxiv.org/abs/2310.02025
"""

__all__ = ["Normalize", "adjustable_cnn", "load_weights", "normalized", "resnet"]

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

STAGES = (16, 32, 64)
"""Channels of the three stages of a CIFAR ResNet."""


def resnet(
    depth: int,
    *,
    classes: int = 10,
    channels: int = 3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds the CIFAR ResNet of He et al. with option A shortcuts.

    Args:
        depth: Layers with weights, 6k + 2: 8, 14, 20, 32, 44, 56, 110, ...
        classes: Number of logits, at least 1.
        channels: Channels of an image, at least 1.
        generator: The source of the starting weights; torch's global one by default.

    Returns:
        A network from images ``(n, channels, h, w)`` to logits ``(n, classes)``.

    Raises:
        ValueError: If ``depth`` is not of the form 6k + 2, or a count is below 1.
    """
    _at_least_one(classes=classes, channels=channels)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6k + 2 with k >= 1 (8, 14, 20, 32, ...), got {depth}")
    network = _ResNet(depth // 6, classes=classes, channels=channels)
    _initialize(network, generator)
    return network


def adjustable_cnn(
    depth: int,
    *,
    width: int = 18,
    channels: int = 3,
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds the adjustable CNN, whose number of weights is eq. (1).

    Images whose sides are no power of two, or too small for ``depth`` halvings, keep their last
    partial window when they are pooled, so that any image of at least 1x1 has an answer.

    Args:
        depth: Blocks of convolution, batch norm, ReLU and pool, at least 1.
        width: Channels of every block, at least 1.
        channels: Channels of an image, at least 1.
        classes: Number of logits, at least 1.
        generator: The source of the starting weights; torch's global one by default.

    Returns:
        A network from images ``(n, channels, h, w)`` to logits ``(n, classes)``.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> sum(p.numel() for p in adjustable_cnn(2).parameters())
        3700
    """
    _at_least_one(depth=depth, width=width, channels=channels, classes=classes)
    blocks = [_block(channels if i == 0 else width, width) for i in range(depth)]
    named = [(f"block{i + 1}", block) for i, block in enumerate(blocks)]
    head = [
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(width, classes)),
    ]
    network = nn.Sequential(OrderedDict[str, nn.Module]([*named, *head]))
    _initialize(network, generator)
    return network


class Normalize(nn.Module):
    """Shifts and scales the channels of an image: (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Stores the statistics as buffers.

        Args:
            mean: One number for each channel.
            std: One positive number for each channel.

        Raises:
            ValueError: If the lengths differ, are zero, a number is not finite or ``std`` is not
                positive.
        """
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"mean and std must have one number for each channel, got {len(mean)} and {len(std)}"
            )
        if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise ValueError(
                f"mean must be finite and std finite and positive, got {mean} and {std}"
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Maps images of shape ``(n, channels, h, w)`` to the same shape."""
        return (images - self.mean) / self.std


def normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Puts a `Normalize` before a network, which then takes images in [0, 1].

    Args:
        network: A network that was trained on normalized images. It is not copied.
        mean: One number for each channel.
        std: One positive number for each channel.

    Returns:
        The two in a row; their parts are named ``normalize`` and ``network``.

    Raises:
        ValueError: If ``mean`` or ``std`` is unfit (see `Normalize`).
    """
    parts = [("normalize", Normalize(mean, std)), ("network", network)]
    return nn.Sequential(OrderedDict[str, nn.Module](parts))


def load_weights(network: nn.Module, path: str | PathLike[str]) -> None:
    """Fills a network's weights and buffers from a safetensors file.

    Names and shapes are checked first: on any refusal the network is as it was. The counters of
    batch norm (``num_batches_tracked``) may be missing from the file.

    Args:
        network: The network, changed in place. Its dtype and device are kept.
        path: A ``.safetensors`` file with the network's parameter and buffer names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or no safetensors file, or its names or shapes are
            not the network's; the message lists the first few.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a safetensors file, found none at {path}")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"path must be a whole safetensors file, got {path}, which is truncated or damaged "
            f"({error}); fetch or save it again"
        ) from error
    _check_weights(network.state_dict(), stored, path)
    network.load_state_dict(stored, strict=False)


class _ResNet(nn.Module):
    def __init__(self, blocks: int, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STAGES[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.layer1 = _stage(STAGES[0], STAGES[0], blocks)
        self.layer2 = _stage(STAGES[0], STAGES[1], blocks)
        self.layer3 = _stage(STAGES[1], STAGES[2], blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(STAGES[2], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(torch.flatten(self.pool(features), 1))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else _OptionA((outputs - inputs) // 2)

    def forward(self, features: Tensor) -> Tensor:
        residual = functional.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return functional.relu(residual + self.shortcut(features))


class _OptionA(nn.Module):
    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = _BasicBlock(inputs, outputs)
    return nn.Sequential(first, *(_BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(inputs, outputs, 3, padding=1)),
        ("bn", nn.BatchNorm2d(outputs)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(2, ceil_mode=True)),
    ]
    return nn.Sequential(OrderedDict(parts))


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_weights(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    shapes = [
        f"{name} {tuple(stored[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in stored and stored[name].shape != wanted[name].shape
    ]
    faults = {
        "missing": wanted.keys() - stored.keys() - optional,
        "unexpected": stored.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    found = [f"{len(names)} {kind}: {_first(names)}" for kind, names in faults.items() if names]
    if found:
        raise ValueError(f"path must hold the network's weights, got {path}; {'; '.join(found)}")


def _first(names: Iterable[str], limit: int = 3) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (", ..." if len(ordered) > limit else "")
