"""bf16, where trainer and engine send tokens to other experts: what replaying the routing mends."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from megatron_r1.config.algo import GrpoConfig
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.minibatches import train_rows
from megatron_r1.types import Reward, RolloutGroup, ScoredGroup, TrainBatch
from tests.rollout.served import needs_sglang, prompts, serve

pytestmark = needs_sglang

TEMPERATURE = 1.0


@pytest.fixture(scope="module")
def served(one_rank, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("replay")
    # Deep and with many experts, as the real ones: nearly every token has its experts exchanged
    # in some layer. With few of them the rounding of the logits, which replay cannot mend, is most
    # of what is left (4 layers of 16 experts: 2.6e-2 without and 8.7e-3 with replay).
    settings = ["precision=bf16", "rollout.routed_experts=true", "model.num_layers=16"]
    settings += ["model.num_experts=64", "model.experts_per_token=8"]
    settings += ["model.num_expert_groups=8", "model.groups_per_token=4"]
    with serve(one_rank, tokenizer, root, "deepseek_v3", *settings) as served:
        served.publish_changed(0, seed=3)
        yield served


def test_replayed_routing_brings_the_trainer_near_the_engine(served):
    asked = prompts(8)
    rollouts = served.generate(
        asked, version=0, num_samples=8, max_response_tokens=48, temperature=TEMPERATURE
    )
    groups = defaultdict(list)
    for (draw, _), rollout in sorted(rollouts.items(), key=lambda item: item[0]):
        groups[draw].append(rollout)
    scored = [
        ScoredGroup(
            RolloutGroup(asked[draw], tuple(members)), (Reward(0.0, {}, {}),) * len(members)
        )
        for draw, members in groups.items()
    ]
    gaps = {}
    for replay in (False, True):
        rows = train_rows(scored, GrpoConfig(replay_routing=replay))
        own = row_logprobs(served.policy, TrainBatch(tuple(rows)), temperature=TEMPERATURE)
        pairs = zip(own, rows, strict=True)
        gap_K = torch.cat([(a - row.logprobs_rollout_L)[row.loss_mask_L] for a, row in pairs])
        gaps[replay] = gap_K.abs()
        print(f"replay {replay}: {len(gap_K)} tokens, mean {gaps[replay].mean():.2e}", end=", ")
        print(f"max {gaps[replay].max():.2e}, median {gaps[replay].median():.2e}")
    assert gaps[True].mean() * 10 <= gaps[False].mean()
