"""The whole loop on a toy reward: real decoding, real reward workers, real updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.load import load_config
from megatron_r1.data.prompts import open_prompts
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.rewards.registry import RULES
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.inprocess import InProcessEngine
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.rl import RlConfig, RlParts, train_rl
from tests.rewards.rules_for_tests import even_tokens

pytestmark = pytest.mark.megatron

OVERRIDES = [
    "data=chain_sum",
    "data.num_problems=300",
    "data.heldout_problems=0",
    "data.corpus_frac=0",
    "data.template=plain",
    "data.max_prompt_tokens=64",
    "model.num_layers=2",
    "rollout.max_response_tokens=8",
    "stage.num_steps=24",
    "stage.prompts_per_step=4",
    "stage.rollouts_per_prompt=16",
    "stage.steps_per_phase=2",
    "stage.reference_refresh_steps=4",
    "optimizer.lr=3e-3",
    "optimizer.warmup_steps=0",
    "+reward.weights.even_tokens=1.0",
    "~reward.weights.accuracy",
    "~reward.weights.format",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]


@pytest.fixture
def toy_rule():
    RULES["even_tokens"] = even_tokens
    yield
    del RULES["even_tokens"]


def rewards_of_training(one_rank, tokenizer, run_dir: Path, *choices: str) -> list[float]:
    """Mean reward of each rollout phase."""
    config = load_config([*OVERRIDES, *choices])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    num_steps = config.stage.num_steps
    run_dir.mkdir()
    recorder = Recorder(
        run_dir, config.telemetry, label="toy", first_step=0, num_steps=num_steps, is_main=True
    )
    with RewardScorer(config.reward) as scorer:
        parts = RlParts(
            megatron_step=step,
            bank=WeightBank(step.policy),
            engine=InProcessEngine(step.policy, tokenizer, max_batch=256, max_prefill_tokens=1024),
            prompts=open_prompts(config.data, tokenizer, seed=1),
            scorer=scorer,
            store=CheckpointStore(run_dir, keep=1, tokenizer_dir=None),
            recorder=recorder,
        )
        settings = RlConfig(
            stage=config.stage,
            algo=config.algo,
            rollout=config.rollout,
            optimizer=config.optimizer,
            seed=1,
        )
        assert train_rl(parts, settings, LoopState()).step == num_steps
    recorder.close()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["reward/mean"] for row in rows if "reward/mean" in row]


@pytest.mark.parametrize("model", ["tiny_v3", "tiny_dense"])
@pytest.mark.parametrize("algo", ["grpo_r1", "grpo_stable"])
def test_a_tiny_policy_learns_a_toy_reward(algo, model, one_rank, tokenizer, toy_rule, tmp_path):
    rewards = rewards_of_training(
        one_rank, tokenizer, tmp_path / "run", f"algo={algo}", f"model={model}"
    )
    assert len(rewards) == 12
    assert rewards[0] == pytest.approx(0.5, abs=0.1)  # as many even ids as odd ones
    assert rewards[-1] > 0.9
