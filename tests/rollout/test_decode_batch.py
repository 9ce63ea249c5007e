"""The scheduler of in-process decoding, driven by a scripted model: no Megatron."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_r1.rollout.decode_batch import DecodeBatch
from megatron_r1.types import FinishReason, Prompt

STOP = 0


def prompt(index: int, length: int) -> Prompt:
    return Prompt(
        id=str(index),
        draw=index,
        question="",
        text="",
        token_ids=tuple(range(1, length + 1)),
        answer="",
        grader="exact",
    )


class ScriptedModel:
    """Sample g of prompt p draws 100 p + g + 1, then stops after 1 + (p + g) % 4 tokens.

    Beside the batch it keeps what each cache row holds, as the real cache does: the row of a
    running response must hold its own prompt and nothing else, wherever rows are moved.
    """

    def __init__(self, batch: DecodeBatch) -> None:
        self.batch = batch
        self.cache: dict[int, tuple[int, int]] = {}
        self.finished = []
        self.most_running = 0
        self.prefilled: list[int] = []

    def run(self) -> None:
        while not self.batch.is_done:
            if self.batch.should_prefill:
                prompts, rows = self.batch.take_prompts(max_tokens=20)
                self.prefilled += [p.draw for p in prompts]
                for p, row in zip(prompts, rows, strict=True):
                    self.cache[row] = (p.draw, -1)
            else:
                self.step(slice(0, self.batch.num_running))
            self.start()
            self.most_running = max(self.most_running, self.batch.num_running)

    def start(self) -> None:
        while True:
            rows, sources = self.batch.start_responses()
            if not sources:
                return
            for row, source in zip(range(rows.start, rows.stop), sources, strict=True):
                running = self.batch._running[row]
                assert self.cache[source][0] == running.prompt_index
                self.cache[row] = (running.prompt_index, running.sample)
            self.step(rows)

    def step(self, rows: slice) -> None:
        tokens = []
        for row in range(rows.start, rows.stop):
            running = self.batch._running[row]
            assert self.cache[row] == (running.prompt_index, running.sample)
            drawn = int(self.batch._drawn_N[row])
            length = 1 + (running.prompt_index + running.sample) % 4
            token = 100 * running.prompt_index + running.sample + 1
            tokens.append(STOP if drawn + 1 == length else token)
        ended = self.batch.accept(rows, np.array(tokens), -np.ones(len(tokens)))
        if ended:
            responses, sources, targets = self.batch.retire(ended)
            assert not set(sources) & set(targets)
            for source, target in zip(sources, targets, strict=True):
                self.cache[target] = self.cache[source]
            self.finished += responses


def run(num_prompts: int, num_samples: int, max_batch: int, max_response_tokens: int = 8):
    batch = DecodeBatch(
        [prompt(i, 3 + i % 5) for i in range(num_prompts)],
        num_samples=num_samples,
        max_response_tokens=max_response_tokens,
        max_batch=max_batch,
        num_padding_rows=2,
        stop_id=STOP,
        seed=1,
    )
    model = ScriptedModel(batch)
    model.run()
    return model


@pytest.mark.parametrize(
    ("num_prompts", "num_samples", "max_batch"),
    [(1, 1, 1), (5, 4, 256), (7, 3, 4), (9, 16, 10), (4, 8, 8), (12, 2, 3)],
)
def test_every_sample_of_every_prompt_ends_once_with_its_own_tokens(
    num_prompts, num_samples, max_batch
):
    model = run(num_prompts, num_samples, max_batch)
    ended = {(r.prompt_index, r.sample): r for r in model.finished}
    assert len(model.finished) == len(ended) == num_prompts * num_samples
    for (p, g), response in ended.items():
        length = 1 + (p + g) % 4
        assert response.token_ids == (100 * p + g + 1,) * (length - 1) + (STOP,)
        assert response.finish_reason is FinishReason.stop
        assert len(response.logprobs) == length
    assert model.most_running <= max_batch
    assert sorted(model.prefilled) == list(range(num_prompts))  # each prompt once, for all samples


def test_rows_that_end_are_refilled_while_others_run():
    # 40 responses of 1 to 4 tokens through 8 rows: without refilling, 5 batches of 4 steps.
    model = run(num_prompts=10, num_samples=4, max_batch=8)
    assert model.most_running == 8


def test_a_response_at_the_limit_is_truncated_and_keeps_its_last_token():
    model = run(num_prompts=1, num_samples=4, max_batch=4, max_response_tokens=2)
    by_sample = {r.sample: r for r in model.finished}
    assert by_sample[0].finish_reason is FinishReason.stop  # 1 token: the stop token itself
    assert by_sample[1].finish_reason is FinishReason.stop  # 2 tokens, the second is the stop token
    assert by_sample[3].finish_reason is FinishReason.length
    assert by_sample[3].token_ids == (4, 4)


def test_nothing_to_do_is_done():
    assert DecodeBatch(
        [], num_samples=4, max_response_tokens=4, max_batch=4, num_padding_rows=1, stop_id=0, seed=1
    ).is_done
