"""Losses as the schedules want them: functions of a model's output for one micro-batch.

The losses of `algos/` are functions of a number for each token: its log-probability, the value of
a scalar head, the divergence from a teacher. Each builder here puts what makes it in front of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_r1.algos.distill import teacher_divergence
from megatron_r1.algos.logprobs import align_to_tokens, next_tokens, target_logprobs
from megatron_r1.algos.mtp import mtp_loss as loss_ahead
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.sampling_mask import kept_columns
from megatron_r1.config.algo import DistillLogitsConfig
from megatron_r1.config.precision import Logprobs
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.types import LossOutput, MicroBatch
from r1_kernels.token_logprobs import token_logprobs as head_logprobs

TokenLoss = Callable[[Tensor, MicroBatch], LossOutput]
"""(a number for each token, [T]; micro-batch) -> this micro-batch's share of the step's loss."""


@dataclass(frozen=True)
class OutputLoss:
    """The same of the model's output for the tokens that this rank holds, and their stream."""

    of: Callable[[Tensor, MicroBatch, TokenStream], LossOutput]
    reads_hidden: bool = False
    """The output is hidden states in place of logits."""

    def __call__(self, output: Tensor, micro: MicroBatch, stream: TokenStream) -> LossOutput:
        return self.of(output, micro, stream)


def on_logprobs(
    loss: TokenLoss, policy: Policy, *, temperature: float = 1.0, mtp_weight: float = 0.0
) -> OutputLoss:
    """A loss of logprobs_T, nats; with it come the entropy, and the loss of the prediction layers.

    Args:
        temperature: what the rows were sampled with.
        mtp_weight: of the prediction layers' loss, where they run.
    """

    def from_output(output: Tensor, micro: MicroBatch, stream: TokenStream) -> LossOutput:
        logprobs_T, entropy_T = token_logprobs(policy, output, micro, stream, temperature)
        if micro.logprobs_old_T is None:
            micro = dataclasses.replace(micro, logprobs_old_T=logprobs_T.detach())
        found = loss(logprobs_T, micro)
        total, metrics = found.loss, dict(found.metrics)
        if stream.logits_ahead:
            logprobs_KT = [
                token_logprobs(policy, ahead, micro, stream, temperature, steps=depth + 1)[0]
                for depth, ahead in enumerate(stream.logits_ahead, start=1)
            ]
            further = loss_ahead(logprobs_KT, micro, weight=mtp_weight)
            total = total + further.loss
            metrics |= further.metrics
        metrics["algo/entropy"] = mean_parts(entropy_T[micro.loss_mask_T])
        return LossOutput(loss=total, metrics=metrics)

    return OutputLoss(from_output, reads_hidden=reads_hidden(policy))


def on_values(loss: TokenLoss) -> OutputLoss:
    """A loss of scores_T, what a scalar head says after each token: column t has seen token t."""
    return OutputLoss(lambda scores_t, micro, stream: loss(stream.join(scores_t), micro))


def on_divergence(loss: TokenLoss, policy: Policy, config: DistillLogitsConfig) -> OutputLoss:
    """A loss of divergence_T, nats: how far the student is from the teacher's distribution that
    each token was predicted by."""
    tp = policy.layout.tp

    def from_output(logits_tv: Tensor, micro: MicroBatch, stream: TokenStream) -> LossOutput:
        # Without rows a micro-batch is padding alone, which has no teacher.
        teacher_tv = logits_tv.detach()
        if micro.teacher_logits_Tv is not None:
            teacher_tv = stream.take(micro.teacher_logits_Tv, fill=0)
        divergence_t = teacher_divergence(
            logits_tv,
            teacher_tv,
            interpolation=config.interpolation,
            temperature=config.temperature,
            vocab_start=tp.rank * logits_tv.shape[-1],
            vocab_size=policy.config.vocab_size,
            group=tp.group if tp.size > 1 else None,
        )
        return loss(align_to_tokens(stream.join(divergence_t), micro.positions_T), micro)

    return OutputLoss(from_output)


def reads_hidden(policy: Policy) -> bool:
    """Whether log-probabilities of this policy are made without all of its logits."""
    return policy.precision.logprobs is Logprobs.fused


def token_logprobs(
    policy: Policy,
    output: Tensor,
    micro: MicroBatch,
    stream: TokenStream,
    temperature: float,
    *,
    steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """logprobs_T and entropy_T of all tokens of the micro-batch, on every context rank; from the
    logits, or hidden states, of the tokens that this one holds, each of which predicts `steps`
    ahead."""
    tp = policy.layout.tp
    targets_t = stream.take(next_tokens(micro.tokens_T, steps=steps), fill=0)
    head_vD = stream.head_weight_vD
    if micro.kept_counts_T is not None and steps == 1:
        # Which columns are kept is known for logits alone: these are made, all of them.
        if head_vD is not None:
            output, head_vD = _logits(output, head_vD, stream.float32_head), None
        everywhere = torch.arange(micro.tokens_T.numel(), device=micro.tokens_T.device)
        kept_tv = kept_columns(
            micro.kept_counts_T,
            micro.kept_ids_J,
            stream.take(next_tokens(everywhere), fill=-1),
            vocab_start=tp.rank * output.shape[-1],
            num_columns=output.shape[-1],
        )
        output = output.masked_fill(~kept_tv, -torch.inf)
    vocab: dict[str, Any] = dict(
        temperature=temperature,
        vocab_start=tp.rank * (output.shape[1] if head_vD is None else head_vD.shape[0]),
        vocab_size=policy.config.vocab_size,
        group=tp.group if tp.size > 1 else None,
    )
    if head_vD is None:
        logprobs_t, entropy_t = target_logprobs(output, targets_t, **vocab)
    else:
        logprobs_t, entropy_t = head_logprobs(
            output, head_vD, targets_t, float32_logits=stream.float32_head, **vocab
        )
    logprobs_T, entropy_T = (
        align_to_tokens(stream.join(values_t), micro.positions_T, steps=steps)
        for values_t in (logprobs_t, entropy_t)
    )
    return logprobs_T, entropy_T


def _logits(hidden_tD: Tensor, head_vD: Tensor, float32: bool) -> Tensor:
    """As the model makes them where it is not asked for hidden states."""
    if float32:
        hidden_tD, head_vD = hidden_tD.float(), head_vD.float()
    return hidden_tD @ head_vD.T
