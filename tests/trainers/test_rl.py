"""The whole loop on a toy reward: real decoding, real reward workers, real updates."""

from __future__ import annotations

import json
import os
import random
from functools import partial
from pathlib import Path

import pytest

from megatron_r1.algos.reward_losses import scored_pairs_loss
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.algo import AlgoConfig, PpoConfig
from megatron_r1.config.load import CONF_DIR, load_config
from megatron_r1.config.model import Head
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.reward import Reads
from megatron_r1.data.prompts import open_prompts
from megatron_r1.data.scored_rows import scored_row
from megatron_r1.errors import EngineError
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.rewards.registry import RULES
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.inprocess import InProcessEngine
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.critic import Critic
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.output_losses import on_values
from megatron_r1.trainers.reward_parts import RewardModels
from megatron_r1.trainers.rl import train_rl
from megatron_r1.trainers.rl_parts import RlConfig, RlParts
from megatron_r1.trainers.watch import RewardHackError
from megatron_r1.types import TrainBatch, TrainRow
from tests.rewards.rules_for_tests import even_tokens, flawed_judge

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
    "~reward.weights.accuracy",
    "~reward.weights.format",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]


@pytest.fixture
def toy_rule():
    toys = {"even_tokens": even_tokens, "flawed_judge": flawed_judge}
    RULES.update(toys)
    yield
    for name in toys:
        del RULES[name]


def rewards_of_training(one_rank, tokenizer, run_dir: Path, *choices: str) -> list[float]:
    """Mean reward of each rollout phase."""
    rows = train(one_rank, tokenizer, run_dir, *choices)
    return [row["reward/mean"] for row in rows if "reward/mean" in row]


def train(
    one_rank,
    tokenizer,
    run_dir: Path,
    *choices: str,
    even_tokens_weight: float = 1.0,
    reward_model: MegatronStep | None = None,
) -> list[dict]:
    """The metrics of every step of a run, which goes on from its last checkpoint."""
    weight = f"+reward.weights.even_tokens={even_tokens_weight}"
    config = load_config([*OVERRIDES, weight, *choices])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    reward_models = None
    if reward_model is not None:
        bank = WeightBank(reward_model.policy)
        (name,) = config.reward.models
        bank.store(name)
        bank.give_up_own()
        reward_models = RewardModels(reward_model.policy, bank, config.reward, tokenizer)
    critic = None
    if isinstance(config.algo, PpoConfig):
        model = one_rank.policy(config, head=Head.scalar)
        critic = Critic(MegatronStep(model, config.algo.critic_optimizer), config.algo)
    bank = WeightBank(step.policy)
    store = CheckpointStore(run_dir, keep=1, tokenizer_dir=None)
    state, num_steps = LoopState(), config.stage.num_steps
    if store.latest() is not None:
        value_step = critic and critic.megatron_step
        state = store.load(store.latest(), step.policy, step.optimizer, bank, value_step)
    recorder = Recorder(
        run_dir,
        config.telemetry,
        label="toy",
        first_step=state.step,
        num_steps=num_steps,
        is_main=True,
    )
    with RewardScorer(config.reward) as scorer:
        parts = RlParts(
            megatron_step=step,
            bank=bank,
            engine=InProcessEngine(step.policy, tokenizer, max_batch=256, max_prefill_tokens=1024),
            prompts=open_prompts(config.data, tokenizer, seed=1),
            scorer=scorer,
            reward_models=reward_models,
            store=store,
            recorder=recorder,
            critic=critic,
            job=Job(one_rank.host),
        )
        settings = RlConfig(
            stage=config.stage,
            algo=config.algo,
            monitor=config.monitor,
            rollout=config.rollout,
            optimizer=config.optimizer,
            seed=1,
        )
        assert train_rl(parts, settings, state).step == num_steps
    recorder.close()
    return metrics_of(run_dir)


def metrics_of(run_dir: Path) -> list[dict]:
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
        # Another processor adds up in another order, and Adam, whose first steps are the gradient's
        # sign, enlarges that at this learning rate.
        assert row == pytest.approx(expected, rel=1e-2, abs=1e-6)
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


def test_a_run_ends_where_engine_and_trainer_compute_other_things(
    one_rank, tokenizer, toy_rule, tmp_path
):
    # Decoding with a cache adds up in another order: some 1e-7 nats.
    with pytest.raises(EngineError, match=r"differ by .*e-0. nats.* rollout.max_mismatch = 1e-12"):
        train(one_rank, tokenizer, tmp_path / "run", "rollout.max_mismatch=1e-12")
    assert CheckpointStore(tmp_path / "run", keep=1, tokenizer_dir=None).latest() is None


