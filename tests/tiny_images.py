"""Images of 4x4 pixels in three classes, and a network for them."""

__all__ = ["Small", "images"]

import torch
from torch import Tensor, nn

from deepzero_apps.vision import Images


def images(count: int = 24) -> Images:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.rand(count, 1, 4, 4, dtype=torch.float32, generator=generator)
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"))


class Small(nn.Module):
    """Float64 on the float32 pixels, so that both gradients can be compared closely."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.linear = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.conv(x.double())))
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits
