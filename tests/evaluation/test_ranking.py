"""Accuracy, margin and AUC by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.evaluation.ranking import auc, label_metrics, pair_metrics


def test_auc_counts_pairs_and_halves_ties():
    # Positives 3 and 1, negatives 2, 1 and 0: 3 wins three times; 1 wins once and ties once.
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0])
    assert auc(scores, torch.tensor([1, 1, 0, 0, 0])) == pytest.approx(4.5 / 6)
    assert auc(torch.ones(4), torch.tensor([1, 0, 1, 0])) == 0.5


def test_auc_equals_the_count_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 20, (60,), generator=generator).float()
    labels = torch.rand(60, generator=generator) < 0.3
    wins = (scores[labels][:, None] > scores[~labels]).double()
    ties = (scores[labels][:, None] == scores[~labels]).double()
    assert auc(scores, labels) == pytest.approx(float((wins + ties / 2).mean()))


def test_one_class_alone_has_no_auc():
    with pytest.raises(ValueError, match="3 of 3 are positive"):
        auc(torch.randn(3), torch.ones(3))


def test_pairs():
    # 2 > 1, 0 < 3: one of two in order; differences 1 and -3. Of the four comparisons of a chosen
    # with a rejected one, 2 > 1 alone is right.
    found = pair_metrics(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert found == {"accuracy": 0.5, "margin": -1.0, "auc": 0.25}


def test_labels():
    found = label_metrics(torch.tensor([2.0, -1.0, -3.0, 1.0]), torch.tensor([1, 1, 0, 0]))
    assert found == {"accuracy": 0.5, "margin": 0.5 - (-1.0), "auc": 0.75}
