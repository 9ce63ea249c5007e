"""What a whole run is: every group of `conf/`. What spans them is checked in `checks/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_r1.config.algo import ObjectiveConfig
from megatron_r1.config.checks.layout import check_degrees, check_model_fits_degrees
from megatron_r1.config.checks.lengths import check_example_lengths, check_lengths
from megatron_r1.config.checks.servers import check_servers, check_waiting
from megatron_r1.config.checks.stage import (
    check_algo,
    check_examples,
    check_general,
    check_monitor,
    check_objective,
    check_start,
    check_tiny,
)
from megatron_r1.config.cluster import ClusterConfig
from megatron_r1.config.data import DataConfig
from megatron_r1.config.evaluation import EvaluationConfig
from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.config.precision import PrecisionConfig
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.rollout import RolloutConfig
from megatron_r1.config.stage import StageConfig
from megatron_r1.config.telemetry import TelemetryConfig
from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class RunIdentity:
    """Who this run is. The name is the identity: starting it again resumes it."""

    name: str = "r1_zero"
    """`conf/config.yaml` makes it the stage's, so that no stage goes on in another's folder."""
    root: str = "runs"
    seed: int = 1
    overwrite: bool = False
    """Delete what an earlier run of this name left, and start over."""

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise ConfigError(f"run.name must name a folder inside run.root, got {self.name!r}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"run.seed must be in [0, 2^31), got {self.seed}")

    @property
    def dir(self) -> Path:
        return Path(self.root) / self.name


@dataclass(kw_only=True)
class RunConfig:
    """The resolved configuration: printed, saved beside the run, never written to."""

    run: RunIdentity = field(default_factory=RunIdentity)
    stage: StageConfig
    model: ModelConfig
    parallel: ParallelConfig
    algo: ObjectiveConfig
    reward: RewardConfig
    judge: JudgeConfig
    monitor: MonitorConfig
    data: DataConfig
    rollout: RolloutConfig
    evaluation: EvaluationConfig
    precision: PrecisionConfig
    optimizer: OptimizerConfig
    cluster: ClusterConfig
    telemetry: TelemetryConfig

    def validate(self, world_size: int) -> None:
        """Check what spans groups, before anything is built.

        Raises:
            ConfigError: with the settings' paths, their values and a way out.
        """
        if isinstance(self.stage, PipelineConfig):
            return  # every step is checked by itself
        stage, algo, model, rollout = self.stage, self.algo, self.model, self.rollout
        reward, data, cluster = self.reward, self.data, self.cluster
        self.validate_layout(world_size)
        check_objective(stage, algo)
        check_examples(stage, algo)
        check_example_lengths(stage, model, self.parallel, self.precision)
        check_lengths(
            stage, data, rollout, reward, model, self.parallel, self.precision, self.evaluation
        )
        check_tiny(stage, data, model)
        check_general(stage, reward)
        check_algo(stage, algo, rollout)
        check_monitor(stage, self.monitor, reward, algo, data)
        check_servers(stage, algo, model, rollout, self.precision, cluster)
        check_waiting(stage, rollout, cluster, world_size)
        check_start(stage, model)

    def validate_layout(self, world_size: int) -> None:
        """Check that the model can be laid out over so many ranks.

        Raises:
            ConfigError: with the settings' paths, their values and a way out.
        """
        check_degrees(self.parallel, world_size)
        check_model_fits_degrees(self.model, self.parallel, self.precision)
