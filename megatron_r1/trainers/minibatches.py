"""From the scored groups of one rollout phase to the batches of its updates.

Groups belong to the replica that sampled them; updates draw their rows at random from the whole
phase (R1 supplement B.1), and replicas share each update's rows by length. What goes where is
decided from the lengths alone, on every replica alike; then each row travels once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from megatron_r1.algos.advantages import group_advantages
from megatron_r1.algos.reduce import token_weight
from megatron_r1.config.algo import AlgoConfig
from megatron_r1.data.packing import balance_rows
from megatron_r1.parallel.exchange import all_gather_objects, exchange
from megatron_r1.parallel.layout import Axis
from megatron_r1.types import Prompt, Rollout, ScoredGroup, TrainBatch, TrainRow


@dataclass(frozen=True)
class Minibatch:
    """One update's rows on this replica, and how many the update has over all replicas."""

    batch: TrainBatch
    num_rollouts: int


def train_rows(scored: Sequence[ScoredGroup], config: AlgoConfig) -> list[TrainRow]:
    """Rows with advantages, in the order of prompts and samples. Whole groups in, rows out."""
    if not scored:
        return []
    rewards_PG = torch.tensor([[r.total for r in group.rewards] for group in scored])
    advantages_PG = group_advantages(rewards_PG, config=config).tolist()
    return [
        _row(group.group.prompt, rollout, advantage, config)
        for group, advantages_G in zip(scored, advantages_PG, strict=True)
        for rollout, advantage in zip(group.group.rollouts, advantages_G, strict=True)
    ]


def _row(prompt: Prompt, rollout: Rollout, advantage: float, config: AlgoConfig) -> TrainRow:
    """Prompt and response end to end; the loss is taken on what the policy sampled."""
    num_prompt = len(prompt.token_ids)
    tokens_L = torch.tensor(prompt.token_ids + rollout.token_ids)
    return TrainRow(
        tokens_L=tokens_L,
        loss_mask_L=torch.arange(len(tokens_L)) >= num_prompt,
        group=prompt.draw,
        advantage=advantage,
        logprobs_rollout_L=torch.tensor((0.0,) * num_prompt + rollout.logprobs),
        **_kept_tokens(rollout, num_prompt),
        routed_experts_LMK=_routed_experts(rollout) if config.replay_routing else None,
    )


def _kept_tokens(rollout: Rollout, num_prompt: int) -> dict[str, Tensor]:
    """What the engine's probabilities are among, the trainer's are among, too."""
    if rollout.kept_tokens is None:
        return {}
    counts = [0] * num_prompt + [len(kept) for kept in rollout.kept_tokens]
    ids = list(chain.from_iterable(rollout.kept_tokens))
    return {"kept_counts_L": torch.tensor(counts), "kept_ids_J": torch.tensor(ids)}


def _routed_experts(rollout: Rollout) -> Tensor | None:
    """Token-aligned: the last token went through no pass of the engine."""
    if rollout.routed_experts is None:
        return None
    passes_LMK = torch.from_numpy(rollout.routed_experts.astype(np.int16))
    return torch.nn.functional.pad(passes_LMK, (0, 0, 0, 0, 0, 1), value=-1)


def split_phase(
    rows: Sequence[TrainRow],
    *,
    num_minibatches: int,
    seed: tuple[int, int],
    config: AlgoConfig,
    max_response_tokens: int,
    samplers: Axis,
    num_replicas: int,
    device: torch.device,
) -> list[Minibatch]:
    """Deal a phase's rows, of which each sampler brings its own, to minibatches and replicas.

    Args:
        seed: the run's seed and the phase's first step; keys the random split.
        samplers: the ranks that sampled; as many as there are context ranks follow one another in
            each replica, and all of those get the replica's rows.
    """
    own = [(row.num_tokens, int(row.loss_mask_L.sum())) for row in rows]
    sizes = all_gather_objects(own, samplers)
    owners = [sampler for sampler, part in enumerate(sizes) for _ in part]
    lengths = [length for part in sizes for length, _ in part]
    num_trainable = [trainable for part in sizes for _, trainable in part]
    first_own = sum(len(part) for part in sizes[: samplers.rank])

    num_context = samplers.size // num_replicas
    outgoing: list[list[tuple[int, int, TrainRow]]] = [[] for _ in range(samplers.size)]
    plan = plan_minibatches(lengths, num_minibatches, num_replicas, seed)
    for index, shares in enumerate(plan):
        members = [row for share in shares for row in share]
        total_tokens = sum(num_trainable[row] for row in members)
        for replica, share in enumerate(shares):
            for row in share:
                if owners[row] != samplers.rank:
                    continue
                weight = token_weight(
                    num_trainable[row],
                    reduction=config.loss_reduction,
                    num_rollouts=len(members),
                    total_tokens=total_tokens,
                    max_response_tokens=max_response_tokens,
                )
                weighted = dataclasses.replace(rows[row - first_own], weight=weight)
                for context in range(num_context):
                    outgoing[replica * num_context + context].append((index, row, weighted))
    batches: list[list[tuple[int, TrainRow]]] = [[] for _ in plan]
    for index, row, weighted in exchange(outgoing, samplers, device):
        batches[index].append((row, weighted))
    return [
        Minibatch(
            batch=TrainBatch(rows=tuple(row for _, row in sorted(batch, key=lambda pair: pair[0]))),
            num_rollouts=sum(len(share) for share in shares),
        )
        for batch, shares in zip(batches, plan, strict=True)
    ]


def plan_minibatches(
    lengths: Sequence[int], num_minibatches: int, num_replicas: int, seed: tuple[int, int]
) -> list[list[list[int]]]:
    """For each minibatch, the rows of each replica. Sizes differ by at most one row."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    plan = []
    for members in np.array_split(order, num_minibatches):
        rows = members.tolist()
        shares = balance_rows([lengths[row] for row in rows], num_replicas)
        plan.append([[rows[i] for i in share] for share in shares])
    return plan
