"""Reasoning RL from the cold start's model (arXiv:2501.12948v2 section 3.2.1).

R1-Zero's loop and settings. What is new is the reward: language consistency (Eq. 7) is added to
accuracy and format, conf/reward/r1_stage2.yaml.
"""

from __future__ import annotations

from pathlib import Path

from megatron_r1.config.r1 import R1Stage2Config
from megatron_r1.stages.rl import run_rl
from megatron_r1.stages.session import Session
from megatron_r1.trainers.megatron_step import MegatronStep


def run_r1_stage2(
    session: Session, stage: R1Stage2Config, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the policy as it ended."""
    return run_rl(session, stage, run_dir, init_from)
