"""The laws of directions against their second moments."""

import pytest
import torch

from deepzero_apps.zeroth_order.directions import Directions, Gaussian, Rademacher, Sphere

N, D = 40_000, 4


@pytest.mark.parametrize("law", [Gaussian(), Sphere(), Rademacher()], ids=str)
def test_scaled_second_moment_is_the_identity(law: Directions) -> None:
    u = law.sample(torch.empty(N, D))

    moment = law.scale(D) * (u.T @ u) / N

    # the entries of c u u^T have a variance of at most 2: five standard errors
    torch.testing.assert_close(moment, torch.eye(D), rtol=0, atol=5 * (2 / N) ** 0.5)


def test_shapes_of_the_laws() -> None:
    like = torch.empty(5, 2, D, dtype=torch.float32)

    torch.testing.assert_close(Sphere().sample(like).norm(dim=-1), torch.ones(5, 2).float())
    assert set(Rademacher().sample(like).unique().tolist()) == {-1.0, 1.0}
    assert Gaussian().sample(like).dtype == torch.float32
    assert Gaussian().sample(like).shape == like.shape
