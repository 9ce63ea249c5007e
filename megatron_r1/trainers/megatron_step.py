"""Our losses on Megatron-Core's schedules: rows to micro-batches, gradients, one optimizer step.

The only module that knows how Megatron scales a loss. It scales nothing: a loss comes weighted over
the whole step (`algos/reduce.py`), so gradients are *summed* over micro-batches and data-parallel
replicas. Megatron calls that `calculate_per_token_loss`, and would divide by a token count at the
end, which is left out here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_r1.algos.logprobs import align_to_tokens, next_tokens, target_logprobs
from megatron_r1.algos.mtp import mtp_loss
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.data.packing import build_micro_batch, pack_best_fit, pack_equal_counts
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.types import LossOutput, MicroBatch, StepResult, TrainBatch

TokenLoss = Callable[[Tensor, MicroBatch], LossOutput]
"""(logprobs_T, micro-batch) -> this micro-batch's share of the step's loss."""

Finish = Callable[[Tensor, MicroBatch, TokenStream], tuple[Tensor, dict[str, Any]]]
"""(logits_tv of the tokens that this rank holds, micro-batch, its stream) -> loss and output."""

OnMicroBatch = Callable[[int, int], None]
"""Called after each micro-batch of this rank with micro-batches done and to do."""


class MegatronStep:
    """A policy with gradients and an optimizer."""

    def __init__(
        self, policy: Policy, optimizer: OptimizerConfig, *, mtp_loss: float = 0.0
    ) -> None:
        """`mtp_loss`: weight of the prediction layers' loss. At 0 they do not run, and stay as they
        are; so does a policy without any, at any weight."""
        self.policy = policy
        self._mtp_loss = mtp_loss if policy.config.num_mtp_layers else 0.0
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(self._mtp_loss > 0 or not name.startswith("mtp."))
        config = policy.megatron_config
        ddp = DistributedDataParallelConfig(
            use_distributed_optimizer=True, grad_reduce_in_fp32=True
        )
        self.chunks = [DistributedDataParallel(config, ddp, chunk) for chunk in policy.chunks]
        self.optimizer = get_megatron_optimizer(
            _megatron_optimizer_config(optimizer, policy), self.chunks
        )
        self._clip_grad = optimizer.clip_grad
        config.finalize_model_grads_func = _sum_gradients

    def train_step(
        self,
        batch: TrainBatch,
        loss: TokenLoss,
        *,
        lr: float,
        num_sequences: int,
        temperature: float = 1.0,
        on_micro_batch: OnMicroBatch | None = None,
    ) -> StepResult:
        """One update from this replica's rows; every rank of the job calls it.

        Args:
            lr: learning rate of this update.
            num_sequences: rows of the whole step, over all replicas.
            temperature: what the rows were sampled with.
        """
        expert_biases = [(bias, bias.clone()) for bias in self._expert_biases()]
        outputs = self.accumulate_gradients(batch, loss, num_sequences, temperature, on_micro_batch)
        grad_norm, skipped = self._update(lr)
        if skipped:  # Megatron has moved them with the token counts of this step
            for bias, before in expert_biases:
                bias.copy_(before)
        metrics = self._reduce_metrics(outputs)
        metrics |= {"train/grad_norm": grad_norm, "train/lr": lr}
        return StepResult(metrics=metrics, skipped=skipped)

    def _expert_biases(self) -> list[Tensor]:
        buffers = self.policy.named_buffers()
        return [buffer for name, buffer in buffers if name.endswith("expert_bias")]

    def accumulate_gradients(
        self,
        batch: TrainBatch,
        loss: TokenLoss,
        num_sequences: int,
        temperature: float = 1.0,
        on_micro_batch: OnMicroBatch | None = None,
    ) -> list[dict[str, Any]]:
        """Leave the gradient of the whole step in Megatron's buffers, each rank its shard.

        Returns: metrics of each micro-batch on the last stage, none before it.
        """
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

        def finish(
            logits_Tv: Tensor, micro: MicroBatch, stream: TokenStream
        ) -> tuple[Tensor, dict[str, Any]]:
            logprobs_T, entropy_T = self._logprobs(logits_Tv, micro, stream, temperature)
            if micro.logprobs_old_T is None:
                micro = dataclasses.replace(micro, logprobs_old_T=logprobs_T.detach())
            output = loss(logprobs_T, micro)
            metrics = dict(output.metrics)
            if stream.logits_ahead:
                ahead = self._mtp_output(micro, stream, temperature)
                output = LossOutput(loss=output.loss + ahead.loss, metrics={})
                metrics |= ahead.metrics
            metrics["algo/entropy"] = mean_parts(entropy_T[micro.loss_mask_T])
            # A denominator of 0 marks a sum.
            none = torch.zeros_like(output.loss)
            metrics["train/loss"] = (output.loss.detach(), none)
            num_tokens = micro.tokens_T.numel() - micro.num_padding
            metrics["train/tokens"] = (none + num_tokens, none)
            return output.loss, metrics

        bins = self._plan(batch)
        return self._run(
            batch,
            bins,
            finish,
            num_sequences=num_sequences,
            with_mtp=self._mtp_loss > 0,
            on_micro_batch=on_micro_batch,
        )

    def logprobs(
        self,
        batch: TrainBatch,
        *,
        temperature: float = 1.0,
        on_micro_batch: OnMicroBatch | None = None,
    ) -> list[Tensor]:
        """Log-probability of every token of every row, without gradients.

        Returns: for each row logprobs_L, nats, float32; zeros on stages before the last, where
            nobody reads them.
        """

        def finish(
            logits_Tv: Tensor, micro: MicroBatch, stream: TokenStream
        ) -> tuple[Tensor, dict[str, Any]]:
            logprobs_T, _ = self._logprobs(logits_Tv, micro, stream, temperature)
            return logprobs_T.sum(), {"logprobs": logprobs_T.split(micro.seq_lengths)}

        bins = self._plan(batch)
        with self.policy.inference():
            outputs = self._run(
                batch, bins, finish, forward_only=True, on_micro_batch=on_micro_batch
            )
        by_row = [torch.zeros_like(row.tokens_L, dtype=torch.float32) for row in batch.rows]
        for rows, output in zip(bins, outputs, strict=self.policy.layout.is_last_stage):
            for row, logprobs_L in zip(rows, output["logprobs"], strict=False):
                by_row[row] = logprobs_L
        return by_row

    def _mtp_output(self, micro: MicroBatch, stream: TokenStream, temperature: float) -> LossOutput:
        logprobs_KT = [
            self._logprobs(logits_tv, micro, stream, temperature, steps=depth + 1)[0]
            for depth, logits_tv in enumerate(stream.logits_ahead, start=1)
        ]
        return mtp_loss(logprobs_KT, micro, weight=self._mtp_loss)

    def _logprobs(
        self,
        logits_tv: Tensor,
        micro: MicroBatch,
        stream: TokenStream,
        temperature: float,
        *,
        steps: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """logprobs_T and entropy_T of all tokens of the micro-batch, on every context rank; from
        the logits of the tokens that this one holds, each of which predicts `steps` ahead."""
        tp = self.policy.layout.tp
        logprobs_t, entropy_t = target_logprobs(
            logits_tv,
            stream.take(next_tokens(micro.tokens_T, steps=steps), fill=0),
            temperature=temperature,
            vocab_start=tp.rank * logits_tv.shape[-1],
            vocab_size=self.policy.config.vocab_size,
            group=tp.group if tp.size > 1 else None,
        )
        logprobs_T, entropy_T = (
            align_to_tokens(stream.join(values_t), micro.positions_T, steps=steps)
            for values_t in (logprobs_t, entropy_t)
        )
        return logprobs_T, entropy_T

    def _run(
        self,
        batch: TrainBatch,
        bins: list[list[int]],
        finish: Finish,
        *,
        num_sequences: int = 1,
        with_mtp: bool = False,
        forward_only: bool = False,
        on_micro_batch: OnMicroBatch | None = None,
    ) -> list[dict[str, Any]]:
        """Run Megatron's schedule over the bins' rows; `finish` makes of logits a loss and an
        output.

        Returns: the outputs, one for each micro-batch on the last stage, none before it.
        """
        # Each chunk goes through the micro-batches at its own pace.
        micros = [(self._build(batch, rows) for rows in bins) for _ in self.chunks]
        done = 0

        def forward_step(micros: Iterator[MicroBatch], chunk: torch.nn.Module) -> Any:
            nonlocal done
            micro = next(micros)
            stream = self.policy.training_stream(micro, num_sequences, with_mtp=with_mtp)
            output = self.policy.forward(stream.take(micro.tokens_T, fill=0), stream, chunk=chunk)
            if chunk is self.chunks[-1]:
                done += 1
                if on_micro_batch is not None:
                    on_micro_batch(done, len(bins))

            def loss_func(logits_Tv: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
                loss, result = finish(logits_Tv, micro, stream)
                return loss, torch.ones((), dtype=torch.int, device=loss.device), result

            return output, loss_func

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=micros,
            model=self.chunks,
            num_microbatches=len(bins),
            seq_length=self.policy.layout.config.max_tokens_per_microbatch,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _plan(self, batch: TrainBatch) -> list[list[int]]:
        """Rows of each micro-batch; as many micro-batches on every replica."""
        multiple = self.policy.stream_multiple
        capacity = self.policy.layout.config.max_tokens_per_microbatch // multiple * multiple
        lengths = [row.num_tokens for row in batch.rows]
        num_bins = max(1, len(pack_best_fit(lengths, capacity)))
        most = torch.tensor(num_bins, device=self.policy.host.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.policy.layout.dp.group)
        num_bins = int(most.item())
        if len(self.chunks) > 1:  # interleaved chunks take micro-batches in groups of the stages
            num_bins += -num_bins % self.policy.layout.pp.size
        return pack_equal_counts(lengths, capacity, num_bins=num_bins)

    def _build(self, batch: TrainBatch, rows: Sequence[int]) -> MicroBatch:
        # Context ranks fill up what each of them holds.
        multiple = 1 if self.policy.layout.cp.size > 1 else self.policy.stream_multiple
        micro = build_micro_batch(
            [batch.rows[r] for r in rows], pad_to_multiple=multiple, pad_token=0
        )
        return move_to_device(micro, self.policy.host.device)

    @torch.no_grad()
    def _update(self, lr: float) -> tuple[float, bool]:
        """Clip and step; with a gradient that is not finite leave weights and moments alone."""
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(grad_norm):
            return grad_norm, True
        for optimizer in self.optimizer.chained_optimizers:
            parameters = optimizer.get_parameters()
            if parameters:
                clip_grad_by_total_norm_fp32(
                    parameters, max_norm=self._clip_grad, total_norm=grad_norm
                )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step_with_ready_grads()
        return grad_norm, False

    def _reduce_metrics(self, outputs: list[dict[str, Any]]) -> dict[str, float]:
        """Sum over micro-batches and replicas, then divide; the same on every rank."""
        layout = self.policy.layout
        metrics: list[dict[str, float] | None] = [None]
        if layout.is_last_stage:
            names = sorted(outputs[0])
            sums = torch.stack(
                [
                    torch.stack([torch.stack(output[name]) for output in outputs]).sum(0)
                    for name in names
                ]
            ).double()
            dist.all_reduce(sums, group=layout.dp.group)
            metrics = [
                {
                    name: numerator / denominator if denominator else numerator
                    for name, (numerator, denominator) in zip(names, sums.tolist(), strict=True)
                }
            ]
        if layout.pp.size > 1:
            last = dist.get_global_rank(layout.pp.group, layout.pp.size - 1)
            dist.broadcast_object_list(metrics, src=last, group=layout.pp.group)
        return metrics[0]


def move_to_device(micro: MicroBatch, device: torch.device) -> MicroBatch:
    """The same micro-batch with its tensors on `device`."""
    fields = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in vars(micro).items()
    }
    return MicroBatch(**fields)


def _sum_gradients(model: list[Any], num_tokens: Tensor | None, **kwargs: Any) -> None:
    """Megatron's reduction over ranks, without its division by a token count."""
    finalize_model_grads(model, None, **kwargs)


def _megatron_optimizer_config(config: OptimizerConfig, policy: Policy) -> MegatronOptimizerConfig:
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        bf16=policy.dtype is torch.bfloat16,
        params_dtype=policy.dtype,
        use_distributed_optimizer=True,
    )
