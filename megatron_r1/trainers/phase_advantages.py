"""What advantages owe to log-probabilities and to the rest of the phase.

`algos/advantages.py` compares the rollouts of one group by their rewards alone. An objective with
the KL penalty in its reward, with a critic, or with advantages normalised over all tokens, is
completed here, when log-probabilities and values are known. The others pass through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from megatron_r1.algos.advantages import group_advantages, reward_to_go, whiten
from megatron_r1.algos.gae import gae
from megatron_r1.algos.kl import kl_k1
from megatron_r1.config.algo import AdvantageNorm, AlgoConfig, KlPlace, PpoConfig
from megatron_r1.parallel.exchange import all_gather_objects, sum_pairs
from megatron_r1.parallel.layout import Axis
from megatron_r1.trainers.minibatches import Minibatch
from megatron_r1.types import TrainBatch, TrainRow


def complete_advantages(
    minibatches: Sequence[Minibatch], config: AlgoConfig, dp: Axis
) -> list[Minibatch]:
    """Minibatches of one phase with their final advantages; every replica calls it."""
    rows = [row for minibatch in minibatches for row in minibatch.batch.rows]
    if isinstance(config, PpoConfig):
        rows = [_with_gae(row, config) for row in rows]
    elif config.kl_beta > 0 and config.kl_place is KlPlace.token_reward:
        rows = [_less_penalty_to_go(row, config.kl_beta) for row in rows]
    if config.kl_beta > 0 and config.kl_place is KlPlace.rollout_reward:
        rows = _less_rollout_penalty(rows, config, dp)
    if config.advantage_norm is AdvantageNorm.batch:
        rows = _normalised(rows, config.advantage_eps, dp)
    remaining = iter(rows)
    return [
        dataclasses.replace(
            minibatch, batch=TrainBatch(tuple(next(remaining) for _ in minibatch.batch.rows))
        )
        for minibatch in minibatches
    ]


def _with_gae(row: TrainRow, config: PpoConfig) -> TrainRow:
    """Advantages and returns of a rollout from its critic's values; what stood for its advantage is
    its reward, which comes with the last token."""
    assert row.values_old_L is not None, "before the critic has seen it"
    sampled_L = row.loss_mask_L
    rewards_L = torch.zeros(row.num_tokens)
    if config.kl_beta > 0 and config.kl_place is KlPlace.token_reward:
        rewards_L -= config.kl_beta * _kl(row)
    rewards_L[-1] += row.advantage
    advantages_L, returns_L = torch.zeros(2, row.num_tokens)
    advantages_L[sampled_L], returns_L[sampled_L] = gae(
        rewards_L[sampled_L],
        row.values_old_L.cpu()[sampled_L],
        discount=config.discount,
        lam=config.gae_lambda,
    )
    return dataclasses.replace(row, advantages_L=advantages_L, returns_L=returns_L)


def _less_penalty_to_go(row: TrainRow, beta: float) -> TrainRow:
    penalty_L = beta * reward_to_go(_kl(row))
    return dataclasses.replace(row, advantages_L=row.advantage - penalty_L)


def _less_rollout_penalty(rows: Sequence[TrainRow], config: AlgoConfig, dp: Axis) -> list[TrainRow]:
    """A baseline is linear: what it does to rewards it does to penalties, group by group. The rows
    of a group may lie on several replicas."""
    own = [(row.group, float(_kl(row).sum())) for row in rows]
    by_group: dict[int, list[float]] = {}
    for part in all_gather_objects(own, dp):
        for group, kl in part:
            by_group.setdefault(group, []).append(kl)
    centred = {
        group: dict(zip(kls, _centred(kls, config), strict=True)) for group, kls in by_group.items()
    }
    return [
        dataclasses.replace(row, advantage=row.advantage - config.kl_beta * centred[group][kl])
        for row, (group, kl) in zip(rows, own, strict=True)
    ]


def _centred(kls: Sequence[float], config: AlgoConfig) -> list[float]:
    return group_advantages(torch.tensor([kls], dtype=torch.float64), config=config)[0].tolist()


def _normalised(rows: Sequence[TrainRow], eps: float, dp: Axis) -> list[TrainRow]:
    """Mean 0 and standard deviation 1 over all trainable tokens of the phase, on all replicas."""
    tokens_K = _concatenate(_advantages(row)[row.loss_mask_L] for row in rows)
    count = float(tokens_K.numel())
    mean = sum_pairs({"mean": (float(tokens_K.sum()), count)}, dp)["mean"]
    squares = float((tokens_K - mean).square().sum())
    variance = sum_pairs({"variance": (squares, count)}, dp)["variance"]
    return [
        dataclasses.replace(
            row,
            advantages_L=whiten(_advantages(row), mean=mean, std=variance**0.5, eps=eps),
        )
        for row in rows
    ]


def _advantages(row: TrainRow) -> Tensor:
    if row.advantages_L is not None:
        return row.advantages_L
    return torch.full_like(row.tokens_L, row.advantage, dtype=torch.float32)


def _kl(row: TrainRow) -> Tensor:
    """k1 to the reference of each token that the policy sampled; 0 elsewhere, and where the
    log-probability is not finite, which the loss leaves out as well."""
    assert row.logprobs_old_L is not None and row.logprobs_ref_L is not None, "before add_logprobs"
    kl_L = kl_k1(row.logprobs_old_L, row.logprobs_ref_L).cpu()
    return torch.where(row.loss_mask_L & kl_L.isfinite(), kl_L, 0.0)


def _concatenate(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(part.double() for part in parts)])
