"""What the stages of reinforcement learning share: from a model to the policy that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.data.prompts import PromptSource
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.stages.rl_models import open_critic, open_reward_models
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.rl import train_rl
from megatron_r1.trainers.rl_parts import RlConfig, RlParts


def run_rl(
    session: Session,
    stage: R1ZeroConfig,
    run_dir: Path,
    init_from: Path,
    *,
    prepare: Callable[[PromptSource], None] | None = None,
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the policy as it ended.

    Args:
        prepare: does to the prompts what the stage asks for, before the first is drawn.
    """
    config = session.config
    tokenizer = session.tokenizer(init_from)
    prompts = session.prompts(tokenizer)
    if prepare is not None:
        prepare(prompts)
    megatron_step = session.megatron_step(
        tokenizer, config.optimizer, mtp_loss=config.algo.mtp_loss
    )
    policy = megatron_step.policy
    bank = WeightBank(policy)
    store = session.store(run_dir, stage, tokenizer)
    critic = open_critic(session, tokenizer)
    state = session.begin(store, megatron_step, init_from, bank, critic)
    check_not_past(state.step, stage.num_steps, run_dir)
    if state.step >= stage.num_steps:
        return megatron_step
    with (
        session.scorer(config.reward) as scorer,
        session.recorder(
            run_dir, stage.name, first_step=state.step, num_steps=stage.num_steps
        ) as recorder,
    ):
        parts = RlParts(
            megatron_step=megatron_step,
            bank=bank,
            engine=session.engine(policy, tokenizer),
            prompts=prompts,
            scorer=scorer,
            reward_models=open_reward_models(session, tokenizer),
            store=store,
            recorder=recorder,
            job=session.job,
            critic=critic,
        )
        settings = RlConfig(
            stage=stage,
            algo=config.algo,
            monitor=config.monitor,
            rollout=config.rollout,
            optimizer=config.optimizer,
            seed=config.run.seed,
        )
        train_rl(parts, settings, state)
    return megatron_step
