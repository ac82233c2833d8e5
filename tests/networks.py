"""Small networks of the kinds that the engines must get right, on inputs of shape (b, 2, 8, 8)."""

__all__ = ["BATCH", "NETWORKS", "UNTRACEABLE", "Bent", "images", "make"]

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 5
"""No size of any network below, so that a confusion of dimensions shows."""


def images() -> Tensor:
    return torch.randn(BATCH, 2, 8, 8)


def plain() -> nn.Module:
    """Convolution, batch norm, ReLU, pooling; the ReLU works in place."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class Block(nn.Module):
    """A residual block with the parameter-free shortcut of option A."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride, self.extra = (1, 0) if channels == out else (2, out - channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.extra:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))
        out += x
        return functional.relu(out, inplace=True)


class Residual(nn.Module):
    """A tiny ResNet of the CIFAR family."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.stem(x)))
        x = functional.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), -1))


class Denoiser(nn.Module):
    """DnCNN: the noise is predicted and subtracted."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)


class UNet(nn.Module):
    """One level down and up, with a skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        deep = torch.relu(self.middle(functional.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], dim=1))


class Attention(nn.Module):
    """Self-attention with its own softmax, or torch's, and dropout inside torch's."""

    def __init__(self, dim: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.fused:
            p = 0.2 if self.training else 0.0
            y = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            y = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, d))


class Transformer(nn.Module):
    """A vision transformer of two layers."""

    def __init__(self) -> None:
        super().__init__()
        dim = 6
        self.patches = nn.Conv2d(2, dim, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 5, dim))
        self.attentions = nn.ModuleList([Attention(dim, 2, fused=f) for f in (False, True)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(4)])
        self.mlps = nn.ModuleList(
            [nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim)) for _ in range(2)]
        )
        self.fc = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for i in range(2):
            x = x + self.attentions[i](self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.fc(x[:, 0])


class Dropout(nn.Module):
    """Dropout as a module, as a function, and noise that the network draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 6)
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 3)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.a(x.flatten(1))))
        x = functional.dropout(torch.tanh(self.b(x)), 0.3, training=self.training)
        return self.c(x + 0.1 * torch.randn_like(x))


class Tied(nn.Module):
    """An encoder whose transpose decodes, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 6, bias=False)
        self.twice = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.twice(torch.tanh(self.twice(torch.tanh(self.first(x.flatten(1))))))
        return functional.linear(h, self.first.weight.t())


class InPlace(nn.Module):
    """Values that are overwritten after they were kept for later."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 6)
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.a(x.flatten(1))
        h = self.b(self.relu(kept))
        h += kept
        h.mul_(0.5).add_(kept)
        functional.leaky_relu(h, 0.1, inplace=True)
        torch.sigmoid_(h)
        return self.c(h)


class ByName(nn.Module):
    """Batch norm by function call, with buffers of its own, and one on flat features."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 6)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))
        self.mean: Tensor
        self.variance: Tensor
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.free = nn.BatchNorm1d(6, track_running_stats=False)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.batch_norm(
            self.a(x.flatten(1)), self.mean, self.variance, self.scale, training=self.training
        )
        return self.c(self.free(torch.tanh(self.norm(torch.tanh(h)))))


class Odd(nn.Module):
    """What stays out of a batch: samples mixed; and what needs care: grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="reflect")
        self.b = nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular")
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)).flatten(2)
        first, second = h.chunk(2, dim=2)
        return self.b(first * second.sigmoid()).softmax(1).mean(2)


class Mixing(nn.Module):
    """Each sample is compared with the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 4)
        self.b = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x.flatten(1)))
        return self.b(h - h.mean(0, keepdim=True))


class Untraceable(nn.Module):
    """A branch that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 4)
        self.b = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x.flatten(1)))
        return self.b(h) if h.sum() > -1e9 else h


def channels_last() -> nn.Module:
    """A network whose parameters are not contiguous."""
    network = plain().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fc: nn.Linear = network[-1]
    fc.weight = nn.Parameter(fc.weight.detach().t().contiguous().t())
    return network  # type: ignore[no-any-return]


UNTRACEABLE = Untraceable

NETWORKS = {
    "plain": plain,
    "residual": Residual,
    "dncnn": Denoiser,
    "unet": UNet,
    "transformer": Transformer,
    "dropout": Dropout,
    "tied": Tied,
    "in place": InPlace,
    "by name": ByName,
    "odd": Odd,
    "channels last": channels_last,
}


def make(name: str, *, training: bool) -> nn.Module:
    """A network of `NETWORKS`, its buffers moved off their initial values."""
    network = NETWORKS[name]()
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    network.train()
    for _ in range(2):
        network(images())
    return network.train(training)


class Bent(nn.Module):
    """At first its bend is out of the reach of a move by one, later it is not: inputs (b, 64)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fc, self.out = nn.Linear(64, 6), nn.Linear(6, 4)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.empty_like(p).uniform_(-0.1, 0.1, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.flatten(1))
        bent: Tensor = self.out(y * (y > -4.0))
        return bent
