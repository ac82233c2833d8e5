r"""Denoisers and autoencoders that stand before a black-box classifier.

All map images ``(n, c, h, w)`` to images of the same shape. A residual denoiser predicts the noise,
:math:`D(x) = x - R(x)`; its last convolution starts at zero, so that training starts from the
identity and the defended classifier from the bare one.

============ ============================================ ===========================
denoiser     what it is                                   weights (3 channels)
============ ============================================ ===========================
``dncnn``    a chain of 3x3 convolutions                  558,400 (depth 17, width 64)
``unet``     two scales joined by a skip                  23,779 (width 16)
autoencoder  strided convolutions to ``latent`` numbers   318,483 (32x32, latent 192)
             and back
============ ============================================ ===========================

References:
    | Beyond a Gaussian Denoiser (Zhang et al., 2017), https://arxiv.org/abs/1608.03981

    | U-Net (Ronneberger et al., 2015), https://arxiv.org/abs/1505.04597

    | How to Robustify Black-Box ML Models? (Zhang et al., 2022), https://arxiv.org/abs/2203.14195
"""

__all__ = ["Autoencoder", "dncnn", "unet"]

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def dncnn(
    *,
    channels: int = 3,
    depth: int = 17,
    width: int = 64,
    batch_norm: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds a DnCNN: a residual chain of 3x3 convolutions, orthogonally initialized.

    Args:
        channels: The number of image channels.
        depth: The number of convolutions, at least 2.
        width: The number of channels between them.
        batch_norm: Whether the inner convolutions are normalized (and then carry no bias).
        generator: The source of the initial weights; torch's global one by default.

    Returns:
        The network, images ``(n, channels, h, w)`` to the same shape.

    Raises:
        ValueError: If ``depth`` is below 2 or a count below 1.
    """
    _check_at_least(2, depth=depth)
    _check_at_least(1, channels=channels, width=width)
    layers: list[nn.Module] = [_conv(channels, width, bias=True), nn.ReLU()]
    for _ in range(depth - 2):
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [_conv(width, width, bias=not batch_norm), *norm, nn.ReLU()]
    layers.append(_conv(width, channels, bias=not batch_norm))
    return _Residual(nn.Sequential(*layers), generator)


def unet(
    *, channels: int = 3, width: int = 16, generator: torch.Generator | None = None
) -> nn.Module:
    """Builds a small residual U-Net: two scales, joined by a skip; sides must be even.

    Args:
        channels: The number of image channels.
        width: The number of channels at the full scale; twice as many at half the scale.
        generator: The source of the initial weights; torch's global one by default.

    Returns:
        The network, images ``(n, channels, h, w)`` to the same shape.

    Raises:
        ValueError: If a count is below 1.
    """
    _check_at_least(1, channels=channels, width=width)
    return _Residual(_TwoScales(channels, width), generator)


class Autoencoder(nn.Module):
    """Squeezes images through a few numbers, so that few numbers need a gradient.

    Args:
        shape: The images' shape ``(channels, height, width)``.
        latent: The size of the code; 192 for 32x32 images and 576 for 96x96 ones in the paper.
        generator: The source of the initial weights; torch's global one by default.

    Raises:
        ValueError: If ``latent`` is no multiple of the number of cells of the coarsest scale.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        latent: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels, *side = shape
        scales = _SCALES if min(side) >= 32 else _SMALL_SCALES
        sizes = [tuple(side)]
        for scale in scales:
            sizes.append(tuple(scale.after(s) for s in sizes[-1]))
        cells = sizes[-1][0] * sizes[-1][1]
        if cells < 1:
            raise ValueError(f"shape must be of images of at least 4x4 pixels, got {shape}")
        if latent < 1 or latent % cells:
            raise ValueError(
                f"latent must be a positive multiple of {cells} for images of shape {shape}, "
                f"got {latent}"
            )
        widths = [channels, *(scale.width for scale in scales[:-1]), latent // cells]
        self.latent = latent
        self.encoder = nn.Sequential(*_encoder_layers(scales, widths))
        self.code = (widths[-1], *sizes[-1])
        self.decoder = nn.Sequential(*_decoder_layers(scales, widths, sizes))
        _initialize(self, generator)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images ``(n, c, h, w)`` as codes ``(n, latent)``."""
        codes: Tensor = self.encoder(images)
        return codes.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Decodes codes ``(n, latent)`` to images ``(n, c, h, w)`` in [0, 1]."""
        images: Tensor = self.decoder(codes.unflatten(1, self.code))
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Encodes and decodes images ``(n, c, h, w)``."""
        return self.decode(self.encode(images))


@dataclass(frozen=True)
class _Scale:
    width: int
    kernel: int
    stride: int
    padding: int

    def after(self, side: int) -> int:
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def lost(self, side: int) -> int:
        return (side + 2 * self.padding - self.kernel) % self.stride


_SCALES = [_Scale(24, 4, 4, 0), _Scale(48, 3, 3, 2), _Scale(96, 4, 2, 1), _Scale(192, 2, 2, 0)]
_SMALL_SCALES = [_Scale(32, 3, 1, 1), _Scale(64, 2, 2, 0), _Scale(16, 2, 2, 0)]


def _encoder_layers(scales: list[_Scale], widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for scale, a, b in zip(scales, widths[:-1], widths[1:], strict=True):
        layers += [nn.Conv2d(a, b, scale.kernel, scale.stride, scale.padding), nn.ReLU()]
    return layers[:-1]


def _decoder_layers(
    scales: list[_Scale], widths: list[int], sizes: list[tuple[int, ...]]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in reversed(range(len(scales))):
        scale = scales[i]
        lost = (scale.lost(sizes[i][0]), scale.lost(sizes[i][1]))
        layers += [
            nn.ConvTranspose2d(
                widths[i + 1], widths[i], scale.kernel, scale.stride, scale.padding, lost
            ),
            nn.ReLU(),
        ]
    return [*layers[:-1], nn.Sigmoid()]


class _Residual(nn.Module):
    def __init__(self, noise: nn.Module, generator: torch.Generator | None) -> None:
        super().__init__()
        self.noise = noise
        _initialize(self, generator)
        last = [m for m in noise.modules() if isinstance(m, nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)

    def forward(self, images: Tensor) -> Tensor:
        estimate: Tensor = self.noise(images)
        return images - estimate


class _TwoScales(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            _conv(channels, width), nn.ReLU(), _conv(width, width), nn.ReLU()
        )
        self.pool = nn.AvgPool2d(2)
        self.bottom = nn.Sequential(
            _conv(width, 2 * width), nn.ReLU(), _conv(2 * width, 2 * width), nn.ReLU()
        )
        self.grow = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up = nn.Sequential(_conv(2 * width, width), nn.ReLU(), _conv(width, channels))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down(images)
        coarse = self.grow(self.bottom(self.pool(fine)))
        noise: Tensor = self.up(torch.cat((fine, coarse), 1))
        return noise


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.orthogonal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_at_least(least: int, **counts: int) -> None:
    for name, value in counts.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
