"""Noisy copies: what they depend on, and what not."""

import pytest
import torch

from deepzero_apps.smoothing.noise import BLOCK, NoisyCopies, noise_blocks

IMAGE = torch.rand(2, 3, 3)


def copies(
    rows: int, *, cuts: tuple[int, ...] = (), start: int = 0, **other: object
) -> torch.Tensor:
    settings: dict[str, object] = {"sigma": 0.5, "seed": 0, "index": 4, "phase": 1, **other}
    stream = NoisyCopies(IMAGE, start=start, **settings)  # type: ignore[arg-type]
    out = torch.empty(rows, 2, 3, 3, dtype=torch.float32)
    for part in out.tensor_split(cuts):
        stream.write(part)
    return out


def test_copies_are_image_plus_sigma_times_noise() -> None:
    blocks = noise_blocks((2, 3, 3), seed=0, index=4, phase=1, device="cpu")
    noise = torch.cat([next(blocks) for _ in range(3)])

    found = copies(3 * BLOCK)

    assert torch.equal(found, noise * 0.5 + IMAGE.float())


@pytest.mark.parametrize("cuts", [(1,), (31, 32, 33), (BLOCK,), (5, 70), (0, 0, 99)])
def test_how_the_stream_is_read_changes_nothing(cuts: tuple[int, ...]) -> None:
    assert torch.equal(copies(100, cuts=cuts), copies(100))


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, 70])
def test_a_stream_is_taken_up_where_it_was_left(start: int) -> None:
    assert torch.equal(copies(100 - start, start=start), copies(100)[start:])


@pytest.mark.parametrize("reads", [(3, 0, 40), (32, 32, 1), (40, 57, 33), (5, 10, 6), (0, 64, 9)])
def test_a_stream_passes_over_copies(reads: tuple[int, int, int]) -> None:
    before, passed, after = reads
    stream = NoisyCopies(IMAGE, sigma=0.5, seed=0, index=4, phase=1)
    stream.write(torch.empty(before, 2, 3, 3, dtype=torch.float32))
    stream.skip(passed)
    rows = torch.empty(after, 2, 3, 3, dtype=torch.float32)
    stream.write(rows)

    assert torch.equal(rows, copies(sum(reads))[before + passed :])
    assert stream.position == sum(reads)


def test_a_stream_holds_only_what_is_drawn_and_not_written() -> None:
    stream = NoisyCopies(IMAGE, sigma=0.5, seed=0, index=4, phase=1)
    held = []
    for rows in (BLOCK - 1, 1, BLOCK, 3, BLOCK - 3):
        stream.write(torch.empty(rows, 2, 3, 3, dtype=torch.float32))
        held.append(stream.nbytes > 0)

    assert held == [True, False, False, True, False]


def test_copies_on_the_grid_are_the_others_rounded() -> None:
    smooth, grid = copies(100), copies(100, noise="grid")

    # half a step, and float32's rounding of numbers up to about 3
    assert (grid - smooth).abs().max() <= 0.5 / 255 + 1e-6
    assert (grid * 255 - (grid * 255).round()).abs().max() < 1e-3
    assert grid.min() < 0  # nothing is clipped
    assert grid.max() > 1


def test_noise_is_standard_normal_and_differs_by_seed_index_phase_and_block() -> None:
    streams = [
        noise_blocks((1, 8, 8), seed=seed, index=index, phase=phase, device="cpu")
        for seed, index, phase in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    ]
    blocks = torch.stack([next(stream) for stream in streams for _ in range(2)]).flatten(1)

    # m numbers of a standard normal: mean has variance 1/m, second moment 2/m, product of two 1/m
    m = blocks.shape[1]
    assert blocks.mean().abs() < 5 / blocks.numel() ** 0.5
    assert (blocks.square().mean() - 1).abs() < 5 * (2 / blocks.numel()) ** 0.5
    correlations = blocks @ blocks.T / m - torch.eye(len(blocks)) * blocks.square().mean(1)
    assert correlations.abs().max() < 5 / m**0.5


def test_the_image_is_not_changed() -> None:
    before = IMAGE.clone()
    copies(50)

    assert torch.equal(IMAGE, before)
