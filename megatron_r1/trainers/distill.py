"""Learning from a teacher: from its responses, or from its whole distribution at each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_r1.algos.distill import distillation_loss, teacher_divergence
from megatron_r1.algos.logprobs import align_to_tokens
from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.algo import DistillLogitsConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.stage import DistillConfig
from megatron_r1.data.examples import Example
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.trainers.megatron_step import MegatronStep, TokenLoss
from megatron_r1.trainers.micro_batches import forward_rows
from megatron_r1.trainers.supervised import (
    SupervisedParts,
    Update,
    draw_examples,
    own_share,
    train_supervised,
)
from megatron_r1.types import LossOutput, MicroBatch, TrainBatch


class DistillStep(MegatronStep):
    """A student whose losses are functions of divergence_T, its distance from the teacher's
    distribution that each token was predicted by, and the micro-batch."""

    _reads_logits = True

    def __init__(
        self, policy: Policy, optimizer: OptimizerConfig, config: DistillLogitsConfig
    ) -> None:
        super().__init__(policy, optimizer)
        self._config = config

    def _loss(
        self,
        logits_tv: Tensor,
        micro: MicroBatch,
        stream: TokenStream,
        loss: TokenLoss,
        temperature: float,
    ) -> LossOutput:
        tp = self.policy.layout.tp
        # Without rows a micro-batch is padding alone, which has no teacher.
        teacher_tv = logits_tv.detach()
        if micro.teacher_logits_Tv is not None:
            teacher_tv = stream.take(micro.teacher_logits_Tv, fill=0)
        divergence_t = teacher_divergence(
            logits_tv,
            teacher_tv,
            interpolation=self._config.interpolation,
            temperature=self._config.temperature,
            vocab_start=tp.rank * logits_tv.shape[-1],
            vocab_size=self.policy.config.vocab_size,
            group=tp.group if tp.size > 1 else None,
        )
        return loss(align_to_tokens(stream.join(divergence_t), micro.positions_T), micro)


@dataclass(frozen=True)
class DistillLoopConfig:
    """The groups of the configuration that the loop reads."""

    stage: DistillConfig
    optimizer: OptimizerConfig
    seed: int


def train_distilled(
    parts: SupervisedParts,
    config: DistillLoopConfig,
    samples: Sequence[Example],
    state: LoopState,
    *,
    teacher: Policy | None,
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it.

    Args:
        parts: with a `DistillStep` where there is a teacher.
        samples: its responses, one row each.
        teacher: of the same vocabulary, in the same layout; None learns from its responses alone.
    """
    stage, dp = config.stage, parts.megatron_step.policy.layout.dp

    def update_of(step: int) -> Update:
        drawn = draw_examples(samples, step, stage.samples_per_step, config.seed)
        batch = own_share(drawn, dp)
        if teacher is None:
            return Update(batch=batch, loss=sft_loss, num_sequences=len(drawn))
        with parts.recorder.timed("time/teacher_s"):
            batch = with_teacher_logits(batch, teacher)
        return Update(batch=batch, loss=distillation_loss, num_sequences=len(drawn))

    num_steps = stage.num_steps(len(samples))
    return train_supervised(
        parts, stage, config.optimizer, state, num_steps=num_steps, update_of=update_of
    )


def with_teacher_logits(batch: TrainBatch, teacher: Policy) -> TrainBatch:
    """The same rows with the teacher's logits, this tensor rank's columns; all of them lie in host
    memory until the update is over."""
    logits = forward_rows(
        teacher,
        teacher.chunks,
        batch,
        lambda logits_tv, micro, stream: stream.join(logits_tv).cpu(),
    )
    rows = tuple(
        dataclasses.replace(row, teacher_logits_Lv=logits_Lv)
        for row, logits_Lv in zip(batch.rows, logits, strict=True)
    )
    return dataclasses.replace(batch, rows=rows)
