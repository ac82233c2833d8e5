"""Denoiser training end to end: it improves, it resumes, it keeps to its budget."""

import pytest
import torch
from torch import Tensor, nn

from deepzero_apps.smoothing.denoisers import dncnn
from deepzero_apps.smoothing.methods import AtImage, Batch, Reconstruction
from deepzero_apps.smoothing.surrogate import Surrogate, WithSurrogate, surrogate_network
from deepzero_apps.smoothing.training import Recipe, clean_answers, defence_training, steps_within
from deepzero_apps.zeroth_order.oracle import Meter, Oracle
from deepzero_apps.zeroth_order.training import Observation, Training

SIGMA = 0.5


def stripes(n: int = 64) -> tuple[Tensor, Tensor]:
    """Two classes: a bright left or a bright right half."""
    labels = torch.arange(n) % 2
    images = torch.full((n, 1, 8, 8), 0.2)
    images[labels == 0, :, :, :4] = 0.8
    images[labels == 1, :, :, 4:] = 0.8
    return images, labels


def score(images: Tensor) -> Tensor:
    left = images[..., :4].mean((1, 2, 3)) - images[..., 4:].mean((1, 2, 3))
    return 4 * torch.stack((left, -left), 1)


def label(images: Tensor) -> Tensor:
    """Labels alone, by two pixels only: noise mistakes one image in five."""
    return (images[:, 0, 3, 2] < images[:, 0, 3, 5]).long()


def run(method: str, *, steps: int, stop: int | None = None) -> tuple[Training, list[float]]:
    images, labels = stripes()
    network = dncnn(
        channels=1, depth=3, width=4, batch_norm=False, generator=torch.Generator().manual_seed(0)
    )
    meter = Meter()
    labels_only = method.endswith("labels")
    oracle = Oracle(label if labels_only else score, meter=meter)
    surrogate = Surrogate(surrogate_network((1, 8, 8), 2, width=4), updates=1, rows=32)
    chosen = {
        "mse": Reconstruction(),
        "zo-ds": AtImage(oracle, mu=0.05, q=8),
        "zo-cv": WithSurrogate(oracle, surrogate, mu=0.05, q=2),
        "zo-ds labels": AtImage(oracle, mu=0.2, q=8),
        "zo-cv labels": WithSurrogate(oracle, surrogate, mu=0.2, q=2),
    }[method]
    training = defence_training(
        network,
        chosen,
        images,
        labels,
        recipe=Recipe(sigma=SIGMA, steps=steps, batch=16, lr=5e-3),
        meter=meter,
        companion=surrogate if "zo-cv" in method else None,
    )
    losses = [row["loss"] for row in training.run(stop if stop is not None else steps)]
    return training, losses


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("mse", 0.4),
        ("zo-ds", 0.9),
        ("zo-cv", 0.9),
        ("zo-ds labels", 0.7),
        ("zo-cv labels", 0.7),
    ],
)
def test_the_loss_falls(method: str, factor: float) -> None:
    _, losses = run(method, steps=150)

    assert sum(losses[-20:]) < factor * sum(losses[:20])


@pytest.mark.parametrize("method", ["zo-ds", "zo-cv", "zo-cv labels"])
def test_a_resumed_defence_ends_with_the_same_bits(method: str) -> None:
    whole, _ = run(method, steps=8)
    first, _ = run(method, steps=8, stop=3)
    second, _ = run(method, steps=8, stop=0)
    second.load_state_dict(first.state_dict())
    for _ in second.run(8):
        pass

    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.meter.spent == whole.meter.spent


def test_methods_see_the_same_batches_and_noise() -> None:
    seen: list[Batch] = []

    def watching(network: nn.Module, batch: Batch) -> Observation:
        seen.append(batch)
        return Reconstruction()(network, batch)

    images, labels = stripes()
    for _ in range(2):
        network = dncnn(channels=1, depth=2, width=2)
        recipe = Recipe(sigma=SIGMA, steps=2, batch=16)
        for _ in defence_training(network, watching, images, labels, recipe=recipe).run(2):
            pass

    for a, b in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(a.noisy, b.noisy)
        assert torch.equal(a.targets, b.targets)
    noise = torch.cat([(b.noisy - b.clean).flatten() for b in seen[:2]])
    n = noise.numel()  # 2,048: the standard deviation is known to sigma / sqrt(2 n), five times
    assert float(noise.std()) == pytest.approx(SIGMA, abs=5 * SIGMA / (2 * n) ** 0.5)


def test_clean_answers_cost_one_query_an_image() -> None:
    images, labels = stripes()
    oracle = Oracle(score)

    assert torch.equal(clean_answers(oracle, images), labels)
    assert oracle.meter.spent == len(images)


def test_a_lost_clean_answer_is_no_class() -> None:
    images, _ = stripes(4)
    lost = score(images)
    lost[1] = float("nan")

    assert clean_answers(lambda _: lost, images).tolist() == [0, -1, 0, 1]
    assert clean_answers(lambda _: torch.tensor([1, -1, 0, 1]), images).tolist() == [1, -1, 0, 1]


def test_images_without_a_target_take_no_part() -> None:
    seen: list[Batch] = []

    def watching(network: nn.Module, batch: Batch) -> Observation:
        seen.append(batch)
        return Reconstruction()(network, batch)

    images, labels = stripes()
    targets = labels.masked_fill(torch.arange(64) < 32, -1)
    network = dncnn(channels=1, depth=2, width=2)
    recipe = Recipe(sigma=SIGMA, steps=2, batch=16)
    for _ in defence_training(network, watching, images, targets, recipe=recipe).run(2):
        pass

    known = torch.cat([batch.targets for batch in seen])
    assert known.bincount().tolist() == [16, 16]  # one epoch over the 32 that are left
    with pytest.raises(ValueError, match="targets must be known for a batch of 40 images, got 32"):
        defence_training(
            network,
            watching,
            images,
            targets,
            recipe=Recipe(sigma=SIGMA, steps=1, batch=40),
        )


def test_steps_within_a_budget() -> None:
    assert steps_within(1_000, batch=16, queries=5) == 12
    with pytest.raises(
        ValueError, match="one step of 16 images with 5 queries each, 80 in all, got 79"
    ):
        steps_within(79, batch=16, queries=5)


@pytest.mark.parametrize("name", ["sigma", "steps", "batch", "lr"])
def test_bad_recipes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Recipe(**{"sigma": 0.5, "steps": 1, name: 0})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        Recipe(sigma=0.5, steps=1, seed=-1)


def test_bad_data_is_named() -> None:
    images, labels = stripes()
    network = dncnn(channels=1, depth=2, width=2)
    with pytest.raises(ValueError, match="targets must be one an image, got 3 for 64"):
        defence_training(
            network, Reconstruction(), images, labels[:3], recipe=Recipe(sigma=0.5, steps=1)
        )
    with pytest.raises(ValueError, match=r"size must lie in \[1, 64\], got 65"):
        defence_training(
            network, Reconstruction(), images, labels, recipe=Recipe(sigma=0.5, steps=1, batch=65)
        )
