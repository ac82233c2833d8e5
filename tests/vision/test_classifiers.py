"""Classifiers: their sizes, their shortcuts, their weights on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.nn import functional

from deepzero_apps.vision import adjustable_cnn, load_weights, normalized, resnet
from deepzero_apps.vision.classifiers import Normalize


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, 730), (2, 3_700), (3, 6_670), (4, 9_640), (5, 12_610)]
)
def test_adjustable_cnn_has_the_published_sizes(depth: int, expected: int) -> None:
    assert weights(adjustable_cnn(depth)) == expected


def test_adjustable_cnn_has_the_stated_size_for_other_settings() -> None:
    depth, w, c, m = 3, 7, 1, 5
    stated = (9 * c * w + 3 * w) + (depth - 1) * (9 * w**2 + 3 * w) + (w + 1) * m  # eq. (1)
    assert weights(adjustable_cnn(depth, width=w, channels=c, classes=m)) == stated


# Published for 20...110 (He et al., table 6): .27M, .46M, .66M, .85M, 1.7M.
@pytest.mark.parametrize(
    ("depth", "expected"),
    [(8, 75_290), (20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_resnet_has_the_published_sizes(depth: int, expected: int) -> None:
    assert weights(resnet(depth)) == expected


def reference_block(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """One basic block with fresh batch norm, written out by hand from its weights."""
    first, second = state[f"{name}.conv1.weight"], state[f"{name}.conv2.weight"]
    stride = first.shape[0] // first.shape[1]  # channels double where the image is halved
    scale = (1 + 1e-5) ** -0.5  # running variance 1, batch norm's eps
    y = torch.relu(scale * functional.conv2d(x, first, stride=stride, padding=1))
    y = scale * functional.conv2d(y, second, padding=1)
    if stride == 1:
        return torch.relu(y + x)
    quarter = first.shape[0] // 4
    z = torch.zeros_like(y)
    z[:, quarter:-quarter] = x[:, :, ::2, ::2]
    return torch.relu(y + z)


def test_resnet_equals_a_reference_written_by_hand() -> None:
    network = resnet(8, classes=4, channels=2).eval()
    state = network.state_dict()
    images = torch.rand(3, 2, 9, 8)

    x = functional.conv2d(images, state["conv1.weight"], padding=1) * (1 + 1e-5) ** -0.5
    x = torch.relu(x)
    for stage in (1, 2, 3):
        x = reference_block(x, state, f"layer{stage}.0")
    expected = x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]

    torch.testing.assert_close(network(images), expected, rtol=1e-12, atol=1e-12)  # rounding


def test_initial_weights_have_variance_two_over_fan_in() -> None:
    weight = resnet(20).state_dict()["layer3.1.conv1.weight"]
    # The sample variance of n normal numbers has a relative standard error of sqrt(2 / n).
    error = 5 * (2 / weight.numel()) ** 0.5
    assert weight.var().item() == pytest.approx(2 / (64 * 9), rel=error)


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first = resnet(8, generator=torch.Generator().manual_seed(1)).state_dict()
    torch.rand(3)
    second = resnet(8, generator=torch.Generator().manual_seed(1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "network", [resnet(8), adjustable_cnn(5), normalized(resnet(8), (0.5,) * 3, (0.2,) * 3)]
)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (7, 5)])
def test_tracing_keeps_the_answers(network: nn.Module, size: tuple[int, int]) -> None:
    network = network.double().eval()
    images = torch.rand(2, 3, *size)
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))
    assert network(images).shape == (2, 10)


def test_normalized_shifts_and_scales_each_channel() -> None:
    images = torch.rand(4, 2, 3, 3)
    answers = normalized(nn.Identity(), (0.25, 0.5), (0.5, 2.0))(images)
    expected = torch.stack([(images[:, 0] - 0.25) * 2, (images[:, 1] - 0.5) / 2], dim=1)
    torch.testing.assert_close(answers, expected)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))],
)
def test_unfit_statistics_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"mean.* must"):
        Normalize(mean, std)


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_other_resnet_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 6k \+ 2 .* got {depth}"):
        resnet(depth)


@pytest.mark.parametrize("argument", ["width", "channels", "classes"])
def test_counts_below_one_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        adjustable_cnn(2, **{argument: 0})


def saved(network: nn.Module, path: Path, **changes: Tensor | None) -> Path:
    """Stores a network's weights with some entries changed or, for None, left out."""
    state = {**network.state_dict(), **{k.replace("__", "."): v for k, v in changes.items()}}
    save_file({name: t for name, t in state.items() if t is not None}, path)
    return path


def test_loaded_weights_answer_as_the_stored_ones(tmp_path: Path) -> None:
    source, target = resnet(8), resnet(8)
    images = torch.rand(2, 3, 8, 8)
    source(images)  # moves the running statistics, which are stored as well
    load_weights(target, saved(source, tmp_path / "w.safetensors"))
    assert torch.equal(target.eval()(images), source.eval()(images))


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    source, target = adjustable_cnn(1), adjustable_cnn(1)
    path = saved(source, tmp_path / "w.safetensors", block1__bn__num_batches_tracked=None)
    load_weights(target, path)
    assert torch.equal(target.state_dict()["linear.weight"], source.state_dict()["linear.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear__bias": None}, r"1 missing: linear\.bias"),
        ({"extra": torch.zeros(1)}, "1 unexpected: extra"),
        ({"linear__bias": torch.zeros(3)}, r"of another shape: linear\.bias \(3,\) for \(10,\)"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    network = adjustable_cnn(1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = saved(adjustable_cnn(1), tmp_path / "w.safetensors", **changes)

    with pytest.raises(ValueError, match=message):
        load_weights(network, path)

    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_long_list_of_missing_names_is_shortened(tmp_path: Path) -> None:
    path = saved(adjustable_cnn(1), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"35 missing: bn1\.bias, bn1\.running_mean, .*, \.\.\.;"):
        load_weights(resnet(8), path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = saved(adjustable_cnn(1), tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"w\.safetensors, which is truncated or damaged"):
        load_weights(adjustable_cnn(1), path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found none at .*nowhere"):
        load_weights(adjustable_cnn(1), tmp_path / "nowhere")
