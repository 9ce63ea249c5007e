"""Servers of more than one rank: what they sample is what the trainer computes."""

from __future__ import annotations

import pytest

from tests.rollout.served import MAX_GAP, needs_sglang, serve, worst_gap

pytestmark = needs_sglang

ENGINES = {
    # Weights of multi-token prediction travel too; a server that does not speculate leaves them.
    "tensor 2, expert 2, with MTP": [
        "rollout.tensor=2",
        "rollout.expert=2",
        "rollout.weights_by=shared_memory",
        "model.num_mtp_layers=1",
    ],
    "data-parallel attention": [
        "rollout.tensor=2",
        "rollout.attention_data=2",
        "rollout.weights_by=directory",
    ],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_of_two_ranks_samples_as_the_trainer_does(engine, one_rank, tokenizer, tmp_path):
    with serve(one_rank, tokenizer, tmp_path, "deepseek_v3", *ENGINES[engine]) as served:
        served.engine.publish(0)
        assert worst_gap(served, 0) < MAX_GAP
        served.publish_changed(1, seed=1)
        assert worst_gap(served, 1) < MAX_GAP
