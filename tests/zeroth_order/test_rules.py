"""Operations on K networks at once against the same operations network by network."""

import pytest
import torch
from torch import nn

from deepzero_apps.zeroth_order.rules import (
    by_network,
    laid_out,
    moved_channels,
    normalize_apart,
    repeated,
    with_channels,
)

B, K = 5, 3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalize_apart_is_batch_norm_network_by_network(
    layout: torch.memory_format, affine: bool
) -> None:
    norm = nn.BatchNorm2d(4, affine=affine, track_running_stats=False)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = (3 + 2 * torch.randn(B * K, 4, 6, 7)).contiguous(memory_format=layout)

    with torch.no_grad():
        got = by_network(normalize_apart(norm, x, B, K), B, K)

    for k in range(K):
        torch.testing.assert_close(
            got[:, k], norm(by_network(x, B, K)[:, k]).detach(), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), torch.randn(B, 2, 8, 8)),
        (nn.Conv1d(2, 4, 3, padding=1, padding_mode="reflect"), torch.randn(B, 2, 8)),
        (nn.Linear(2, 4), torch.randn(B, 3, 2)),
        (nn.BatchNorm2d(4), torch.randn(B, 4, 3, 3)),
        (nn.BatchNorm1d(4).eval(), torch.randn(B, 4)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_only_the_channel_of_the_moved_weight_changes(module: nn.Module, x: torch.Tensor) -> None:
    module, x = module.double(), x.double()
    dim = 2 if isinstance(module, nn.Linear) else 1
    for parameter in module.parameters():
        offsets = [0, parameter.numel() - 1, parameter.numel() // 2]
        with torch.no_grad():
            channels, values = moved_channels(module, x, parameter, offsets=offsets, mu=0.3)
            got = with_channels(module(x), channels, values, dim=dim + 1)
            for k, offset in enumerate(offsets):
                parameter.view(-1)[offset] += 0.3
                expected = module(x)
                parameter.view(-1)[offset] -= 0.3
                torch.testing.assert_close(
                    by_network(got, B, K)[:, k], expected, atol=1e-13, rtol=0
                )


def test_float32_images_on_a_cpu_are_laid_out_channels_last() -> None:
    images = torch.randn(B, 4, 6, 7, dtype=torch.float32)
    for value in (laid_out(images), repeated(images, K)):
        assert value.is_contiguous(memory_format=torch.channels_last)
    assert laid_out(images.double()).is_contiguous()
    assert torch.equal(by_network(repeated(images, K), B, K)[:, 1], images)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"value must have 5 x 3 rows, got shape \(14, 2\)"):
        by_network(torch.zeros(14, 2), B, K)
