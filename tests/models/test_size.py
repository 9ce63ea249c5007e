"""Parameter counts, against published ones and against what is built."""

from __future__ import annotations

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.models.size import count_parameters


def test_deepseek_v3_has_671_billion_of_which_37_are_active():
    counted = count_parameters(load_config(["model=deepseek_v3"]).model)
    # V3 report: 671B total, 37B active. To the last weight: 671.03B and 37.55B with both
    # embeddings.
    assert counted.total == 671_026_404_352
    assert counted.active == 37_552_282_624


def test_multi_head_latent_attention_by_hand():
    config = load_config(["model=deepseek_v3"]).model
    # q: 7168 x 1536 + 1536 + 1536 x 128 x 192; kv: 7168 x 576 + 512 + 512 x 128 x 256;
    # out: 128 x 128 x 7168.
    by_hand = 11_010_048 + 1_536 + 37_748_736 + 4_128_768 + 512 + 16_777_216 + 117_440_512
    assert by_hand == 187_107_328
    assert count_parameters(config).attention_per_layer == by_hand


@pytest.mark.megatron
@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_the_formula_counts_what_is_built(name, one_rank):
    config = load_config([f"model={name}", "rollout.max_response_tokens=64"])
    policy = one_rank.policy(config)
    built = sum(parameter.numel() for _, parameter in policy.named_parameters())
    assert count_parameters(config.model).total == built
