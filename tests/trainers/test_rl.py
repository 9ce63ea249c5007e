"""The whole loop on a toy reward: real decoding, real reward workers, real updates."""

from __future__ import annotations

import json
import os
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

GOLDEN = Path(__file__).parents[1] / "golden/toy_steps.json"
KEPT = ("train/loss", "train/grad_norm", "reward/mean", "algo/kl_ref", "algo/entropy")

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


def train(one_rank, tokenizer, run_dir: Path, *choices: str) -> list[dict[str, float]]:
    """What a run logs, a row a step; those that began a rollout phase have its rewards."""
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
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["tiny_v3", "tiny_dense"])
@pytest.mark.parametrize("algo", ["grpo_r1", "grpo_stable"])
def test_a_tiny_policy_learns_a_toy_reward(algo, model, one_rank, tokenizer, toy_rule, tmp_path):
    rows = train(one_rank, tokenizer, tmp_path / "run", f"algo={algo}", f"model={model}")
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert len(rewards) == 12
    assert rewards[0] == pytest.approx(0.5, abs=0.1)  # as many even ids as odd ones
    assert rewards[-1] > 0.9


def test_the_first_steps_on_a_toy_reward_are_what_they_were(
    one_rank, tokenizer, toy_rule, tmp_path
):
    """Full precision; real advantages. Renew with R1_RENEW_GOLDEN=1, and say why in the commit."""
    rows = train(one_rank, tokenizer, tmp_path / "run", "stage.num_steps=6")
    found = [{name: row[name] for name in KEPT if name in row} for row in rows]
    if os.environ.get("R1_RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    for expected, row in zip(json.loads(GOLDEN.read_text()), found, strict=True):
        # Another processor adds up in another order, and Adam enlarges that in a few steps.
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert abs(found[0]["train/loss"]) > 1e-3 and found[0]["train/grad_norm"] > 0.1
    # The reference becomes the policy after 4 updates: the distance from it starts again.
    assert found[3]["algo/kl_ref"] > found[4]["algo/kl_ref"]


def test_the_update_sees_the_temperature_of_the_samples(one_rank, tokenizer, toy_rule, tmp_path):
    choices = ("stage.num_steps=2", "rollout.temperature=0.5")
    first, _ = train(one_rank, tokenizer, tmp_path / "run", *choices)
    # At another temperature the same tokens have other log-probabilities.
    assert first["mismatch/logprob_abs_mean"] < 1e-5
    assert first["algo/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert first["algo/kl_ref"] == pytest.approx(0, abs=1e-8)
