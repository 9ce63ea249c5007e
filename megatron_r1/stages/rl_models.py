"""The models that reinforcement learning has beside its policy: reward models, and PPO's critic."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.checkpoint.hf_coverage import is_hf_directory, read_hf_head
from megatron_r1.checkpoint.record import read_state, resolve_checkpoint, saved_head
from megatron_r1.config.algo import PpoConfig
from megatron_r1.config.model import Head
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import CheckpointError, ConfigError
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.stages.session import Session
from megatron_r1.trainers.critic import Critic
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_parts import RewardModels


def open_reward_models(session: Session, tokenizer: Tokenizer) -> RewardModels | None:
    """The models of `reward.models`, in host memory; None without any.

    Raises:
        CheckpointError: a model is none with a scalar head, or not of the policy's shape.
        ConfigError: it has another tokenizer.
    """
    config = session.config.reward
    if not config.models:
        return None
    shell = session.policy(tokenizer, Head.scalar)
    bank = WeightBank(shell)
    for name, model_dir in config.models.items():
        path = Path(model_dir)
        check_reward_model(path)
        if not session.tokenizer_of(path).has_vocabulary_of(tokenizer):
            raise ConfigError(
                f"reward.models.{name} = {path} has another tokenizer than the policy. "
                "Train a reward model from a checkpoint with the policy's"
            )
        session.load(shell, path)
        bank.store(name)
    bank.give_up_own()
    return RewardModels(shell, bank, config, tokenizer)


def open_critic(session: Session, tokenizer: Tokenizer) -> Critic | None:
    """The policy's architecture with a scalar head and an optimizer of its own; PPO's alone."""
    algo = session.config.algo
    if not isinstance(algo, PpoConfig):
        return None
    policy = session.policy(tokenizer, Head.scalar)
    return Critic(megatron_step=MegatronStep(policy, algo.critic_optimizer), config=algo)


def check_reward_model(path: Path) -> None:
    """Refuse a language model, whose scores would be those of a head that has learned nothing."""
    is_hf = is_hf_directory(path)
    head = read_hf_head(path) if is_hf else saved_head(read_state(resolve_checkpoint(path)))
    if head is not Head.scalar:
        raise CheckpointError(
            f"{path} is a language model, and a reward model is asked for. Train one with "
            "stage=rm_helpful or stage=rm_safety"
        )
