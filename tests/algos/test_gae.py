"""A critic's targets and its loss by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.algos.gae import gae
from megatron_r1.algos.value import value_loss


def test_advantages_and_returns_with_a_discount():
    advantages, returns = gae(
        torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.5]), discount=0.5, lam=0.5
    )
    # delta = 0.5 x 0.25 - 0.5, 0.5 x 0.5 - 0.25, 1 - 0.5; each sum keeps 0.25 of the one behind it.
    assert advantages.tolist() == [-0.375 + 0.25 * 0.125, 0.125, 0.5]
    assert returns.tolist() == [0.15625, 0.375, 1.0]


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (1.0, 0.5, 0.25, 1.0),  # further than the clip of 0.2 from 0, and wrong there: it counts
        (1.0, 2.0, 1.8**2, 0.0),  # at 0.2 the error is larger: no gain from going on
        (-1.0, -2.0, 1.8**2, 0.0),
        (0.1, 0.5, 0.16, -0.8),
        (-0.1, 0.5, 0.36, -1.2),
    ],
)
def test_a_value_gains_nothing_beyond_the_clip(value, target, loss, slope):
    values = torch.tensor([value, 3.0], requires_grad=True)
    old, targets = torch.tensor([0.0, 3.0]), torch.tensor([target, 3.0])
    found = value_loss(values, old, targets, torch.tensor([0.25, 7.0]), clip=0.2)
    found.backward()
    assert found.item() == pytest.approx(0.5 * 0.25 * loss)
    assert values.grad.tolist() == pytest.approx([0.5 * 0.25 * slope, 0.0])
