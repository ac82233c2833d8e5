"""Votes against a slow reference, and what their noise depends on."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.blackbox import TorchClassifier
from deepzero_apps.smoothing.votes import BLOCK, Draw, Tally, count_votes, noise_blocks

CPU = torch.device("cpu")
DRAWS = [Draw(0, 0, 5), Draw(2, 0, 300), Draw(2, 1, BLOCK), Draw(1, 1, 2 * BLOCK)]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double()


def tally(images: Tensor, draws: list[Draw], rows: int, seed: int = 0) -> list[Tally]:
    classifier = TorchClassifier(network(), classes=3)
    return list(
        count_votes(classifier, images, draws, sigma=0.5, seed=seed, rows=rows, device=CPU)
    )


def test_votes_are_those_of_one_noisy_copy_at_a_time() -> None:
    images, module = torch.rand(3, 2, 3, 3), network()
    tallies = tally(images, DRAWS, rows=64)

    for draw, found in zip(DRAWS, tallies, strict=True):
        blocks = noise_blocks((2, 3, 3), seed=0, index=draw.index, phase=draw.phase, device=CPU)
        noise = torch.cat([next(blocks) for _ in range(3)])[: draw.votes]
        noisy = images[draw.index].float() + 0.5 * noise
        labels = [int(module(x[None].double()).argmax()) for x in noisy]
        assert found.counts.tolist() == np.bincount(labels, minlength=3).tolist()


@pytest.mark.parametrize("rows", [1, 7, 127, 128, 129, 5_000])
def test_rows_a_call_change_nothing(rows: int) -> None:
    images = torch.rand(3, 2, 3, 3)

    counts, expected = (
        np.stack([t.counts for t in tally(images, DRAWS, rows=r)]) for r in (rows, 64)
    )

    np.testing.assert_array_equal(counts, expected)
    assert counts.sum(1).tolist() == [draw.votes for draw in DRAWS]


def test_calls_are_full_and_mix_images() -> None:
    sizes: list[int] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1)

    classifier = TorchClassifier(Recorder(), classes=4)
    draws = [Draw(i, 0, 10) for i in range(10)]
    list(
        count_votes(
            classifier, torch.rand(10, 1, 2, 2), draws, sigma=1.0, seed=0, rows=32, device=CPU
        )
    )

    assert sizes == [32, 32, 32, 4]


def test_noise_is_standard_normal_and_differs_by_seed_index_phase_and_block() -> None:
    streams = [
        noise_blocks((1, 4, 4), seed=seed, index=index, phase=phase, device=CPU)
        for seed, index, phase in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    ]
    blocks = torch.stack([next(stream) for stream in streams for _ in range(2)]).flatten(1)

    # m numbers of a standard normal: mean has variance 1/m, second moment 2/m, product of two 1/m
    m = blocks.shape[1]
    assert blocks.mean().abs() < 5 / blocks.numel() ** 0.5
    assert (blocks.square().mean() - 1).abs() < 5 * (2 / blocks.numel()) ** 0.5
    correlations = blocks @ blocks.T / m - torch.eye(len(blocks)) * blocks.square().mean(1)
    assert correlations.abs().max() < 5 / m**0.5


def test_noise_is_the_same_again() -> None:
    one, other = (
        next(noise_blocks((1, 2, 2), seed=3, index=4, phase=1, device=CPU)) for _ in range(2)
    )

    assert one.dtype == torch.float32
    assert torch.equal(one, other)


def test_seconds_are_shared_by_rows() -> None:
    short, long = tally(torch.rand(3, 2, 3, 3), [Draw(0, 0, 10), Draw(1, 0, 30)], rows=40)

    assert long.seconds == pytest.approx(3 * short.seconds)
