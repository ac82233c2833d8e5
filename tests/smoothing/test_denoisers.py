"""Sizes against the published ones, shapes, and where training starts from."""

import pytest
import torch
from torch import nn

from deepzero_apps.smoothing.denoisers import Autoencoder, dncnn, unet


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_dncnn_has_the_published_number_of_weights() -> None:
    # Zhang et al. 2022: depth 17, width 64, three channels
    assert size(dncnn()) == 558_400
    # 9*24 + 24, twice 9*24*24 + 24, 9*24 + 1
    assert size(dncnn(channels=1, depth=4, width=24, batch_norm=False)) == 10_873


def test_unet_has_the_documented_number_of_weights() -> None:
    # 448 + 2,320 + 4,640 + 9,248, transposed 2,064, and 4,624 + 435
    assert size(unet()) == 23_779


@pytest.mark.parametrize(
    "network", [dncnn(depth=4, width=8), unet(width=8)], ids=["dncnn", "unet"]
)
def test_a_denoiser_starts_as_the_identity(network: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 12, dtype=torch.float32)

    torch.testing.assert_close(network.eval()(x), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "latent"),
    [
        ((3, 32, 32), 192),
        ((3, 96, 96), 576),
        ((1, 8, 8), 16),
        ((1, 28, 28), 196),
        ((2, 9, 11), 36),
    ],
)
def test_an_autoencoder_squeezes_to_its_latent_size_and_restores_the_shape(
    shape: tuple[int, int, int], latent: int
) -> None:
    network = Autoencoder(shape, latent=latent)
    x = torch.rand(2, *shape)

    assert network.encode(x).shape == (2, latent)
    y = network(x)
    assert y.shape == x.shape
    assert ((y >= 0) & (y <= 1)).all()


def test_convolutions_start_orthogonal() -> None:
    first = next(m for m in dncnn(depth=3, width=8).modules() if isinstance(m, nn.Conv2d))
    w = first.weight.detach().flatten(1)

    torch.testing.assert_close(w @ w.T, torch.eye(8), rtol=0, atol=1e-12)


def test_the_same_generator_gives_the_same_weights() -> None:
    a, b = (
        torch.cat(
            [
                p.flatten()
                for p in unet(width=4, generator=torch.Generator().manual_seed(1)).parameters()
            ]
        )
        for _ in range(2)
    )

    assert torch.equal(a, b)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        dncnn(depth=1)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        unet(width=0)
    with pytest.raises(ValueError, match=r"positive multiple of 4 for images of shape .* got 10"):
        Autoencoder((1, 8, 8), latent=10)
