"""Parameter counts, against published ones and against what is built."""

from __future__ import annotations

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.models.size import count_parameters
from tests.models.families import FAMILIES, load_family


def test_deepseek_v3_has_671_billion_of_which_37_are_active():
    counted = count_parameters(load_config(["model=deepseek_v3"]).model)
    # V3 report: 671B total, 37B active. To the last weight: 671.03B and 37.55B with both
    # embeddings.
    assert counted.total == 671_026_404_352
    assert counted.active == 37_552_282_624


def test_the_prediction_layer_of_deepseek_v3():
    model = load_config(["model=deepseek_v3", "model.num_mtp_layers=1"]).model
    # A sparse layer: attention and two norms, 257 experts, the router; and what is around it.
    layer = 187_107_328 + 2 * 7168 + 257 * 3 * 7168 * 2048 + 7168 * 256
    around = 2 * 7168 * 7168 + 3 * 7168
    assert count_parameters(model).mtp == layer + around == 11_610_067_968
    assert count_parameters(model).total == 671_026_404_352


def test_multi_head_latent_attention_by_hand():
    config = load_config(["model=deepseek_v3"]).model
    # q: 7168 x 1536 + 1536 + 1536 x 128 x 192; kv: 7168 x 576 + 512 + 512 x 128 x 256;
    # out: 128 x 128 x 7168.
    by_hand = 11_010_048 + 1_536 + 37_748_736 + 4_128_768 + 512 + 16_777_216 + 117_440_512
    assert by_hand == 187_107_328
    assert count_parameters(config).attention_per_layer == by_hand


@pytest.mark.megatron
@pytest.mark.parametrize("num_mtp_layers", [0, 2])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_formula_counts_what_is_built(name, num_mtp_layers, one_rank):
    config = load_family(name, f"model.num_mtp_layers={num_mtp_layers}")
    policy = one_rank.policy(config)
    built = sum(parameter.numel() for _, parameter in policy.named_parameters())
    counted = count_parameters(config.model)
    assert counted.total + counted.mtp == built
