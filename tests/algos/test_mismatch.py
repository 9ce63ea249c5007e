"""Trainer against engine: the measures, and the corrections at token and sequence level."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.mismatch import mismatch_metrics, rollout_correction
from megatron_r1.config.algo import GrpoConfig, Ratio, RolloutMask
from megatron_r1.errors import ConfigError

# r = pi_old / pi_rollout of three tokens of one response, and of two of another.
RATIOS = torch.tensor([0.25, 1.0, 8.0, 4.0, 1.0])
SEQUENCES = torch.tensor([0, 0, 0, 1, 1])


def factors(**settings) -> tuple[torch.Tensor, dict]:
    config = GrpoConfig(**settings)
    return rollout_correction(RATIOS.log(), SEQUENCES, 2, config=config)


def test_measures_by_hand():
    old_K = torch.log(torch.tensor([0.5, 0.5, 0.5]))
    rollout_K = torch.log(torch.tensor([0.5, 0.25, 0.125]))  # ratios 1, 2, 4
    metrics = mismatch_metrics(old_K, rollout_K)
    expected = {
        "mismatch/logprob_abs_mean": (3 * math.log(2), 3.0),
        "mismatch/logprob_abs_max": (2 * math.log(2), 0.0),
        # r - 1 - log r: 0, 1 - log 2, 3 - log 4
        "mismatch/kl": (4 - 3 * math.log(2), 3.0),
        "mismatch/beyond_frac": (1.0, 3.0),
    }
    assert metrics.keys() == expected.keys()
    for name, parts in expected.items():
        assert_close(torch.stack(metrics[name]), torch.tensor(parts))


def test_without_tokens_the_largest_difference_is_zero():
    none = torch.empty(0)
    assert mismatch_metrics(none, none)["mismatch/logprob_abs_max"] == (0.0, 0.0)


def test_nothing_is_corrected_by_default():
    factor_K, metrics = factors()
    assert_close(factor_K, torch.ones(5))
    assert metrics == {}


def test_the_cap_on_tokens_responses_and_their_means():
    assert_close(factors(rollout_correction_cap=2.0)[0], torch.tensor([0.25, 1, 2, 2, 1]))
    # Products: 0.25 * 8 = 2 and 4.
    by_product, metrics = factors(rollout_correction_cap=3.0, rollout_correction=Ratio.sequence)
    assert_close(by_product, torch.tensor([2.0, 2, 2, 3, 3]))
    assert metrics["mismatch/ratio_capped_frac"] == (2.0, 5.0)
    # Their roots: 2^(1/3) and 4^(1/2) = 2.
    by_mean, _ = factors(rollout_correction_cap=1.5, rollout_correction=Ratio.sequence_mean)
    assert_close(by_mean, torch.tensor([2 ** (1 / 3)] * 3 + [1.5] * 2))


def test_masks_leave_out_tokens_or_whole_responses():
    mask_K, metrics = factors(rollout_mask=RolloutMask.token)  # 0.5 to 5
    assert_close(mask_K, torch.tensor([0.0, 1, 0, 1, 1]))
    assert metrics["mismatch/masked_frac"] == (2.0, 5.0)
    mask_K, _ = factors(rollout_mask=RolloutMask.sequence, rollout_mask_high=1.9)
    assert_close(mask_K, torch.tensor([1.0, 1, 1, 0, 0]))
    both_K, _ = factors(rollout_mask=RolloutMask.token, rollout_correction_cap=2.0)
    assert_close(both_K, torch.tensor([0.0, 1, 0, 2, 1]))


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(ConfigError, match=r"algo.rollout_mask_high = 0.1 must be above"):
        GrpoConfig(rollout_mask_high=0.1)
