"""Rows of a phase: what they hold, and that each is dealt once."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from megatron_r1.config.algo import GrpoConfig, LossReduction
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.trainers.minibatches import plan_minibatches, split_phase, train_rows
from megatron_r1.types import FinishReason, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup


def scored_group(rewards, *, prompt_ids: tuple[int, ...] = (5, 6), draw: int = 0) -> ScoredGroup:
    """One rollout per reward; rollout g has 1 + g tokens, 10 + g, of log-probability -1 - g."""
    prompt = Prompt(
        id=f"p{draw}",
        draw=draw,
        question="",
        text="",
        token_ids=prompt_ids,
        answer="",
        grader="exact",
    )
    rollouts = tuple(
        Rollout(
            sample=g,
            token_ids=(10 + g,) * (1 + g),
            logprobs=(-1.0 - g,) * (1 + g),
            finish_reason=FinishReason.stop,
            weight_version=0,
            text="",
        )
        for g in range(len(rewards))
    )
    return ScoredGroup(
        group=RolloutGroup(prompt=prompt, rollouts=rollouts),
        rewards=tuple(Reward(total=float(r), parts={}, reasons={}) for r in rewards),
    )


def test_advantages_compare_the_rollouts_of_one_prompt():
    # Mean 0.5, population std 0.5: (1 - 0.5) / 0.5 = 1. The second group has mean 3 and std 1.
    rows = train_rows([scored_group([1, 0, 0, 1]), scored_group([4, 2, 2, 4])], GrpoConfig())
    expected = [1, -1, -1, 1] * 2
    assert [row.advantage for row in rows] == pytest.approx(expected, abs=1e-5)


def test_a_row_is_prompt_and_response_and_the_loss_covers_the_response():
    row = train_rows([scored_group([0, 1], prompt_ids=(5, 6, 7))], GrpoConfig())[1]
    assert row.tokens_L.tolist() == [5, 6, 7, 11, 11]
    assert row.tokens_L.dtype == torch.int64
    assert row.loss_mask_L.tolist() == [False, False, False, True, True]
    assert row.logprobs_rollout_L.tolist() == [0, 0, 0, -2, -2]


def test_a_group_whose_rewards_are_all_equal_has_no_advantages():
    scored = [scored_group([1, 1]), scored_group([0, 1], draw=7), scored_group([0, 0])]
    rows = train_rows(scored, GrpoConfig())
    assert [row.advantage for row in rows] == pytest.approx([0, 0, -1, 1, 0, 0], abs=1e-5)
    assert [row.group for row in rows] == [0, 0, 7, 7, 0, 0]
    assert train_rows([], GrpoConfig()) == []


@pytest.mark.parametrize(("num_rows", "num_minibatches", "num_replicas"), [(33, 4, 3), (3, 4, 2)])
def test_a_plan_has_every_row_once_in_minibatches_of_one_size(
    num_rows, num_minibatches, num_replicas
):
    lengths = [1 + (7 * row) % 11 for row in range(num_rows)]
    plan = plan_minibatches(lengths, num_minibatches, num_replicas, seed=(1, 0))
    assert len(plan) == num_minibatches and all(len(shares) == num_replicas for shares in plan)
    dealt = [row for shares in plan for share in shares for row in share]
    assert sorted(dealt) == list(range(num_rows))
    sizes = [sum(len(share) for share in shares) for shares in plan]
    assert max(sizes) - min(sizes) <= 1


def test_replicas_get_like_numbers_of_tokens():
    lengths = [50, 10, 10, 10, 10, 10]
    ((first, second),) = plan_minibatches(lengths, 1, 2, seed=(1, 0))
    # 100 tokens: the row of 50 alone, and the five others.
    assert sorted(map(len, (first, second))) == [1, 5]


def test_seed_and_phase_decide_the_split():
    def plan(*seed: int):
        return plan_minibatches([4] * 40, 4, 2, seed=seed)

    assert plan(1, 0) == plan(1, 0)
    assert plan(1, 0) != plan(1, 16)
    assert plan(1, 0) != plan(2, 0)
    # Rows of one prompt are neighbours; a random split does not keep them together.
    assert sorted(row for share in plan(1, 0)[0] for row in share) != list(range(10))


@pytest.mark.megatron
@pytest.mark.parametrize("reduction", list(LossReduction))
def test_weights_of_a_phase_are_shares_of_each_minibatch(reduction, one_rank):
    samplers = one_rank.layout(ParallelConfig()).dp_cp
    config = GrpoConfig(loss_reduction=reduction)
    rows = train_rows([scored_group([0, 1, 1, 0], draw=draw) for draw in range(4)], config)
    minibatches = split_phase(
        rows,
        num_minibatches=3,
        seed=(1, 0),
        config=config,
        max_response_tokens=8,
        samplers=samplers,
        num_replicas=1,
        device=one_rank.host.device,
    )
    assert [m.num_rollouts for m in minibatches] == [6, 5, 5]
    contents = Counter(tuple(row.tokens_L.tolist()) for m in minibatches for row in m.batch.rows)
    assert contents == Counter(tuple(row.tokens_L.tolist()) for row in rows)
    for minibatch in minibatches:
        trainable = [int(row.loss_mask_L.sum()) for row in minibatch.batch.rows]
        total = sum(n * row.weight for n, row in zip(trainable, minibatch.batch.rows, strict=True))
        # Means add up to 1; Dr. GRPO's divisor is the same for short and long responses.
        constant = sum(trainable) / (8 * minibatch.num_rollouts)
        expected = constant if reduction is LossReduction.constant else 1.0
        assert math.isclose(total, expected, rel_tol=1e-9)