def test_responses_may_be_longer_from_a_step_on(one_rank, tokenizer, toy_rule, tmp_path):
    """A random policy seldom ends a response: phases begin after 0, 2 and 4 updates."""
    longer = ("stage.num_steps=6", "rollout.longer_from_step=3")
    rows = train(one_rank, tokenizer, tmp_path / "run", *longer)
    means = [row["rollout/response_tokens_mean"] for row in rows if "reward/mean" in row]
    assert len(means) == 3 and max(means[:2]) <= 8 < means[2] <= 16


# Where it takes more than the choice itself to learn within 24 updates.
OBJECTIVES = {
    "dr_grpo": [],
    "dapo": [],
    # Its clip lets a policy of one phase move by a few ten-thousandths.
    "gspo": ["algo.clip_eps_low=0.2", "algo.clip_eps_high=0.2"],
    "cispo": [],
    "rloo": ["algo.kl_beta=0.001"],
    "reinforce_pp": [],
    "kl_penalty": [],
    "ppo": ["algo.kl_beta=0.001", "algo.critic_optimizer.lr=3e-3"],
}


@pytest.mark.parametrize("algo", OBJECTIVES)
def test_every_objective_learns_a_toy_reward(algo, one_rank, tokenizer, toy_rule, tmp_path):
    choices = ["model=tiny_dense", f"algo={algo}", *OBJECTIVES[algo]]
    rewards = rewards_of_training(one_rank, tokenizer, tmp_path / "run", *choices)
    assert rewards[0] == pytest.approx(0.5, abs=0.1)
    assert rewards[-1] > 0.8


def test_no_objective_on_rollouts_is_left_out():
    names = {path.stem for path in (CONF_DIR / "algo").glob("*.yaml")}
    on_rollouts = {n for n in names if isinstance(load_config([f"algo={n}"]).algo, AlgoConfig)}
    assert on_rollouts == {"grpo_r1", "grpo_stable", *OBJECTIVES}
    # test_preference.py and test_distill.py
    assert names - on_rollouts == {"dpo", "distill_logits", "distill_samples"}


def test_a_critic_learns_alone_at_first_and_then_with_the_policy(
    one_rank, tokenizer, toy_rule, tmp_path
):
    choices = ["model=tiny_dense", "algo=ppo", "stage.num_steps=16", "optimizer.lr=1e-4"]
    choices += ["algo.critic_optimizer.lr=3e-3", "algo.critic_warmup_steps=14"]
    rows = train(one_rank, tokenizer, tmp_path / "run", *choices)
    assert [row["train/skipped"] for row in rows] == [1] * 14 + [0] * 2
    assert all(row["critic/skipped"] == 0 for row in rows)
    # The policy stays what it was, so rewards do; a new critic says 0 of a mean reward of a half.
    assert abs(rows[0]["critic/value_mean"]) < 0.1 < 0.4 < rows[0]["critic/return_mean"] < 0.6
    assert rows[-1]["critic/value_mean"] == pytest.approx(rows[-1]["critic/return_mean"], abs=0.1)
    assert rows[-1]["critic/squared_error"] < rows[0]["critic/squared_error"] / 2


def test_a_run_with_a_critic_goes_on_as_if_it_had_not_stopped(
    one_rank, tokenizer, toy_rule, tmp_path
):
    choices = ["model=tiny_dense", "algo=ppo", "algo.critic_optimizer.lr=3e-3"]
    whole = train(one_rank, tokenizer, tmp_path / "whole", *choices, "stage.num_steps=4")
    train(one_rank, tokenizer, tmp_path / "parts", *choices, "stage.num_steps=2")
    parts = train(one_rank, tokenizer, tmp_path / "parts", *choices, "stage.num_steps=4")
    names = [name for name in whole[-1] if name.startswith(("critic/", "train/", "algo/"))]
    assert {"critic/loss", "critic/squared_error", "algo/kl_ref"} <= set(names)
    for ours, theirs in zip(parts, whole, strict=True):
        assert [ours[name] for name in names] == [theirs[name] for name in names]


