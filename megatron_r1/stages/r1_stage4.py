"""RL for all scenarios from stage 3's model (arXiv:2501.12948v2 section 3.2.2).

Rules judge reasoning prompts, reward models general ones: the helpful model reads the summary, the
safety model the whole response, and each general prompt belongs to one of the two. General prompts
and reward models come in for the last `stage.preference_steps` updates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_r1.config.r1 import R1Stage4Config
from megatron_r1.config.reward import RewardConfig
from megatron_r1.data.prompts import PromptSource
from megatron_r1.stages.rl import run_rl
from megatron_r1.stages.session import Session
from megatron_r1.trainers.megatron_step import MegatronStep


def run_r1_stage4(
    session: Session, stage: R1Stage4Config, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the policy as it ended."""
    reward = with_schedules(session.config.reward, stage)
    session = dataclasses.replace(
        session, config=dataclasses.replace(session.config, reward=reward)
    )

    def prepare(prompts: PromptSource) -> None:
        prompts.hold_back(reward.mixes, until_step=stage.general_from_step)

    return run_rl(session, stage, run_dir, init_from, prepare=prepare)


def with_schedules(reward: RewardConfig, stage: R1Stage4Config) -> RewardConfig:
    """The same reward, whose models count in the stage's last updates."""
    begin = {model: {stage.general_from_step: 1.0} for model in reward.models}
    return dataclasses.replace(reward, schedules={**reward.schedules, **begin})
