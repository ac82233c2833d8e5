"""Every rule, in every spelling, against whole passes; and against what rounding would leave."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepzero_apps.zeroth_order.differences import Sequential
from deepzero_apps.zeroth_order.engines import DifferencePropagation
from deepzero_apps.zeroth_order.propagation import propagate, table
from deepzero_apps.zeroth_order.state import Weights

BATCH, CHANNELS, SIZE = 5, 4, 6

Function = Callable[[Tensor], Tensor]

MODULES: list[nn.Module] = [
    nn.Identity(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.6),
    nn.LeakyReLU(0.2),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.GELU(),
    nn.Softplus(),
    nn.Softmax(dim=1),
    nn.LogSoftmax(dim=-1),
    nn.Dropout(0.4),
    nn.Dropout2d(0.4),
    nn.Dropout3d(0.4),
    nn.AlphaDropout(0.4).eval(),
    nn.Flatten(),
    nn.Unflatten(1, (2, 2)),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.Upsample(scale_factor=2),
    nn.Unfold(2),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1),
    nn.MaxPool2d(3, 2, padding=1),
    nn.Conv2d(CHANNELS, 6, 3, padding=1),
    nn.Conv2d(CHANNELS, 6, 3, stride=2, dilation=2, padding=2),
    nn.Conv2d(CHANNELS, 6, (1, 3), groups=2, bias=False),
    nn.Conv2d(CHANNELS, 6, 3, padding="same", padding_mode="reflect"),
    nn.ConvTranspose2d(CHANNELS, 3, 2, stride=2),
    nn.Linear(SIZE, 3),
    nn.BatchNorm2d(CHANNELS),
    nn.BatchNorm2d(CHANNELS, affine=False),
    nn.BatchNorm2d(CHANNELS).eval(),
    nn.BatchNorm2d(CHANNELS, track_running_stats=False).eval(),
    nn.LayerNorm(SIZE),
    nn.LayerNorm((SIZE, SIZE), elementwise_affine=False),
    nn.GroupNorm(2, CHANNELS),
]

ONE_DIMENSIONAL: list[nn.Module] = [
    nn.Dropout1d(0.4),
    nn.Conv1d(CHANNELS, 6, 3, padding=1, padding_mode="circular"),
    nn.ConvTranspose1d(CHANNELS, 3, 2),
    nn.BatchNorm1d(CHANNELS),
    nn.AvgPool1d(2),
    nn.AdaptiveAvgPool1d(2),
    nn.MaxPool1d(2),
]

THREE_DIMENSIONAL: list[nn.Module] = [
    nn.Conv3d(CHANNELS, 6, 2),
    nn.ConvTranspose3d(CHANNELS, 3, 2),
    nn.BatchNorm3d(CHANNELS),
    nn.AvgPool3d(2),
    nn.AdaptiveAvgPool3d(1),
    nn.MaxPool3d(2),
]

FOLDED: list[nn.Module] = [nn.Fold((3, 3), 2)]

WIDTH = torch.linspace(0.5, 1.5, SIZE, dtype=torch.float64)
IMAGE = (
    WIDTH.new_tensor(range(BATCH * CHANNELS * SIZE * SIZE)).sin().view(BATCH, CHANNELS, SIZE, SIZE)
)

FUNCTIONS: dict[str, Function] = {
    "relu": lambda x: functional.relu(x) + torch.relu(-x) + (0.5 + x).relu(),
    "relu6": lambda x: functional.relu6(8 * x),
    "hardtanh": lambda x: functional.hardtanh(x, -0.2, 0.4),
    "leaky": functional.leaky_relu,
    "tanh": lambda x: torch.tanh(x) + functional.tanh(x) + x.tanh(),
    "sigmoid": lambda x: torch.sigmoid(x) + functional.sigmoid(x) + x.sigmoid(),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "exp and log": lambda x: torch.log(1 + x.exp()) + (2 + torch.exp(x)).log(),
    "square and root": lambda x: torch.sqrt(1 + torch.square(x)) + (1 + x.square()).sqrt(),
    "reciprocal": lambda x: torch.reciprocal(2 + torch.abs(x)) + (2 + x.abs()).reciprocal(),
    "sums": lambda x: torch.add(x, 1) + torch.sub(1, x).add(IMAGE).sub(x.tanh()) - x - (-x),
    "neg": lambda x: torch.neg(x) * x.neg(),
    "broadcast sum": lambda x: x.tanh().mean(1, keepdim=True) + x - WIDTH,
    "products": lambda x: torch.mul(x, 2) * x.tanh() * IMAGE * (x.mul(3) * WIDTH),
    "quotients": lambda x: torch.div(x, 2) / (2 + x.exp()) + (1 / (3 + x.sigmoid())).div(WIDTH),
    "true quotient": lambda x: torch.true_divide(x, 1 + x.square()),
    "matrices": lambda x: torch.matmul(x, x.tanh()) @ x.matmul(IMAGE[0]),
    "batched matrices": lambda x: torch.bmm(x.flatten(1, 2), IMAGE[:, 0]).bmm(IMAGE[:, 1]),
    "softmax": lambda x: torch.softmax(9 * x, 1) + functional.softmax(x, dim=-1) + x.softmax(2),
    "log softmax": lambda x: torch.log_softmax(x, 1)
    + functional.log_softmax(9 * x, dim=-1)
    + x.log_softmax(-2),
    "log-sum-exp": lambda x: torch.logsumexp(9 * x, 1) + x.logsumexp(1, True)[:, 0],
    "attention": lambda x: functional.scaled_dot_product_attention(x, IMAGE + x.tanh(), x),
    "scaled attention": lambda x: functional.scaled_dot_product_attention(IMAGE, x, x, scale=2.0),
    "masked attention": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "dropout": lambda x: functional.dropout(x, 0.4),
    "batch norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "layer norm": lambda x: functional.layer_norm(x, (SIZE,), WIDTH),
    "group norm": lambda x: functional.group_norm(x, 2),
    "linear": lambda x: functional.linear(x, IMAGE[0, 0]),
    "flat": lambda x: torch.flatten(x, 1) + x.flatten(1) + x.reshape(BATCH, -1),
    "reshaped": lambda x: torch.reshape(x, (BATCH, 2, -1)) + x.view(BATCH, 2, -1),
    "squeezed": lambda x: torch.squeeze(x[:, :, :1]) + x[:, :, 1:2].squeeze(2),
    "unflat": lambda x: torch.unflatten(x, 1, (2, 2)) + x.unflatten(1, (2, 2)),
    "permuted": lambda x: torch.permute(x, (0, 2, 1, 3)) + x.permute(0, 2, 1, 3),
    "transposed": lambda x: torch.transpose(x, 1, 2) + x.transpose(1, 2),
    "matrix transposed": lambda x: x.flatten(1).t().t(),
    "moved": lambda x: torch.movedim(x, 1, 3) + x.movedim(1, 3),
    "longer": lambda x: torch.unsqueeze(x, 1) + x.unsqueeze(1),
    "chunks": lambda x: torch.chunk(x, 2, 1)[0] + x.chunk(2, 1)[1],
    "splits": lambda x: torch.split(x, 2, 1)[0] + x.split(2, 1)[1],
    "unbound": lambda x: torch.unbind(x, 1)[0] + x.unbind(1)[1],
    "narrow": lambda x: torch.narrow(x, 1, 0, 2) + x.narrow(1, 1, 2),
    "select": lambda x: torch.select(x, 1, 0) + x.select(1, 1),
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1) + x[:, 1:2].repeat(1, 3, 1, 1),
    "flipped": lambda x: torch.flip(x, (1, 3)) + x.flip(2) + torch.roll(x, 1, 1) + x.roll(1, 3),
    "sum": lambda x: torch.sum(x, 1) + x.sum(1),
    "mean": lambda x: torch.mean(x, (2, 3)) + x.mean((2, 3)) + x.mean(3).mean(2),
    "mean of channels": lambda x: x.mean(1),
    "copies": lambda x: x.contiguous() + x.detach() + torch.clone(x) + x.clone(),
    "shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "interpolate": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "unfold": lambda x: functional.unfold(x, 2),
    "fold": lambda x: functional.fold(x.flatten(2)[..., :4], (3, 3), 2),
    "pool": lambda x: functional.avg_pool2d(x, 2) + functional.adaptive_avg_pool2d(x, 3),
    "pool rows": lambda x: functional.avg_pool1d(x.flatten(2), 2)
    + functional.adaptive_avg_pool1d(x.flatten(2), 18),
    "max pool": lambda x: functional.max_pool2d(x, 2),
    "max pool rows": lambda x: functional.max_pool1d(x.flatten(2), 2),
    "max pool of volumes": lambda x: functional.max_pool3d(x[:, :, None], (1, 2, 2)),
    "slices": lambda x: x[:, :, ::2, 1:] + x[..., ::2, 1:],
    "slices of channels": lambda x: x[:, 1:3] + x[:, :2],
    "entries": lambda x: x[:, 0] + x[:, 1],
    "rows by number": lambda x: x[:, :, [0, 2]],
    "padded": lambda x: functional.pad(x, (1, 0, 2, 1)) + functional.pad(x, (1, 0, 2, 1), value=3.0),
    "padded channels": lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "padded by reflection": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "side by side": lambda x: torch.cat([IMAGE, x, IMAGE], dim=1),
    "both side by side": lambda x: torch.cat([x, x.tanh(), IMAGE], 1),
    "stack": lambda x: torch.stack([x, IMAGE, x.tanh()], dim=2),
    "unknown to the table": lambda x: torch.erf(x) + torch.cumsum(x, 1) + x.clamp(-0.1, 0.3),
    "sorted": lambda x: torch.sort(x, dim=1)[0],
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "shape": lambda x: x.reshape(x.shape[0], x.size(1), -1),
}  # fmt: skip


class Applied(nn.Module):
    """One function after a convolution: its input differs on one channel; or two, and on all."""

    def __init__(self, function: Function, *, dense: bool, rank: int = 2) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.first = kind(2, CHANNELS, 3, padding=1)
        self.second = kind(CHANNELS, CHANNELS, 1) if dense else nn.Identity()
        self.function = (
            copy.deepcopy(function).double() if isinstance(function, nn.Module) else function
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.second(self.first(x)))


def head(outputs: Tensor) -> Tensor:
    flat = outputs.flatten(2)
    return (flat * torch.linspace(0.3, 1.0, flat.shape[2])).sum(2)


def check(network: nn.Module, x: Tensor, *, mu: float = 0.1) -> None:
    """Moves some entries of each parameter, and compares with whole passes."""
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    weights = Weights(network)
    starts = torch.tensor([0, *weights.sizes]).cumsum(0)
    moved = torch.cat([starts[:-1], starts[1:] - 1, (starts[:-1] + starts[1:]) // 2])
    torch.manual_seed(3)
    evaluation = DifferencePropagation().prepare(network, x, head)
    got = evaluation.differences(moved, mu=mu)
    torch.manual_seed(3)
    expected = Sequential().prepare(network, x, head).differences(moved, mu=mu)
    # float64, losses of order 1 to 10^3: the reference itself is a difference of two of them
    scale = expected.abs().max()
    assert scale > 1e-6
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=float(1e-10 * scale))


def inputs(rank: int) -> Tensor:
    return torch.randn(BATCH, 2, *[SIZE] * rank)


@pytest.mark.parametrize("dense", [False, True], ids=["one channel", "dense"])
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_equal_whole_passes(module: nn.Module, dense: bool) -> None:
    check(Applied(module, dense=dense), inputs(2))


@pytest.mark.parametrize("dense", [False, True], ids=["one channel", "dense"])
@pytest.mark.parametrize("module", ONE_DIMENSIONAL, ids=str)
def test_modules_of_rows_equal_whole_passes(module: nn.Module, dense: bool) -> None:
    check(Applied(module, dense=dense, rank=1), inputs(1))


@pytest.mark.parametrize("dense", [False, True], ids=["one channel", "dense"])
@pytest.mark.parametrize("module", THREE_DIMENSIONAL, ids=str)
def test_modules_of_volumes_equal_whole_passes(module: nn.Module, dense: bool) -> None:
    check(Applied(module, dense=dense, rank=3), inputs(3))


@pytest.mark.parametrize("dense", [False, True], ids=["one channel", "dense"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_whole_passes(name: str, dense: bool) -> None:
    check(Applied(FUNCTIONS[name], dense=dense), inputs(2))


def test_large_moves_are_right_too() -> None:
    # Where a step carries a score past all others, the forms for small differences overflow.
    for name in ("softmax", "log softmax", "log-sum-exp", "attention", "softplus", "sigmoid"):
        check(Applied(FUNCTIONS[name], dense=True), inputs(2), mu=50.0)


def test_every_rule_is_tried_above() -> None:
    tried: set[object] = set()
    networks = [Applied(f, dense=False) for f in FUNCTIONS.values()]
    for network in networks:
        tried |= {node.target for node in fx.symbolic_trace(network).graph.nodes}
    tried |= {type(m) for m in (*MODULES, *ONE_DIMENSIONAL, *THREE_DIMENSIONAL, *FOLDED)}
    assert set(table._RULES) - tried == set()


WITH_A_FORM = [
    "relu", "relu6", "leaky", "tanh", "sigmoid", "silu", "gelu", "softplus", "softmax",
    "log softmax", "log-sum-exp", "attention", "batch norm", "layer norm", "group norm",
    "products", "quotients", "square and root", "exp and log", "max pool",
]  # fmt: skip


@pytest.mark.parametrize("name", [*WITH_A_FORM, "unknown to the table"])
def test_float32_differences_keep_their_digits(name: str) -> None:
    """A step of 1e-5 is 100 float32 units of the values: subtraction would leave two digits."""
    network, x = Applied(FUNCTIONS[name], dense=True), inputs(2)
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    exact = DifferencePropagation().prepare(network, x, head)
    coordinates = torch.arange(0, 40, 3)
    expected = exact.differences(coordinates, mu=1e-5)
    weights = [p.detach().clone() for p in network.parameters()]

    class Linear:
        """A loss that is linear in the outputs, and hence its own difference."""

        def __call__(self, outputs: Tensor) -> Tensor:
            return head(outputs.double())

        def differences(self, _base: Tensor, deltas: Tensor) -> Tensor:
            return head(deltas.double())

    single = Applied(_single(FUNCTIONS[name]), dense=True).float()
    with torch.no_grad():
        for p, value in zip(single.parameters(), weights, strict=True):
            p.copy_(value)
    got = DifferencePropagation().prepare(single, x.float(), Linear())
    error = got.differences(coordinates, mu=1e-5) - expected
    # some hundred sums and products of relative rounding 6e-8 each, most of them amplified tenfold
    assert error.norm() < 2e-5 * expected.norm()


def _single(function: Function) -> Function:
    """The function with its constants in float32."""

    def run(x: Tensor) -> Tensor:
        global WIDTH, IMAGE
        before = WIDTH, IMAGE
        WIDTH, IMAGE = WIDTH.float(), IMAGE.float()
        try:
            return function(x)
        finally:
            WIDTH, IMAGE = before

    return run


def test_rules_are_used_and_not_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: table.Call) -> None:
        raise RuntimeError(f"no rule for {call.operation}")

    monkeypatch.setattr(propagate, "fallback", refuse)
    for name in WITH_A_FORM:
        check(Applied(FUNCTIONS[name], dense=True), inputs(2))
    for module in MODULES:
        check(Applied(module, dense=False), inputs(2))


def test_a_rule_can_be_added() -> None:
    @table.rule(torch.sinc)
    def sinc(call: table.Call) -> object:
        a = call.delta.on(call.x)
        return call.delta.replaced(torch.sinc(a + call.delta.values) - torch.sinc(a))

    try:
        check(Applied(torch.sinc, dense=False), inputs(2))
    finally:
        del table._RULES[torch.sinc]
