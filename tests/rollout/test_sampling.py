"""Keyed draws and the distributions they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import torch

from megatron_r1.rollout.sampling import sample_tokens, stream_key, uniforms


def draw(logits: list[float], number: float, **options) -> tuple[int, float]:
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    tokens, logprobs = sample_tokens(
        torch.tensor([logits]), torch.tensor([number]), **(defaults | options)
    )
    return int(tokens[0]), float(logprobs[0])


def test_a_uniform_number_picks_the_token_whose_interval_it_lies_in():
    logits = [math.log(p) for p in (0.5, 0.3, 0.2)]  # intervals [0, .5), [.5, .8), [.8, 1)
    assert draw(logits, 0.49)[0] == 0
    assert draw(logits, 0.51)[0] == 1
    assert draw(logits, 0.79)[0] == 1
    token, logprob = draw(logits, 0.81)
    assert token == 2
    assert abs(logprob - math.log(0.2)) < 1e-6


def test_numbers_next_to_one_never_point_past_the_last_possible_token():
    almost_one = 1.0 - 2.0**-53
    assert draw([0.0, 0.0, float("-inf")], almost_one)[0] == 1
    assert draw([0.0] * 509, almost_one)[0] == 508


def test_impossible_tokens_are_never_drawn():
    # 0 lies at the very start of the first interval: it must not land on a token of probability 0.
    assert draw([float("-inf"), 0.0, 0.0], 0.0)[0] == 1


def test_temperature_is_in_the_reported_log_probability():
    # logits 0 and ln 9 at temperature 2 give odds 1 : 3.
    token, logprob = draw([0.0, math.log(9)], 0.9, temperature=2.0)
    assert token == 1
    assert abs(logprob - math.log(0.75)) < 1e-6


def test_top_k_and_top_p_cut_the_tail_but_not_the_log_probability():
    logits = [math.log(p) for p in (0.2, 0.5, 0.3)]
    assert draw(logits, 0.0, top_k=1) == draw(logits, 0.999, top_k=1)
    token, logprob = draw(logits, 0.999, top_k=1)
    assert token == 1
    assert abs(logprob - math.log(0.5)) < 1e-6
    # 0.5 alone is less than 0.6; with 0.3 it is enough, so 0.2 (token 0) is out.
    drawn = {draw(logits, number, top_p=0.6)[0] for number in np.linspace(0, 0.999, 50)}
    assert drawn == {1, 2}


def test_draws_follow_the_distribution():
    keys = np.array([stream_key(1, 0, g) for g in range(20_000)], dtype=np.uint64)
    numbers = torch.from_numpy(uniforms(keys, np.zeros(20_000, dtype=np.int64)))
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = probs.log().expand(20_000, 4)
    tokens, _ = sample_tokens(logits, numbers, temperature=1.0, top_p=1.0, top_k=0)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    # standard error at most sqrt(.25 / 20,000) = 0.0035
    assert (shares - probs).abs().max() < 0.015


def test_a_number_depends_on_seed_prompt_sample_and_position_alone():
    def number(seed: int, draw: int, sample: int, position: int, company: int) -> float:
        keys = np.array([stream_key(seed, draw, sample)] * (company + 1), dtype=np.uint64)
        return float(uniforms(keys, np.full(company + 1, position))[company])

    base = number(1, 2, 3, 4, company=0)
    assert number(1, 2, 3, 4, company=7) == base
    others = [number(9, 2, 3, 4, 0), number(1, 9, 3, 4, 0), number(1, 2, 9, 4, 0)]
    assert base not in [*others, number(1, 2, 3, 9, 0)]


def test_numbers_of_neighbouring_positions_are_uncorrelated():
    keys = np.array([stream_key(1, p, 0) for p in range(5_000)], dtype=np.uint64)
    first = uniforms(keys, np.zeros(5_000, dtype=np.int64))
    second = uniforms(keys, np.ones(5_000, dtype=np.int64))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05  # 3.5 standard errors
    assert abs(first.mean() - 0.5) < 0.02
