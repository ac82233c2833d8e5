"""The compiled kernels against the same formulas in float64, one torch operation at a time."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor

from deepzero_apps.zeroth_order.kernels import OneChannel, affine_relu, moments

FLOAT32 = 2.0**-24
"""Half the distance from 1 to the next float32: the relative error of one rounding."""

STORED = {torch.float32: FLOAT32, torch.bfloat16: 2.0**-8}
"""The relative error of storing a result."""

TYPES = [torch.float32, torch.bfloat16]

# Less than a period, no divisor of one, more than a block of rows, more channels than a period.
SHAPES = [(1, 1, 1), (2, 37, 3), (3, 1100, 10), (2, 9000, 16), (2, 333, 64), (1, 2, 700)]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def coefficients(networks: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b, g = normal(3, networks, channels)
    return a, b, g


def spread(side: OneChannel, channels: int) -> Tensor:
    dense = torch.zeros(*side.values.shape, channels)
    for k, channel in enumerate(side.channels.tolist()):
        dense[k, :, channel] = side.values[k].double()
    return dense


def affine(d: Tensor, abg: tuple[Tensor, ...], x: Tensor | None, side: Tensor | None) -> Tensor:
    """Eq. (2) in float64."""
    a, b, g = (value.double()[:, None] for value in abg)
    z = d.double() * b + g
    if x is not None:
        z = z + x.double() * a
    return z if side is None else z + side.double()


def rectified(z: Tensor, pre: Tensor) -> Tensor:
    """The left side of eq. (3) in float64."""
    base = pre.double()
    return (base + z).relu() - base.relu()


def tolerance(parts: Tensor, stored: torch.dtype) -> Tensor:
    """At most 5 roundings in float32 of terms whose sizes add up to parts, and that of storing."""
    return (6 * FLOAT32 + 1.01 * STORED[stored]) * parts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_moments_are_those_of_the_formula(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    d, x = normal(*shape, dtype=dtype), normal(*shape[1:])

    first, second = moments(d, x)

    # A term is exact up to 3 roundings; a sum of 64 in float32 adds at most 20 to it
    # (4 in a row, then 16 of these); what follows is float64.
    terms = d.double() * (d.double() + 2 * x.double())
    sizes = d.double().abs() * (d.double().abs() + 2 * x.double().abs())
    assert first.dtype == second.dtype == torch.float64
    assert ((first - d.double().mean(1)).abs() <= 20 * FLOAT32 * d.double().abs().mean(1)).all()
    assert ((second - terms.mean(1)).abs() <= 23 * FLOAT32 * sizes.mean(1)).all()


def test_moments_give_the_change_of_the_variance() -> None:
    d, x = normal(2, 500, 16), normal(500, 16)
    x = x - x.mean(0)

    first, second = moments(d, x)

    exact = (x + d).double().var(1, correction=0) - x.double().var(0, correction=0)
    torch.testing.assert_close(second - first**2, exact, rtol=0, atol=1e-5)


def test_the_error_of_moments_does_not_grow_with_the_rows() -> None:
    # One float32 sum of 4 million times .1 would stop being exact to 1 %.
    d = torch.full((1, 2**22, 1), 0.1, dtype=torch.float32)

    first, second = moments(d, torch.zeros(2**22, 1, dtype=torch.float32))

    exact = d[0, 0, 0].double()
    assert abs(first.item() / exact - 1) <= 20 * FLOAT32
    assert abs(second.item() / exact**2 - 1) <= 23 * FLOAT32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_affine_map_is_that_of_the_formula(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    d, x, abg = normal(*shape, dtype=dtype), normal(*shape[1:]), coefficients(*shape[::2])

    z = affine_relu(d, abg, centered=x)

    sizes = affine(d.abs(), tuple(value.abs() for value in abg), x.abs(), None)
    assert z.dtype == dtype
    assert ((z.double() - affine(d, abg, x, None)).abs() <= tolerance(sizes, dtype)).all()


@pytest.mark.parametrize("kind", ["none", "dense", "one channel"])
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_of_all_terms_is_that_of_the_formula(
    shape: tuple[int, int, int], dtype: torch.dtype, batch_statistics: bool, kind: str
) -> None:
    networks, rows, channels = shape
    d, pre, abg = normal(*shape, dtype=dtype), normal(rows, channels), coefficients(*shape[::2])
    x = normal(rows, channels) if batch_statistics else None
    one = OneChannel(normal(networks, rows), torch.randint(channels, (networks,)))
    side = {"none": None, "dense": normal(*shape, dtype=dtype), "one channel": one}[kind]

    y = affine_relu(d, abg, centered=x, side=side, pre=pre)

    beside = spread(side, channels) if isinstance(side, OneChannel) else side
    sizes = affine(
        d.abs(),
        tuple(value.abs() for value in abg),
        None if x is None else x.abs(),
        None if beside is None else beside.abs(),
    )
    exact = rectified(affine(d, abg, x, beside), pre)
    assert ((y.double() - exact).abs() <= tolerance(sizes + pre.double().abs(), dtype)).all()


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_result_is_stored_in_the_type_asked_for(dtype: torch.dtype, stored: torch.dtype) -> None:
    d = normal(2, 50, 8, dtype=dtype)
    one, zero = torch.ones(2, 8), torch.zeros(2, 8)

    y = affine_relu(d, (None, one, zero), dtype=stored)

    assert torch.equal(y, d.to(stored))


def test_small_differences_are_not_lost_in_large_activations() -> None:
    # Where ReLU is open the difference passes unchanged, though 1e6 + 1e-6 is 1e6 in float32.
    d = torch.full((1, 4, 2), 1e-6, dtype=torch.float32)
    pre = torch.tensor([[1e6, -1e6]] * 4, dtype=torch.float32)

    y = affine_relu(d, (None, torch.ones(1, 2), torch.zeros(1, 2)), pre=pre)

    assert torch.equal(y, d * torch.tensor([1, 0], dtype=torch.float32))


def test_storing_rounds_as_torch_does_to_the_bit() -> None:
    # All upper halves, with lower halves around the tie: infinities, subnormals, overflow.
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    bits = (upper[:, None] + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).flatten()
    bits = torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32)
    x = bits.view(torch.float32).reshape(1, -1, 3)

    y = affine_relu(x, (None, torch.ones(1, 3), torch.zeros(1, 3)), dtype=torch.bfloat16)

    # Adding zero turns -0 into 0, which compares equal.
    expected = x.to(torch.bfloat16)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[~x.isnan()], expected[~x.isnan()])


@pytest.mark.parametrize("where", ["difference", "centered", "side", "channel", "pre", "B"])
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_stays_nan(dtype: torch.dtype, where: str) -> None:
    d, side = normal(2, 100, 16, dtype=dtype), normal(2, 100, 16, dtype=dtype)
    x, pre = normal(100, 16), normal(100, 16)
    abg = coefficients(2, 16)
    one = OneChannel(normal(2, 100), torch.tensor([3, 5]))
    target = {"difference": d[1], "centered": x, "side": side[1], "pre": pre}.get(where)
    expected = torch.zeros(2, 100, 16, dtype=torch.bool)
    if target is not None:
        target[7, 5] = torch.nan
        expected[1, 7, 5] = True
        expected[0, 7, 5] = where in ("centered", "pre")
    elif where == "channel":
        one.values[1, 7] = torch.nan
        expected[1, 7, 5] = True
    else:
        abg[1][1, 5] = torch.nan
        expected[1, :, 5] = True

    y = affine_relu(d, abg, centered=x, side=one if where == "channel" else side, pre=pre)

    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_moments_do_not_hide_what_is_not_finite(dtype: torch.dtype, value: float) -> None:
    d = normal(2, 5000, 3, dtype=dtype)
    d[1, 4321, 2] = value

    first, second = moments(d, normal(5000, 3))

    for moment in (first, second):
        assert (~moment.isfinite()).tolist() == [[False] * 3, [False, False, True]]


def test_nothing_given_is_changed() -> None:
    d, x, pre, abg = normal(2, 30, 4), normal(30, 4), normal(30, 4), coefficients(2, 4)
    side = OneChannel(normal(2, 30), torch.tensor([0, 3]))
    given = [d, x, pre, *abg, side.values, side.channels]
    before = [tensor.clone() for tensor in given]

    moments(d, x)
    affine_relu(d, abg, centered=x, side=side, pre=pre)

    assert all(map(torch.equal, given, before))


def test_no_networks_give_no_results() -> None:
    d = torch.empty(0, 5, 3, dtype=torch.float32)

    assert moments(d, normal(5, 3))[0].shape == (0, 3)
    assert affine_relu(d, coefficients(0, 3), pre=normal(5, 3)).shape == (0, 5, 3)


def test_threads_give_the_bits_of_one_thread() -> None:
    d, x, pre, abg = normal(4, 2000, 16), normal(2000, 16), normal(2000, 16), coefficients(4, 16)
    expected = affine_relu(d, abg, centered=x, pre=pre)
    answers: list[Tensor] = []

    def ask() -> None:
        answers.extend(affine_relu(d, abg, centered=x, pre=pre) for _ in range(5))

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 15
    assert all(torch.equal(answer, expected) for answer in answers)


def test_kernels_work_where_nothing_can_be_written(tmp_path: Path) -> None:
    # Numba looks for a folder beside the module, then in the home and in its own variable.
    # A file in the way of each refuses even root, who may write anywhere.
    package = tmp_path / "package"
    package.mkdir()
    source = Path(sys.modules[moments.__module__].__file__ or "")
    (package / "kernels.py").write_bytes(source.read_bytes())
    (package / "__pycache__").write_text("in the way")
    (tmp_path / "home").write_text("in the way")
    code = (
        "import torch, kernels\n"
        "print(kernels._add_moments._cache.__class__.__name__)\n"
        "print(kernels.moments(torch.ones(1, 8, 2), torch.zeros(8, 2))[1].tolist())\n"
    )
    home = str(tmp_path / "home" / "none")
    variables = {"HOME": home, "XDG_CACHE_HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | variables

    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout.splitlines() == ["NullCache", "[[1.0, 1.0]]"], ran.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"difference": normal(2, 5, 3, dtype=torch.float64)},
            "difference must be float32 or bfloat16, got",
        ),
        ({"difference": normal(5, 3)}, r"difference must be of shape \(K, R, C\)"),
        ({"difference": normal(2, 5, 0)}, "with R, C >= 1"),
        ({"difference": normal(2, 3, 5).mT}, "difference must be contiguous on a CPU, got"),
        ({"centered": normal(3, 5)}, r"centered must be of shape \(5, 3\), got \(3, 5\)"),
        (
            {"centered": normal(5, 3, dtype=torch.float64)},
            "centered must be float32, got torch.float64",
        ),
        ({"pre": normal(5, 3, dtype=torch.bfloat16)}, "pre must be float32, got"),
        ({"pre": normal(2, 5, 3)}, "pre must be of shape"),
        ({"side": normal(2, 5, 3, dtype=torch.bfloat16)}, "side must be torch.float32 like"),
        ({"side": normal(2, 5, 4)}, "side must be of shape"),
        ({"side": OneChannel(normal(2, 5), torch.tensor([0, 3]))}, "2 channels below 3, got"),
        ({"side": OneChannel(normal(2, 5), torch.tensor([-1, 0]))}, "2 channels below 3, got"),
        ({"side": OneChannel(normal(2, 5), torch.tensor([0]))}, "2 channels below 3, got"),
        ({"side": OneChannel(normal(2, 4), torch.tensor([0, 1]))}, "side.values must be of shape"),
        ({"coefficients": (None, normal(2, 3), normal(2, 3))}, "got None for A"),
        ({"coefficients": coefficients(2, 4)}, r"coefficients must be of shape \(2, 3\), got"),
        ({"dtype": torch.float16}, "dtype must be float32 or bfloat16, got torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "difference": normal(2, 5, 3),
        "coefficients": coefficients(2, 3),
        "centered": normal(5, 3),
    } | change

    with pytest.raises((TypeError, ValueError), match=message):
        affine_relu(**arguments)  # type: ignore[arg-type]


def test_moments_refuse_a_base_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"centered must be of shape \(5, 3\), got \(5, 4\)"):
        moments(normal(2, 5, 3), normal(5, 4))
