"""Our losses on Megatron-Core's schedules: gradients, and one optimizer step.

The only module that knows how Megatron scales a loss. It scales nothing: a loss comes weighted over
the whole step (`algos/reduce.py`), so gradients are *summed* over micro-batches and data-parallel
replicas. Megatron calls that `calculate_per_token_loss`, and would divide by a token count at the
end, which is left out here.
"""

from __future__ import annotations

import math
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
from torch import Tensor

from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.models.precision import Installed
from megatron_r1.models.stream import TokenStream
from megatron_r1.parallel.layout import Axis
from megatron_r1.trainers.micro_batches import OnMicroBatch, plan_micro_batches, run_micro_batches
from megatron_r1.trainers.output_losses import OutputLoss, TokenLoss, on_logprobs
from megatron_r1.types import MicroBatch, StepResult, TrainBatch


class MegatronStep:
    """A model with gradients and an optimizer."""

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

    def on_logprobs(self, loss: TokenLoss, *, temperature: float = 1.0) -> OutputLoss:
        """A loss of this policy's log-probabilities, and of its prediction layers where they run.

        Args:
            temperature: what the rows were sampled with.
        """
        return on_logprobs(loss, self.policy, temperature=temperature, mtp_weight=self._mtp_loss)

    def train_step(
        self,
        batch: TrainBatch,
        loss: OutputLoss,
        *,
        lr: float,
        num_sequences: int,
        on_micro_batch: OnMicroBatch | None = None,
    ) -> StepResult:
        """One update from this replica's rows; every rank of the job calls it.

        Args:
            lr: learning rate of this update.
            num_sequences: rows of the whole step, over all replicas.
        """
        expert_biases = [(bias, bias.clone()) for bias in self._expert_biases()]
        outputs = self.accumulate_gradients(batch, loss, num_sequences, on_micro_batch)
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
        loss: OutputLoss,
        num_sequences: int,
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
            output: Tensor, micro: MicroBatch, stream: TokenStream
        ) -> tuple[Tensor, dict[str, Any]]:
            result = loss(output, micro, stream)
            # A denominator of 0 marks a sum.
            none = torch.zeros_like(result.loss)
            num_tokens = micro.tokens_T.numel() - micro.num_padding
            metrics = dict(result.metrics)
            metrics["train/loss"] = (result.loss.detach(), none)
            metrics["train/tokens"] = (none + num_tokens, none)
            return result.loss, metrics

        return run_micro_batches(
            self.policy,
            self.chunks,
            batch,
            plan_micro_batches(self.policy, batch),
            finish,
            num_sequences=num_sequences,
            with_mtp=self._mtp_loss > 0,
            wants_hidden=loss.reads_hidden,
            on_micro_batch=on_micro_batch,
        )

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
                # Moments in bfloat16 have gradients in `decoupled_grad`, and none in `grad`.
                is_decoupled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
                clip_grad_by_total_norm_fp32(
                    parameters,
                    max_norm=self._clip_grad,
                    total_norm=grad_norm,
                    use_decoupled_grad=is_decoupled,
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
            metrics = [_over_replicas(outputs, layout.dp)]
        if layout.pp.size > 1:
            last = dist.get_global_rank(layout.pp.group, layout.pp.size - 1)
            dist.broadcast_object_list(metrics, src=last, group=layout.pp.group)
        return metrics[0]


def _over_replicas(outputs: list[dict[str, Any]], dp: Axis) -> dict[str, float]:
    """Metrics of the step from those of this replica's micro-batches."""
    names = sorted(outputs[0])
    maxima = [name for name in names if name.endswith("_max")]
    names = [name for name in names if name not in maxima]
    sums = torch.stack(
        [torch.stack([torch.stack(output[name]) for output in outputs]).sum(0) for name in names]
    ).double()
    dist.all_reduce(sums, group=dp.group)
    metrics = {
        name: numerator / denominator if denominator else numerator
        for name, (numerator, denominator) in zip(names, sums.tolist(), strict=True)
    }
    if maxima:
        largest = torch.stack(
            [torch.stack([output[name][0] for output in outputs]).max() for name in maxima]
        ).double()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=dp.group)
        metrics |= dict(zip(maxima, largest.tolist(), strict=True))
    return metrics


def _sum_gradients(model: list[Any], num_tokens: Tensor | None, **kwargs: Any) -> None:
    """Megatron's reduction over ranks, without its division by a token count."""
    finalize_model_grads(model, None, **kwargs)


def check_bf16_moments(setting: str, device: torch.device) -> None:
    """There is an optimizer for this device that holds moments in bfloat16.

    Raises:
        ConfigError: there is none, though `setting` asks for it.
    """
    installed = Installed.on(device)
    if not installed.transformer_engine:
        raise ConfigError(
            f"{setting}: only Transformer Engine's Adam holds moments in bfloat16, and it cannot "
            f"be had here ({installed.engine_problem}). On a GPU machine: pip install -e '.[gpu]'. "
            f"Without: {setting}=false"
        )


def _moment_fields(config: OptimizerConfig, policy: Policy) -> dict[str, Any]:
    """Fields for moments in bfloat16; errors are those of `check_bf16_moments`."""
    if not config.bf16_moments:
        return {}
    check_bf16_moments("optimizer.bf16_moments", policy.host.device)
    return dict(
        use_precision_aware_optimizer=True,
        exp_avg_dtype=torch.bfloat16,
        exp_avg_sq_dtype=torch.bfloat16,
    )


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
        **_moment_fields(config, policy),
    )
