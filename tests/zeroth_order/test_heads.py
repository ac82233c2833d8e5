"""Heads against torch's own losses."""

import torch
from torch.nn import functional

from deepzero_apps.zeroth_order.heads import CrossEntropy


def test_the_loss_is_cross_entropy_for_each_network_and_sample() -> None:
    logits = torch.randn(4, 5, 3, dtype=torch.float32)
    labels = torch.tensor([0, 2, 1, 1, 0])

    losses = CrossEntropy(labels)(logits)

    assert losses.dtype == torch.float64
    for k in range(4):
        expected = functional.cross_entropy(logits[k].double(), labels, reduction="none")
        torch.testing.assert_close(losses[k], expected)


def test_differences_of_cross_entropy_are_those_of_its_values() -> None:
    labels, base = torch.tensor([0, 2, 1, 1, 0]), 3 * torch.randn(5, 3)
    for size in (1e-6, 1.0, 100.0):
        deltas = size * torch.randn(4, 5, 3)
        head = CrossEntropy(labels)
        expected = head(base + deltas) - head(base[None])
        # the reference subtracts losses of order 1 to 100 in float64
        torch.testing.assert_close(head.differences(base, deltas), expected, rtol=0, atol=1e-12)


def test_tiny_differences_of_cross_entropy_keep_their_digits() -> None:
    labels, base = torch.tensor([0, 2]), torch.randn(2, 3)
    deltas = 1e-30 * torch.randn(1, 2, 3)
    p = base.softmax(1)
    slopes = (p * deltas).sum(2) - deltas.gather(2, labels.expand(1, -1)[..., None])[..., 0]
    torch.testing.assert_close(
        CrossEntropy(labels).differences(base, deltas), slopes, rtol=1e-12, atol=0
    )
