"""Real decoding on one rank: against the training forward, and independent of its company."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.errors import ConfigError
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.inprocess import InProcessEngine
from megatron_r1.types import Prompt
from tests.models.builders import logits_of
from tests.models.families import FAMILIES, load_family

pytestmark = pytest.mark.megatron


class NumberTokenizer:
    eos_id = 0

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def policy(request, one_rank):
    return one_rank.policy(load_family(request.param))


def prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    return [
        Prompt(
            id=str(i),
            draw=i,
            question="",
            text="",
            token_ids=tuple(
                torch.randint(1, 500, (4 + 3 * (i % 5),), generator=generator).tolist()
            ),
            answer="",
            grader="exact",
        )
        for i in range(count)
    ]


def generate(policy, some_prompts, *, max_batch: int, num_samples: int = 4, seed: int = 1):
    engine = InProcessEngine(policy, NumberTokenizer(), max_batch=max_batch, max_prefill_tokens=64)
    params = SamplingParams(
        num_samples=num_samples,
        max_response_tokens=16,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        seed=seed,
    )
    groups = engine.generate(some_prompts, params, weight_version=3)
    return {
        (group.prompt.draw, rollout.sample): rollout
        for group in groups
        for rollout in group.rollouts
    }


def test_decoding_has_the_logprobs_of_the_training_forward(policy):
    some_prompts = {prompt.draw: prompt for prompt in prompts(3)}
    for (draw, _), rollout in generate(policy, list(some_prompts.values()), max_batch=5).items():
        prompt_ids = some_prompts[draw].token_ids
        tokens_L = torch.tensor(prompt_ids + rollout.token_ids)
        logprobs_LV = logits_of(policy, tokens_L, [len(tokens_L)]).log_softmax(dim=-1)
        num_prompt = len(prompt_ids)
        expected = logprobs_LV[num_prompt - 1 : -1].gather(1, tokens_L[num_prompt:, None])
        gap = (expected.squeeze(1) - torch.tensor(rollout.logprobs)).abs().max()
        assert gap < 1e-5  # nats; float32 sums in another order


def test_a_rollout_does_not_depend_on_its_company(policy):
    alone = generate(policy, prompts(6)[4:5], max_batch=1)
    together = generate(policy, prompts(6), max_batch=7)
    for key, rollout in alone.items():
        assert together[key].token_ids == rollout.token_ids
        gap = torch.tensor(together[key].logprobs) - torch.tensor(rollout.logprobs)
        assert gap.abs().max() < 1e-5
    assert all(rollout.weight_version == 3 for rollout in together.values())


def test_another_seed_and_another_sample_give_another_rollout(policy):
    first = generate(policy, prompts(1), max_batch=4)
    second = generate(policy, prompts(1), max_batch=4, seed=2)
    texts = [r.token_ids for r in (*first.values(), *second.values())]
    assert len(set(texts)) == 8


def test_a_prompt_that_cannot_fit_is_refused_with_the_settings_to_change(policy):
    long = Prompt("p", 0, "", "", tuple([1] * 500), "", "exact")
    with pytest.raises(ConfigError, match="model.max_positions = 512"):
        generate(policy, [long], max_batch=4)