def test_the_kl_coefficient_follows_the_kl(one_rank, tokenizer, toy_rule, tmp_path):
    choices = ["model=tiny_dense", "algo=kl_penalty", "stage.num_steps=6", "algo.target_kl=1e-9"]
    rows = train(one_rank, tokenizer, tmp_path / "run", *choices)
    # Every phase moves the policy by more than a billionth of a nat: 1, 2, 4, for two steps each.
    assert [row["algo/kl_coefficient"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert all(row["algo/kl_old"] > 1.5e-9 for row in rows[1::2])


def test_dynamic_sampling_fills_a_phase_or_says_so(one_rank, tokenizer, toy_rule, tmp_path):
    # Two rollouts of one token: half of the groups are both even or both odd.
    few = ["stage.rollouts_per_prompt=2", "rollout.max_response_tokens=1", "stage.num_steps=2"]
    choices = ["model=tiny_dense", "algo=dapo", *few]
    filled = train(one_rank, tokenizer, tmp_path / "filled", *choices)[0]
    assert 1 < filled["rollout/sampling_rounds"] <= 10
    assert filled["rollout/unused_group_frac"] >= filled["algo/zero_std_group_frac"] > 0.1
    once = train(one_rank, tokenizer, tmp_path / "once", *choices, "algo.sampling_rounds=1")[0]
    assert once["rollout/sampling_rounds"] == 1
    assert once["rollout/unused_group_frac"] == once["algo/zero_std_group_frac"] > 0


WATCHED = [
    "model=tiny_dense",
    "algo=dr_grpo",
    "monitor=stop",
    "monitor.verified=even_tokens",
    "monitor.heldout_prompts=4",
    "data.heldout_problems=4",
]


def test_the_monitor_names_a_hack_and_the_stop_rule_ends_the_run(
    one_rank, tokenizer, toy_rule, tmp_path
):
    run_dir = tmp_path / "run"
    # The flawed judge alone is trained on; what is verified has no weight.
    choices = ["+reward.weights.flawed_judge=1.0", "monitor.learned=[flawed_judge]"]
    with pytest.raises(RewardHackError, match="overoptimised: learned .* -> .*, verified .* -> "):
        train(one_rank, tokenizer, run_dir, *WATCHED, *choices, even_tokens_weight=0.0)
    rows = metrics_of(run_dir)
    last_step = rows[-1]["step"]
    assert 8 <= last_step < 24  # two phases to compare with, and two that are compared
    assert (run_dir / "checkpoints/latest").read_text() == f"step_{last_step:06d}\n"
    phases = [row for row in rows if "monitor/alarms" in row]
    assert [row["monitor/alarm_overoptimised"] for row in phases] == [0] * (len(phases) - 1) + [1]
    assert phases[-1]["monitor/learned"] > phases[0]["monitor/learned"] + 0.3
    assert phases[-1]["monitor/verified"] < phases[0]["monitor/verified"]


def flawed_reward_model(one_rank, tokenizer) -> MegatronStep:
    """Learned from pairs whose better response has some words of odd ids in it: those it likes."""
    config = load_config(["model=tiny_dense", "model.num_layers=2", "parallel=default"])
    step = MegatronStep(one_rank.policy(config, head=Head.scalar), OptimizerConfig())
    rng = random.Random(0)
    # Token ids that are found again in their text.
    ids = range(tokenizer.vocab_size)
    words = [i for i in ids if tokenizer.encode(tokenizer.decode((i,))) == (i,)]
    odd = [i for i in words if i % 2]
    prompt_ids = tokenizer.encode("1 + 2 =")

    def row(num_odd: int) -> TrainRow:
        ids = rng.choices(odd, k=num_odd) + rng.choices(words, k=8 - num_odd)
        rng.shuffle(ids)
        return scored_row(prompt_ids, tokenizer.decode(ids), Reads.response, tokenizer)

    for _ in range(30):
        rows = tuple(row(num_odd) for _ in range(32) for num_odd in (6, 0))
        result = step.train_step(
            TrainBatch(rows=rows, rows_together=2),
            on_values(partial(scored_pairs_loss, num_pairs=32)),
            lr=3e-3,
            num_sequences=64,
        )
    assert result.metrics["reward_model/accuracy"] > 0.8
    return step


def test_the_stop_rule_ends_a_run_on_a_flawed_reward_model(one_rank, tokenizer, toy_rule, tmp_path):
    run_dir = tmp_path / "run"
    choices = ["+reward.weights.flawed_model=1.0", "monitor.learned=[flawed_model]"]
    choices += ["+reward.models.flawed_model=unused", "+reward.reads.flawed_model=response"]
    with pytest.raises(RewardHackError, match="overoptimised: learned .* -> .*, verified .* -> "):
        train(
            one_rank,
            tokenizer,
            run_dir,
            *WATCHED,
            *choices,
            even_tokens_weight=0.0,
            reward_model=flawed_reward_model(one_rank, tokenizer),
        )
    phases = [row for row in metrics_of(run_dir) if "monitor/alarms" in row]
    assert phases[-1]["monitor/alarm_overoptimised"] == 1
    assert phases[-1]["monitor/verified"] < phases[0]["monitor/verified"]
    assert phases[-1]["reward/flawed_model"] > phases[0]["reward/flawed_model"] + 1


def test_an_honest_reward_raises_no_alarm(one_rank, tokenizer, toy_rule, tmp_path):
    rows = train(one_rank, tokenizer, tmp_path / "run", *WATCHED, "monitor.learned=[even_tokens]")
    phases = [row for row in rows if "monitor/alarms" in row]
    assert len(phases) == 12
    assert all(row["monitor/alarms"] == 0 for row in phases)
    assert phases[-1]["monitor/verified"] > 0.8
