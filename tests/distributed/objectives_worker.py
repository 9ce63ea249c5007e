"""One rank of the tests of objectives in layouts: DPO, distillation on logits, and PPO's critic.

`main(FILE, LAYOUTS)` writes what each layout found to FILE, as JSON.

LAYOUTS is a list of settings of `conf/parallel`. Weights are drawn alike in every layout, so
that each starts from the same models, and takes the same two steps.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group

LR = 1e-3
VOCAB = 509
NUM_PAIRS = 5


def main(path: str, layouts: list[dict[str, Any]]) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    results = []
    for parallel in layouts:
        found = {}
        for objective in (dpo, distillation, critic):
            found |= {f"{objective.__name__} {k}": v for k, v in objective(host, parallel).items()}
        results.append(found)
    if dist.get_rank() == 0:
        Path(path).write_text(json.dumps(results, indent=1))
    stop_process_group()


def build(host: Host, parallel: dict[str, Any], *overrides: str) -> tuple[Any, Any]:
    """The configuration, and a function that draws a policy from a seed."""
    from megatron_r1.config.load import load_config
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout

    settings = [f"parallel.{name}={value}" for name, value in parallel.items()]
    config = load_config(
        [
            "model=tiny_dense",
            f"model.vocab_size={VOCAB}",
            "parallel.max_tokens_per_microbatch=64",
            *overrides,
            *settings,
        ]
    )
    layout = enter_layout(config.parallel, seed=1)
    draw = partial(Policy, layout=layout, precision=config.precision, host=host)
    return config, lambda model=None, **more: draw(model or config.model, **more)


def examples(rows_in_each: int) -> list[tuple[Any, ...]]:
    """Rows of 8 to 25 tokens, with what a critic learns from; the same on every rank."""
    from megatron_r1.types import TrainRow

    generator = torch.Generator().manual_seed(rows_in_each)
    result = []
    for _ in range(NUM_PAIRS):
        rows = []
        for _ in range(rows_in_each):
            length = int(torch.randint(8, 26, (1,), generator=generator))
            noise = torch.randn(2, length, generator=generator)
            rows.append(
                TrainRow(
                    tokens_L=torch.randint(0, VOCAB, (length,), generator=generator),
                    loss_mask_L=torch.arange(length) >= 3,
                    values_old_L=0.1 * noise[0],
                    returns_L=noise[1],
                )
            )
        result.append(tuple(rows))
    return result


def two_steps(step: Any, batch: Any, loss: Any, num_sequences: int) -> dict[str, float]:
    found = {}
    for number in (1, 2):
        result = step.train_step(batch, loss, lr=LR, num_sequences=num_sequences)
        assert not result.skipped
        for name in ("train/loss", "train/grad_norm"):
            found[f"{name} {number}"] = result.metrics[name]
    return found


def dpo(host: Host, parallel: dict[str, Any]) -> dict[str, float]:
    """Against a reference that is another model."""
    from megatron_r1.algos.dpo import dpo_pair_loss
    from megatron_r1.checkpoint.record import REFERENCE
    from megatron_r1.models.weight_bank import WeightBank
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.preference import share_ordered_right, with_reference
    from megatron_r1.trainers.supervised import own_share

    config, draw = build(host, parallel, "stage=dpo")
    step = MegatronStep(draw(seed=7), config.optimizer)
    bank = WeightBank(step.policy)
    with torch.no_grad():
        own = [(weight, weight.clone()) for _, weight in step.policy.named_parameters()]
        for weight, _ in own:
            weight.mul_(1.1)
        bank.store(REFERENCE)
        for weight, before in own:
            weight.copy_(before)
    pairs = examples(2)
    batch = with_reference(own_share(pairs, step.policy.layout.dp), step.policy, bank)
    loss = step.on_logprobs(partial(dpo_pair_loss, config=config.algo, num_pairs=NUM_PAIRS))
    found = two_steps(step, batch, loss, 2 * NUM_PAIRS)
    return found | {"ordered right": share_ordered_right(pairs, step.policy, bank)}


def distillation(host: Host, parallel: dict[str, Any]) -> dict[str, float]:
    """From a teacher with more layers."""
    from megatron_r1.algos.distill import distillation_loss
    from megatron_r1.trainers.distill import with_teacher_logits
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.output_losses import on_divergence
    from megatron_r1.trainers.supervised import own_share

    choices = ("stage=distill", "algo=distill_logits", "algo.interpolation=0.3")
    config, draw = build(host, parallel, *choices)
    step = MegatronStep(draw(seed=7), config.optimizer)
    model = dataclasses.replace(config.model, num_layers=5, init_std=0.1)
    teacher = draw(model, seed=8)
    batch = with_teacher_logits(own_share(examples(1), step.policy.layout.dp), teacher)
    loss = on_divergence(distillation_loss, step.policy, config.algo)
    return two_steps(step, batch, loss, NUM_PAIRS)


def critic(host: Host, parallel: dict[str, Any]) -> dict[str, float]:
    from megatron_r1.algos.value import critic_loss
    from megatron_r1.config.model import Head
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.output_losses import on_values
    from megatron_r1.trainers.supervised import own_share

    config, draw = build(host, parallel, "algo=ppo")
    step = MegatronStep(draw(seed=7, head=Head.scalar), config.algo.critic_optimizer)
    batch = own_share(examples(1), step.policy.layout.dp)
    return two_steps(step, batch, on_values(partial(critic_loss, clip=0.2)), NUM_PAIRS)
