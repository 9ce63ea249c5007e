"""DeepSeek-R1-Zero: GRPO on rule rewards from a base model (arXiv:2501.12948v2 section 2)."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.stages.rl import run_rl
from megatron_r1.stages.session import Session
from megatron_r1.trainers.megatron_step import MegatronStep


def run_r1_zero(
    session: Session, stage: R1ZeroConfig, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the policy as it ended."""
    return run_rl(session, stage, run_dir, init_from)
