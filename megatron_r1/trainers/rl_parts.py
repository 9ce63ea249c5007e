"""What reinforcement learning works with."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.checkpoint.store import CheckpointStore
from megatron_r1.config.algo import AlgoConfig
from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.rollout import RolloutConfig
from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.data.prompts import PromptSource
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import RolloutEngine
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.critic import Critic
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_parts import RewardModels


@dataclass(frozen=True)
class RlParts:
    """What the loop works with; built by `stages/rl.py`."""

    megatron_step: MegatronStep
    bank: WeightBank
    engine: RolloutEngine
    prompts: PromptSource
    scorer: RewardScorer | None
    """On leaders; None on the other ranks."""
    store: CheckpointStore
    recorder: Recorder
    job: Job
    reward_models: RewardModels | None = None
    """Where the reward has parts that models give."""
    critic: Critic | None = None
    """PPO alone has one."""


@dataclass(frozen=True)
class RlConfig:
    """The groups of the configuration that the loop reads."""

    stage: R1ZeroConfig
    algo: AlgoConfig
    monitor: MonitorConfig
    rollout: RolloutConfig
    optimizer: OptimizerConfig
    seed: int
