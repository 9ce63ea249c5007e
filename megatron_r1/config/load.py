"""From `conf/` and command-line overrides to one `RunConfig`: compose, convert once, validate."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_r1.config import (
    algo,
    cluster,
    curation,
    data,
    evaluation,
    judge,
    model,
    monitor,
    optimizer,
    parallel,
    pipeline,
    precision,
    r1,
    reward,
    rollout,
    run,
    sft,
    stage,
    telemetry,
)
from megatron_r1.config.overrides import check_names
from megatron_r1.config.paths import flatten
from megatron_r1.errors import ConfigError, UserError

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"

_SCHEMAS = {
    "algo": {
        "cispo_schema": algo.CispoConfig,
        "distill_logits_schema": algo.DistillLogitsConfig,
        "distill_samples_schema": algo.DistillSamplesConfig,
        "dpo_schema": algo.DpoConfig,
        "grpo_schema": algo.GrpoConfig,
        "kl_penalty_schema": algo.KlPenaltyConfig,
        "ppo_schema": algo.PpoConfig,
    },
    "cluster": {
        "local_schema": cluster.ClusterConfig,
        "slurm_schema": cluster.SlurmConfig,
    },
    "data": {"prompts_schema": data.DataConfig},
    "evaluation": {"evaluation_schema": evaluation.EvaluationConfig},
    "judge": {"judge_schema": judge.JudgeConfig},
    "model": {
        "deepseek_v3_schema": model.DeepseekV3Config,
        "grouped_query_schema": model.GroupedQueryConfig,
        "qwen3_moe_schema": model.Qwen3MoeConfig,
    },
    "monitor": {"monitor_schema": monitor.MonitorConfig},
    "optimizer": {"adam_schema": optimizer.OptimizerConfig},
    "parallel": {"parallel_schema": parallel.ParallelConfig},
    "precision": {"precision_schema": precision.PrecisionConfig},
    "reward": {"reward_schema": reward.RewardConfig},
    "rollout": {
        "rollout_schema": rollout.RolloutConfig,
        "sglang_schema": rollout.SglangConfig,
    },
    "stage": {
        "curate_schema": curation.CurateStageConfig,
        "distill_schema": stage.DistillConfig,
        "dpo_schema": stage.DpoStageConfig,
        "evaluation_schema": pipeline.EvaluationStageConfig,
        "r1_pipeline_schema": pipeline.PipelineConfig,
        "r1_stage1_schema": sft.R1Stage1Config,
        "r1_stage2_schema": r1.R1Stage2Config,
        "r1_stage3_schema": sft.R1Stage3Config,
        "r1_stage4_schema": r1.R1Stage4Config,
        "r1_zero_schema": stage.R1ZeroConfig,
        "rm_helpful_schema": stage.RmHelpfulConfig,
        "rm_safety_schema": stage.RmSafetyConfig,
        "sft_schema": sft.SftConfig,
        "tiny_base_schema": stage.TinyBaseConfig,
        "tiny_r1_zero_schema": stage.TinyR1ZeroConfig,
        "tiny_world_schema": pipeline.TinyWorldStageConfig,
    },
    "telemetry": {"telemetry_schema": telemetry.TelemetryConfig},
}


def register_schemas() -> None:
    """Tell Hydra the schema behind each file of `conf/`. Harmless when repeated."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=run.RunConfig)
    for group, schemas in _SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=group, name=name, node=node)


def load_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> run.RunConfig:
    """Compose `conf/config.yaml` with overrides such as ``model=tiny_v3 parallel.tensor=2``.

    Raises:
        ConfigError: unknown key, unknown choice, wrong type, or a value that a schema refuses.
    """
    if not (conf_dir / "config.yaml").is_file():
        raise ConfigError(
            f"{conf_dir} holds no config.yaml. megatron_r1 reads conf/ beside its package: install "
            "it from a checkout with `pip install -e .`"
        )
    register_schemas()
    try:
        with initialize_config_dir(config_dir=str(conf_dir), version_base="1.3"):
            check_names(overrides, conf_dir)
            composed = compose(config_name="config", overrides=list(overrides))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} must be set, as in {missing[0]}=VALUE; the file in "
                f"{conf_dir} that asks for it says what it is"
            )
        config = _convert(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, overrides)) from error
    _check_finite(config, "")
    return config


def _check_finite(value: object, path: str) -> None:
    """No setting is NaN or infinite: such a number passes every comparison with a bound."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value} is no finite number")
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{path}.{key}".lstrip("."))


def _convert(composed: DictConfig) -> run.RunConfig:
    """Dataclasses out of the composed tree; their own checks run here."""
    try:
        return OmegaConf.to_object(composed)
    except UserError as error:
        raise ConfigError(_locate(error, composed)) from None


def _locate(error: UserError, composed: DictConfig) -> str:
    """The message of a schema that refused its values, with the path of the group it is in."""
    path, node = "", composed
    while True:
        for key, child in node.items_ex(resolve=False):
            if isinstance(child, DictConfig) and child._metadata.object_type not in (dict, None):
                try:
                    OmegaConf.to_object(child)
                except UserError:
                    path, node = f"{path}.{key}".lstrip("."), child
                    break
        else:
            break
    message = str(error)
    if message.startswith(f"{path}."):
        return message
    # A schema that serves in several places starts with the field's own name.
    return f"{path}.{message}" if message.split(maxsplit=1)[0] in node else f"{path}: {message}"


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One message out of Hydra's chain of exceptions, with where to look."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    texts = dict.fromkeys(" ".join(str(part).split()) for part in (error, cause))
    return (
        f"{'. '.join(texts)}. Overrides given: {' '.join(overrides) or 'none'}. They read "
        "group=choice or group.key=value; --help lists the groups, megatron_r1/config/ the keys"
    )


def to_yaml(config: run.RunConfig) -> str:
    """The resolved configuration, as it is printed and saved."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def settings_of(config: run.RunConfig) -> dict[str, Any]:
    """Every setting, as it is saved, by its name on the command line; see `flatten`."""
    return flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))


def world_size_from_environment() -> int:
    """Processes of this job: torchrun sets WORLD_SIZE; alone it is 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))
